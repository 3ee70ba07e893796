"""Grouping, what differs, intervals and tests, against values computed by hand or by another way."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.compared import CLASSES, DATASET, curve_lines, result
from scipy import stats

from cifar_dist.cli.summary import summarize
from cifar_dist.compare.curves import chart_data, mean_curve, thinned
from cifar_dist.compare.differences import ALL, MCNEMAR, ONE_AGAINST_SEVERAL, PROPORTIONS, WELCH, differences
from cifar_dist.compare.groups import Comparison, compare
from cifar_dist.compare.notes import notes
from cifar_dist.compare.runs import ComparedRun
from cifar_dist.compare.statistics import holm, mcnemar, mean_interval, one_against_several, two_proportions, welch
from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import MODELS, build_model, forward_macs
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.metric import METRICS
from cifar_dist.record.reader import RunRecord
from cifar_dist.scores.intervals import wilson_interval


def make_run(
    name: str,
    accuracy: float | None = 0.6,
    *,
    status: str = "finished",
    path: Path = Path("/runs"),
    classes: tuple[float, float] | None = None,
    val: tuple[float, ...] = (0.4, 0.5),
    dataset: dict | None = None,
    start: dict | None = None,
    **options: object,
) -> ComparedRun:
    config = TrainConfig(**{"model": "lenet", "epochs": 2, "batch_size": 10, **options}).to_dict()
    summary: dict = {"status": status, "best_step": 20, "total_steps": 20, "macs_per_sample": 1000}
    if status == "finished":
        summary |= {"val": result(max(val)) if val else None, "test": accuracy and result(accuracy, classes)}
    record = RunRecord(
        path / name,
        status,
        config=config,
        dataset=dataset or DATASET,
        starts=[start or {"git_commit": "a" * 40}],
        summary=summary,
        lines=curve_lines(*val),
    )
    return ComparedRun.of(record)


def labels(comparison: Comparison) -> list[str]:
    return [group.label for group in comparison.groups]


def test_a_mean_has_the_t_interval_of_the_tables():
    low, high, method = mean_interval([0.60, 0.62, 0.64])  # t(2, 0.975) = 4.303, std 0.02
    assert (low, high) == pytest.approx(
        (0.62 - 4.303 * 0.02 / math.sqrt(3), 0.62 + 4.303 * 0.02 / math.sqrt(3)), abs=1e-5
    )
    assert method == "t"


@pytest.mark.parametrize(("correct", "images"), [(90, 100), (0, 7), (5000, 5000), (6112, 10_000)])
def test_a_single_run_has_wilsons_interval(correct, images):
    interval = wilson_interval(correct / images, images)
    expected = stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert interval[:2] == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.method == "wilson"


def test_mcnemar_counts_all_outcomes_of_as_many_coin_throws():
    for only_a, only_b in ((0, 0), (3, 9), (7, 1), (5, 5), (0, 12)):
        n = only_a + only_b
        throws = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        as_extreme = [heads for heads in throws if abs(2 * heads - n) >= abs(only_a - only_b)]
        p = mcnemar(np.array([only_a]), np.array([only_b]))
        assert p == pytest.approx([len(as_extreme) / len(throws)])


def test_welch_agrees_with_its_formula_and_knows_nothing_without_spread():
    a, b = np.array([[0.60, 0.5], [0.62, 0.5], [0.61, 0.5]]), np.array([[0.64, 0.5], [0.70, 0.5]])
    va, vb = a[:, 0].var(ddof=1) / 3, b[:, 0].var(ddof=1) / 2
    t = (a[:, 0].mean() - b[:, 0].mean()) / math.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 1)
    assert welch(a, b) == pytest.approx([2 * stats.t.sf(abs(t), freedom), math.nan], nan_ok=True)


def test_one_run_against_several_is_judged_by_their_spread():
    several = np.array([[0.60], [0.62], [0.64]])
    t = (0.70 - 0.62) / (0.02 * math.sqrt(1 + 1 / 3))
    assert one_against_several(np.array([[0.70]]), several) == pytest.approx([2 * stats.t.sf(t, 2)])


def test_two_proportions_is_the_chi_square_test_of_the_table():
    p = two_proportions(np.array([60.0, 0.0]), np.array([100.0, 10.0]), np.array([45.0, 0.0]), np.array([90.0, 10.0]))
    assert p[0] == pytest.approx(stats.chi2_contingency([[60, 40], [45, 45]], correction=False).pvalue)
    assert math.isnan(p[1])


def test_holms_correction_of_his_own_example():
    p = np.array([0.01, 0.04, math.nan, 0.03, 0.005])  # sorted: 0.005*4, 0.01*3, 0.03*2, then not below the one before
    assert holm(p) == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)


def test_seeds_folds_and_what_may_change_make_no_other_configuration():
    runs = [
        make_run("a", seed=0),
        make_run("b", seed=1, threads=2, device="cpu", keep_checkpoints=5, wandb_group="again"),
        make_run("c", folds=5, fold=0),
        make_run("d", folds=5, fold=1),
        make_run("e", log_every=7, seed=2),
        make_run("f", lr=0.2),
    ]
    groups = {tuple(run.name for run in group.runs) for group in compare(runs).groups}
    assert groups == {("a", "b", "e"), ("c", "d"), ("f",)}


def test_only_what_differs_is_named():
    comparison = compare(
        [make_run("a", lr=0.1, seed=0), make_run("b", lr=0.2, seed=1), make_run("c", lr=0.2, augment=())]
    )
    assert comparison.differing == ("augment", "lr")
    assert sorted(labels(comparison)) == ["augment crop flip lr 0.1", "augment crop flip lr 0.2", "augment none"]


def test_an_option_that_only_follows_another_is_not_named_beside_it():
    comparison = compare([make_run("a", optimizer="sgd"), make_run("b", optimizer="adam", momentum=0.5)])
    assert comparison.differing == ("optimizer",)


def test_an_option_without_effect_makes_no_other_configuration():
    assert len(compare([make_run("a", optimizer="adam", momentum=0.5), make_run("b", optimizer="adam")]).groups) == 1


def test_options_that_came_later_have_their_default_in_older_runs():
    old = make_run("old")
    del old.config["nesterov"]
    assert len(compare([old, make_run("new", seed=1)]).groups) == 1


def test_numbers_read_the_same_whoever_wrote_them():
    run = make_run("wandb", seed=1, warmup=0.0)
    run.config["warmup"], run.config["milestones"] = 0, (0.5, 0.75)
    assert len(compare([make_run("folder"), run]).groups) == 1


def test_groups_are_called_by_as_little_as_tells_them_apart():
    runs = [
        make_run("a"),
        make_run("b", recipe="li2024", lr=0.001),
        make_run("c", lr=0.2),
        make_run("d", model="resnet20", lr=0.3),
    ]
    assert set(labels(compare(runs))) == {"lenet lr 0.1", "lenet li2024", "lenet lr 0.2", "resnet20"}


def test_other_data_are_another_group_and_never_compared():
    other = {**DATASET, "fingerprint": "0" * 64}
    comparison = compare([make_run("a", 0.9), make_run("b", 0.5, dataset=other, seed=1)])
    assert labels(comparison) == ["pets", "pets (00000000)"]
    assert differences(comparison) == [None, None]
    assert any("The data differ" in note for note in notes(comparison))


def test_the_same_data_under_another_path_are_the_same():
    assert len(compare([make_run("a", data="x"), make_run("b", data="y", seed=1)]).groups) == 1


def test_commits_are_told_apart_only_where_nothing_else_differs():
    old, new = {"git_commit": "1" * 40}, {"git_commit": "2" * 40 + "+"}
    alone = compare([make_run("a", 0.5, start=old), make_run("b", 0.6, start=new)])
    assert (alone.differing, labels(alone)) == (("commit",), ["commit 22222222", "commit 11111111"])
    beside = compare([make_run("a", start=old), make_run("b", start=new, lr=0.2)])
    assert beside.differing == ("lr",)
    assert any("The code differs: 11111111 (lr 0.1); 22222222+ (lr 0.2)" in note for note in notes(beside))


def test_mean_and_deviation_are_over_seeds_and_the_best_comes_first():
    runs = [make_run(f"{lr}-{seed}", 0.5 + lr + 0.01 * seed, lr=lr, seed=seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    best, second = compare(runs).groups
    assert (best.mean, best.std) == pytest.approx((0.705, 0.01 / math.sqrt(2)))
    assert best.interval.method == "t"
    assert second.mean == pytest.approx(0.605)


def test_the_least_loss_comes_first():
    comparison = compare([make_run("a", 0.5, lr=0.1), make_run("b", 0.7, lr=0.2)], "test/loss")
    assert [group.mean for group in comparison.groups] == pytest.approx([0.3, 0.5])


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "killed", "broken"])
def test_runs_that_are_not_finished_enter_no_mean(status):
    runs = [make_run("a", 0.6, val=(0.5,)), make_run("b", seed=1, status=status, val=(0.9,))]
    for metric, mean in (("test/accuracy", 0.6), ("val/accuracy", 0.5)):
        comparison = compare(runs, metric)
        (group,) = comparison.groups
        assert (group.mean, len(group.runs)) == (mean, 2)
        assert [run.name for run in comparison.unaveraged] == ["b"]
        assert [run["status"] for run in chart_data(comparison)[0]["runs"]] == ["finished", status]


def test_a_seed_counts_once():
    comparison = compare([make_run("a", 0.6), make_run("a.1", 0.8), make_run("b", 0.7, seed=1)])
    assert comparison.groups[0].mean == pytest.approx(0.65)
    assert any("counts once: a.1 (seed 0)" in note for note in notes(comparison))


def test_validation_takes_the_place_of_tests_only_where_there_are_none():
    untested = [make_run("a", None, val=(0.7, 0.5)), make_run("b", None, seed=1, val=(0.8,))]
    assert compare(untested).metric == METRICS["val/accuracy"]
    assert compare(untested).groups[0].mean == pytest.approx(0.75)
    mixed = compare([*untested, make_run("c", 0.3, seed=2)])
    assert (mixed.metric, mixed.groups[0].mean) == (METRICS["test/accuracy"], 0.3)
    assert any("Finished without test/accuracy, so left out of the means: a, b" in note for note in notes(mixed))


def test_a_baseline_is_a_group_or_one_of_its_runs():
    runs = [make_run("a", 0.9), make_run("b", 0.5, lr=0.2), make_run("c", status="killed", lr=0.3)]
    assert compare(runs).baseline.label == "lr 0.1"
    assert compare(runs, baseline="lr 0.2").baseline.label == compare(runs, baseline="b").baseline.label == "lr 0.2"
    with pytest.raises(UserError, match=r"unknown --baseline 'lr 0.4'.*Did you mean"):
        compare(runs, baseline="lr 0.4")
    with pytest.raises(UserError, match="no run of that group has finished"):
        compare(runs, baseline="c")


def test_several_seeds_are_compared_class_by_class():
    values = {0.1: [(0.6, 0.5, 0.7), (0.62, 0.54, 0.72)], 0.2: [(0.5, 0.6, 0.4), (0.51, 0.64, 0.42)]}
    runs = [
        make_run(f"{lr}-{seed}", total, classes=(cat, dog), lr=lr, seed=seed)
        for lr, rows in values.items()
        for seed, (total, cat, dog) in enumerate(rows)
    ]
    _, difference = differences(compare(runs))
    assert difference.test == WELCH
    assert [cell.delta for cell in difference.cells.values()] == pytest.approx([-0.105, 0.1, -0.3])
    raw = [
        stats.ttest_ind(a, b, equal_var=False).pvalue
        for a, b in (([0.5, 0.51], [0.6, 0.62]), ([0.6, 0.64], [0.5, 0.54]), ([0.4, 0.42], [0.7, 0.72]))
    ]
    assert list(difference.cells) == [ALL, *CLASSES]
    assert [cell.p for cell in difference.cells.values()] == pytest.approx(list(holm(np.array(raw))))


def write_predictions(folder: Path, targets: np.ndarray, guesses: np.ndarray, step: int = 20) -> None:
    folder.mkdir()
    arrays = {"targets": targets, "logits": np.eye(2, dtype=np.float32)[guesses]}
    samples = {"sample_places": np.arange(0), "sample_pixels": np.zeros((0, 32, 32, 3), np.uint8)}
    RunFolder(folder).write_predictions("test", step, **arrays, **samples)


@pytest.mark.parametrize("step", [20, 10])
def test_single_runs_are_paired_by_image_where_their_predictions_are_of_the_tested_weights(tmp_path, step):
    targets = np.repeat([0, 1], 25)
    good, bad = targets.copy(), targets.copy()
    good[:2], bad[:12], bad[25] = 1, 1, 0  # of the cats 10 more are wrong, of the dogs 1
    write_predictions(tmp_path / "good", targets, good)
    write_predictions(tmp_path / "bad", targets, bad, step)
    runs = [
        make_run("good", 48 / 50, classes=(23 / 25, 1.0), path=tmp_path, lr=0.1),
        make_run("bad", 37 / 50, classes=(13 / 25, 24 / 25), path=tmp_path, lr=0.2),
    ]
    _, difference = differences(compare(runs))
    assert [cell.delta for cell in difference.cells.values()] == pytest.approx([-11 / 50, -10 / 25, -1 / 25])
    if step == 20:
        assert difference.test == MCNEMAR
        expected = holm(np.array([2 * 0.5**11, 2 * 0.5**10, 1.0]))
    else:
        assert difference.test == PROPORTIONS
        assert difference.cells["cat"].p is not None
        tables = ([[48, 2], [37, 13]], [[23, 2], [13, 12]], [[25, 0], [24, 1]])
        expected = holm(np.array([stats.chi2_contingency(table, correction=False).pvalue for table in tables]))
    assert [cell.p for cell in difference.cells.values()] == pytest.approx(list(expected))


def test_other_test_images_are_not_paired(tmp_path):
    targets = np.repeat([0, 1], 25)
    write_predictions(tmp_path / "a", targets, targets)
    write_predictions(tmp_path / "b", targets[::-1], targets)
    runs = [make_run("a", 0.9, path=tmp_path), make_run("b", 0.5, path=tmp_path, lr=0.2)]
    assert differences(compare(runs))[1].test == PROPORTIONS


def test_one_run_is_compared_with_several():
    runs = [make_run("a", 0.9, lr=0.2), *(make_run(f"b{seed}", 0.5 + seed / 100, seed=seed) for seed in range(3))]
    assert differences(compare(runs))[1].test == ONE_AGAINST_SEVERAL


def test_mean_curves_go_as_far_as_all_runs_that_count():
    runs = [
        make_run("a", val=(0.4, 0.6, 0.8)),
        make_run("b", val=(0.2, 0.4), seed=1),
        make_run("c", status="running", seed=2),
    ]
    (group,) = compare(runs).groups
    curve = mean_curve(group)
    assert [(point.epoch, point.val_accuracy) for point in curve] == [
        (1.0, pytest.approx(0.3)),
        (2.0, pytest.approx(0.5)),
    ]
    assert [(point.seconds, point.samples, point.train_loss) for point in curve] == [
        (2.0, 100.0, 1.0),
        (4.0, 200.0, 0.5),
    ]


def test_a_mean_of_which_one_run_says_nothing_is_none():
    runs = [make_run("a", val=(0.4, 0.6)), make_run("b", val=(0.2, 0.4), seed=1)]
    runs[1] = replace(runs[1], curve=[runs[1].curve[0]._replace(val_accuracy=None), runs[1].curve[1]])
    (group,) = compare(runs).groups
    assert [(point.train_loss, point.val_accuracy) for point in mean_curve(group)] == [(1.0, None), (0.5, 0.5)]


def test_long_curves_keep_their_ends():
    (group,) = compare([make_run("a", val=tuple(i / 1000 for i in range(999)))]).groups
    short = thinned(group.runs[0].curve, 25)
    assert (len(short), short[0].epoch, short[-1].epoch) == (25, 1.0, 999.0)


def test_a_run_without_validation_has_a_curve_of_its_epochs():
    lines = [line for line in curve_lines(0.1, 0.2) if line["kind"] == "train"]
    run = ComparedRun.of(RunRecord(Path("a"), "running", lines=lines))
    assert [(point.epoch, point.train_loss, point.val_loss) for point in run.curve] == [
        (1.0, 1.0, None),
        (2.0, 0.5, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "val"},
        "text",
        {"kind": "train", "step": "x", "epoch": 1, "samples": 1, "loss": 1, "accuracy": 1, "seconds": 1},
    ],
)
def test_lines_that_a_run_never_writes_make_it_broken(line):
    run = ComparedRun.of(RunRecord(Path("a"), "finished", config={"model": "lenet"}, lines=[*curve_lines(0.5), line]))
    assert run.record.status == "broken"
    assert "metrics.jsonl or summary.json" in run.record.problem
    assert compare([run]).ungrouped == (run,)


@pytest.mark.parametrize("model", MODELS)
def test_multiply_accumulates_are_those_of_the_summary(model):
    with torch.device("meta"):
        expected = sum(layer.macs for layer in summarize(build_model(model), 1))
    assert forward_macs(model, (), 10) == expected > 0


def test_compute_is_that_of_all_images_and_unknown_where_a_run_does_not_say():
    assert make_run("a").macs == 1000 * 200
    assert (
        ComparedRun.of(RunRecord(Path("old"), "finished", config={"model": "lenet"}, lines=curve_lines(0.5))).macs
        is None
    )


def test_folds_processes_and_devices_are_pointed_out():
    runs = [
        make_run("a", folds=5, fold=0, start={"world_size": 1, "device": "cpu"}),
        make_run("b", folds=5, fold=1, start={"world_size": 4, "device": "H100"}),
    ]
    text = json.dumps(notes(compare(runs)))
    for part in ("Folds share training images", "number of processes differs", "devices differ"):
        assert part in text


def test_values_that_happen_to_be_equal_have_an_interval_without_width():
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, "t")


@pytest.mark.parametrize(("exact_shards", "said"), [(None, True), (8, False)])
def test_another_number_of_processes_is_noted_where_it_changes_bits(exact_shards, said):
    starts = ({"git_commit": "a" * 40, "world_size": size} for size in (1, 4))
    runs = [make_run(f"r{i}", start=start, lr=0.1 + i, exact_shards=exact_shards) for i, start in enumerate(starts)]
    noted = " ".join(notes(compare(runs)))
    assert ("number of processes differs, without --exact-shards" in noted) == said
