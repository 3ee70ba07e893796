"""eval.py as a user runs it: what it writes against the logits that the run itself kept, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.runs import copy_tree
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from cifar_dist.cli import evaluate
from cifar_dist.corruptions import corrupt
from cifar_dist.corruptions.sets import CLASSES
from cifar_dist.data import load_dataset
from cifar_dist.errors import UserError
from cifar_dist.models import build_model
from cifar_dist.training.weights import ONE_AND_ALL, average_weights, load_weights, pack_weights


@pytest.fixture
def run_eval(data_dir):
    def run(*options: object) -> int:
        AcceleratorState._reset_state(True)
        return evaluate.main([*map(str, options), "--data-dir", str(data_dir), "--threads", "1"])

    return run


def kept(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"predictions-{split}.npz") as file:
        return file["logits"], file["targets"]


def test_what_is_written_is_what_other_libraries_make_of_the_logits_the_run_kept(train, run_eval, capsys):
    run = train("--epochs", "1", "--lr", "0.005")  # one validation, so that its logits are those of the weights kept
    assert run_eval("--checkpoint", run.folder) == 0
    record, said = run.json("eval-test.json"), capsys.readouterr().out
    logits, targets = kept(run.folder, "test")
    both = torch.tensor(logits), torch.tensor(targets)
    ece = multiclass_calibration_error(both[0].double().softmax(1), both[1], 4, n_bins=15)
    assert record["calibration"]["ece"] == pytest.approx(ece.item(), abs=1e-6)
    assert record["calibration"]["nll"] == pytest.approx(record["loss"], rel=1e-9)
    f1 = multiclass_f1_score(*both, num_classes=4, average=None)
    assert [row["f1"] or 0.0 for row in record["per_class"].values()] == pytest.approx(f1.tolist(), abs=1e-6)
    assert list(record["top"]) == ["1", "2"]  # of four classes
    assert record["top"]["2"]["accuracy"] == record["top2_accuracy"]

    val_logits, val_targets = kept(run.folder, "val")
    scores = val_logits.astype(float)
    places = np.arange(len(scores)), val_targets
    best = minimize_scalar(
        lambda log_t: -log_softmax(scores / np.exp(log_t), axis=1)[places].mean(), bounds=(-4, 4), method="bounded"
    )
    fitted = record["temperature"]
    assert fitted["fitted_on_images"] == len(scores)
    assert fitted["validation_nll_after"] == pytest.approx(best.fun, abs=1e-6)
    after = multiclass_calibration_error((both[0].double() / fitted["value"]).softmax(1), both[1], 4, n_bins=15)
    assert fitted["after"]["ece"] == pytest.approx(after.item(), abs=1e-6)
    for line in ("precision", "F1", "calibration error", "at temperature", "fitted on"):
        assert line in said
    assert sorted(path.name for path in (run.folder / "eval-test-plots").iterdir()) == [
        "classes.png",
        "confusion.png",
        "reliability.png",
    ]
    assert "Confusion matrix" in (run.folder / "eval-test.html").read_text()


def test_without_validation_images_there_is_no_temperature_and_one_line_says_why(train, run_eval, capsys):
    run = train("--val-fraction", "0", "--steps", "2")
    capsys.readouterr()
    assert run_eval("--checkpoint", run.folder) == 0
    said = capsys.readouterr().out
    assert said.count("no temperature: ") == 1 and "trained on all training images" in said
    assert run.json("eval-test.json")["temperature"] is None
    other = train("--steps", "2", name="other")
    assert run_eval("--checkpoint", other.folder, "--split", "val") == 0
    assert "can't judge it" in capsys.readouterr().out


def test_several_checkpoints_are_each_what_they_are_alone(train, run_eval, tmp_path, capsys):
    runs = [train("--steps", "2", "--seed", str(seed), name=f"run{seed}") for seed in (1, 2)]
    alone = []
    for run in runs:
        assert run_eval("--checkpoint", run.folder) == 0
        alone.append(run.json("eval-test.json"))
        (run.folder / "eval-test.json").unlink()
    folders = [run.folder for run in runs]
    assert run_eval("--checkpoint", *folders) == 0
    assert [run.json("eval-test.json") for run in runs] == alone
    capsys.readouterr()
    assert run_eval("--checkpoint", *folders, "--output", tmp_path / "both.json") == 0
    assert json.loads((tmp_path / "both.json").read_text()) == {"evaluations": alone}
    assert "2 sets of weights" in capsys.readouterr().out
    page = (tmp_path / "both.html").read_text()
    assert page.count('<section id="weights-') == 2 and "All together" in page


def test_an_average_is_what_a_file_of_mean_weights_gives(train, run_eval, tmp_path, capsys):
    options = ("--model", "zhang", "--model-options", "width=8", "--steps", "4")
    runs = [train(*options, "--seed", str(seed), name=f"run{seed}") for seed in (1, 2, 3)]
    loaded = [load_weights(run.folder / "model.safetensors") for run in runs]
    states = [model.state_dict() for model, _ in loaded]
    mean = {name: sum(s[name].double() for s in states) / 3 for name in states[0]}
    model, about = loaded[0]
    model.load_state_dict(mean)
    assert any("running_var" in name for name in mean)
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean/model.safetensors").write_bytes(
        pack_weights(model, {name: about[name] for name in about if name != "sha256"})
    )
    assert run_eval("--checkpoint", tmp_path / "mean") == 0
    capsys.readouterr()
    assert run_eval("--checkpoint", *(run.folder for run in runs), "--average") == 0
    assert "running statistics are averaged too" in capsys.readouterr().out
    ours, expected = runs[0].json("eval-test-average.json"), json.loads((tmp_path / "mean/eval-test.json").read_text())
    assert ours["confusion_matrix"] == expected["confusion_matrix"]
    assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert len(ours["averaged"]) == 3
    assert not (runs[0].folder / "eval-test.json").exists()


def test_weights_after_other_numbers_of_steps_have_a_mean():
    about = dict.fromkeys(ONE_AND_ALL, "the same")
    several = {str(steps): (build_model("zhang", 4, ["width=1"]), about) for steps in (3, 9)}
    for steps, (model, _) in several.items():
        torch.nn.init.constant_(model.bn_skip.running_mean, int(steps))
        model.bn_skip.num_batches_tracked.fill_(int(steps))
    mean, said = average_weights(several)
    assert said is about and mean.bn_skip.running_mean.tolist() == [6.0] * 4


@pytest.mark.parametrize("what", ["model", "classes", "mean", "std", "mixed_precision", "fingerprint", "split"])
def test_weights_that_mean_different_things_have_no_mean(what):
    about = dict.fromkeys((*ONE_AND_ALL, what), "the same")
    several = {"a": (build_model("mlp", 4), about), "b": (build_model("mlp", 4), {**about, what: "another"})}
    with pytest.raises(UserError, match=rf"a and b differ in their {what} \(the same and another\)"):
        average_weights(several)


def test_what_does_not_go_together_is_refused_in_one_line(train, run_eval, tmp_path, capsys):
    a = train("--steps", "2", name="a")
    other = train("--steps", "2", "--model", "mlp", name="other")
    som = [train("--steps", "2", "--model", "som", "--seed", seed, name=f"som{seed}").folder for seed in ("1", "2")]
    folds = train("--steps", "2", "--folds", "3", "--fold", "0", name="folds")
    bf16 = train("--steps", "2", "--mixed-precision", "bf16", name="bf16")
    (a.folder / "copy.safetensors").write_bytes(a.weights())
    capsys.readouterr()
    for options, message in [
        (["--checkpoint", a.folder, "--average"], "--average is of several weights"),
        (["--checkpoint", a.folder, a.folder], "names one of them twice"),
        (["--checkpoint", a.folder, a.folder / "copy.safetensors"], "lie in one folder"),
        (["--checkpoint", a.folder, other.folder, "--average"], "differ in their model (lenet and mlp)"),
        (["--checkpoint", a.folder, folds.folder, "--average"], "differ in their split"),
        (["--checkpoint", *som, "--average"], "som keeps counts (wins)"),
        (["--checkpoint", a.folder, bf16.folder], "choose one for all with --mixed-precision"),
        (["--checkpoint", a.folder, "nowhere"], "nowhere does not exist"),
        (["--checkpoint", a.folder, "--output", tmp_path / "x.html"], "use another name in .json"),
        (["--checkpoint", a.folder, "--output", a.folder / "report.json"], "would have a page replaced"),
    ]:
        assert run_eval(*options) == 2, options
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert run_eval("--checkpoint", a.folder, bf16.folder, "--mixed-precision", "no") == 0


def test_names_of_classes_stay_text_on_the_page(folders, train, run_eval, tmp_path):
    other = copy_tree(folders, tmp_path / "other")
    for part in ("train", "test"):
        (other / part / "cat").rename(other / part / "<script>alert(1)<")
    run = train("--steps", "2", "--data", str(other))
    assert run_eval("--checkpoint", run.folder) == 0
    page = (run.folder / "eval-test.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;" in page


def test_corrupted_images_are_evaluated_as_the_same_images_in_a_split_would_be(train, run_eval, data_dir, capsys):
    run = train("--lr", "0.005")
    capsys.readouterr()
    assert run_eval("--checkpoint", run.folder, "--corruptions", "contrast", "impulse_noise") == 0
    record, said = run.json("eval-test.json"), capsys.readouterr().out
    found = record["corruptions"]
    names = [(row["name"], row["severity"]) for row in found["sets"]]
    assert names == [(name, severity) for name in ("contrast", "impulse_noise") for severity in range(1, 6)]

    model, about = load_weights(run.folder / "model.safetensors")
    dataset = load_dataset(about["data"], data_dir)
    images, targets = dataset.test.gather(torch.arange(100))
    for row in found["sets"]:
        pixels = corrupt(row["name"], row["severity"], images, torch.arange(100))
        shift, scale = (torch.tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            right = model((pixels / 255 - shift) / scale).argmax(dim=1) == targets
        assert (row["num_correct"], row["num_images"]) == (right.sum(), 100)
        by_class = [right[targets == c].double().mean().item() for c in range(4)]
        assert list(row["per_class_accuracy"].values()) == pytest.approx(by_class)
    mean = np.mean([row["accuracy"] for row in found["sets"]])
    assert found["mean_accuracy"] == pytest.approx(mean)
    assert f"mean corruption accuracy {100 * mean:.2f} %" in said
    page = (run.folder / "eval-test.html").read_text()
    (chart,) = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    assert [one["name"] for one in chart["series"]] == ["contrast", "impulse_noise"]
    assert chart["series"][0]["points"] == [[row["severity"], row["accuracy"]] for row in found["sets"][:5]]


def test_published_files_are_evaluated_in_their_own_format(train, run_eval, tmp_path, capsys):
    data = tmp_path / "ten"
    for part, number in (("train", 12), ("test", 4)):
        for c, name in enumerate(CLASSES):
            (data / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = np.full((32, 32, 3), 20 * c + 5 * i, np.uint8)
                Image.fromarray(pixels).save(data / part / name / f"{i}.png")
    run = train("--data", str(data), "--lr", "0.005")
    files = tmp_path / "CIFAR-10-C"
    files.mkdir()
    images = np.stack([np.full((32, 32, 3), 20 * c + 1, np.uint8) for c in range(10)])
    np.save(files / "fog.npy", np.concatenate([images] * 4 + [images[::-1]]))
    np.save(files / "labels.npy", np.tile(np.arange(10), 5).astype(np.uint8))
    assert run_eval("--checkpoint", run.folder, "--corruptions", files) == 0
    sets = run.json("eval-test.json")["corruptions"]["sets"]
    assert [row["severity"] for row in sets] == [1, 2, 3, 4, 5]
    assert len({row["num_correct"] for row in sets[:4]}) == 1  # the same images
    model, about = load_weights(run.folder / "model.safetensors")
    values = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(about["mean"]).view(1, 3, 1, 1)) / (
        torch.tensor(about["std"]).view(1, 3, 1, 1)
    )
    with torch.no_grad():
        guesses = model(values).argmax(dim=1)
    assert sets[0]["num_correct"] == (guesses == torch.arange(10)).sum()
    assert sets[4]["num_correct"] == (guesses.flip(0) == torch.arange(10)).sum()
    for name in ("labels", "data"):
        (files / "labels.npy").unlink(missing_ok=True)
        np.save(files / f"cifar10.1_v6_{name}.npy", images if name == "data" else np.arange(10, dtype=np.int32))
    assert run_eval("--checkpoint", run.folder, "--corruptions", files) == 0
    (only,) = run.json("eval-test.json")["corruptions"]["sets"]
    assert (only["name"], only["severity"], only["num_correct"]) == ("cifar10.1_v6", None, sets[0]["num_correct"])
    other = train("--steps", "1", name="other")  # of four classes
    capsys.readouterr()
    assert run_eval("--checkpoint", other.folder, "--corruptions", files) == 2
    assert "are those of CIFAR-10, and these weights know bird cat dog ship" in capsys.readouterr().err


def test_what_is_measured_on_a_part_of_the_images_takes_no_whole_results_place(train, run_eval, capsys):
    run = train("--steps", "1")
    assert run_eval("--checkpoint", run.folder) == 0
    names = ("eval-test.json", "eval-test.html", "summary.json")
    whole = [(run.folder / name).read_bytes() for name in names]
    capsys.readouterr()
    assert run_eval("--checkpoint", run.folder, "--limit-eval", 8) == 0
    assert f"written to {run.folder}/eval-test-8-images.json" in capsys.readouterr().out.replace("\n", "")
    assert [(run.folder / name).read_bytes() for name in names] == whole
    assert run.json("eval-test-8-images.json")["num_images"] == 8
    said = "Limited by --limit-eval 8"
    assert [said in (run.folder / f"eval-test{part}.html").read_text() for part in ("", "-8-images")] == [False, True]
