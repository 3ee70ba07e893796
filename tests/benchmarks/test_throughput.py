"""The benchmark of throughput: its arithmetic by hand, its loops, and the whole command on a few images."""

import argparse
import json
import os
import subprocess
import sys
from itertools import count, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import ROOT
from torch import nn
from torchvision import transforms
from torchvision.datasets import CIFAR10

from benchmarks import loops, throughput
from benchmarks.throughput import Case
from cifar_dist.config import TrainConfig
from cifar_dist.data import load_dataset
from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import build_model
from cifar_dist.training import state


def train_line(step: int, seconds: float, images_per_second: float) -> dict:
    return {
        "kind": "train",
        "step": step,
        "samples": 10 * step,
        "seconds": seconds,
        "images_per_second": images_per_second,
    }


LINES = [  # batches of 10: 100 images/s at first, then 200, and a checkpoint of 0.5 s after step 40
    train_line(10, 1.0, 100.0),
    train_line(20, 1.5, 200.0),
    train_line(40, 2.5, 200.0),
    train_line(60, 4.0, 200.0),
]


def test_a_runs_speed_without_pauses_begins_with_the_last_line_of_the_warm_up():
    speeds = throughput.speeds_of_run(LINES, 20, [40], 200)
    assert speeds["images"] == 400 and speeds["seconds"] == 2.5
    assert speeds["without_pauses"] == pytest.approx(200)
    assert throughput.speeds_of_run(LINES, 39, [40], 200) == speeds
    assert throughput.speeds_of_run(LINES, 19, [40], 200)["images"] == 500
    assert throughput.speeds_of_run(LINES, 40, [40], 200)["images"] == 200
    mixed = [*LINES[:-1], train_line(60, 5.0, 100.0)]  # 200 images in 1 s, then 200 in 2 s
    assert throughput.speeds_of_run(mixed, 20, [40], 200)["without_pauses"] == pytest.approx(400 / 3)


def test_the_speed_all_in_adds_a_checkpoint_to_each_epoch_and_to_each_five_minutes_of_it():
    short = throughput.speeds_of_run(LINES, 20, [40], 200)  # an epoch of 1 s
    assert short["checkpoint_s"] == pytest.approx(0.5)
    assert short["images_per_s"] == pytest.approx(200 / 1.5)
    long = throughput.speeds_of_run(LINES, 20, [40], 200 * 700)  # of 700 s: after 300, 600 and 700
    assert long["images_per_s"] == pytest.approx(200 * 700 / 701.5)


def test_checkpoints_count_between_the_two_lines():
    saved = throughput.speeds_of_run(LINES, 20, [10, 20, 40, 60], 200)  # each after its step's line
    assert saved["checkpoints"] == 2 and saved["checkpoint_s"] == pytest.approx(0.25)


def test_an_epoch_without_validation_has_checkpoints_as_often_as_the_defaults_say():
    assert TrainConfig(epochs=1).checkpoint_minutes * 60 == throughput.CHECKPOINT_EVERY_S
    assert TrainConfig(epochs=1).eval_every is None  # after every epoch of a short run


def test_ratios_are_between_speeds_of_the_same_round():
    rounds = [{"ours": 90.0, "bare": 100.0}, {"ours": 60.0, "bare": 50.0}, {"ours": 10.0, "bare": 40.0}]
    assert throughput.spread(rounds, "bare") == pytest.approx((0.25, 0.9, 1.2))


def test_every_row_of_the_table_has_its_speed():
    measured = {name: {"images_per_s": float(i), "without_pauses": 9.0} for i, name in enumerate(throughput.LOOPS, 1)}
    speeds = throughput.speeds(measured)
    assert speeds == {"bare": 1, "best": 2, "ours": 3, "tutorial": 4, "accelerate": 5, "without_pauses": 9}
    assert speeds.keys() == throughput.ROWS.keys()
    assert throughput.table(Case("lenet", 4), [speeds, speeds]).row_count == len(speeds)


def test_over_five_rounds_each_loop_is_once_in_each_place():
    rounds = [throughput.order(number) for number in range(5)]
    assert all(sorted(places) == sorted(throughput.LOOPS) for places in zip(*rounds, strict=True))
    assert throughput.order(5) == throughput.order(0) == throughput.LOOPS


@pytest.mark.parametrize("word", ["lenet", "lenet@", "@4", "lenet@0", "lenet@-4", "lenet@4@4", "lenet@four"])
def test_a_case_is_a_model_and_a_batch_size(word):
    assert Case.parse("lenet@4") == ("lenet", 4)
    with pytest.raises(argparse.ArgumentTypeError, match="MODEL@BATCH_SIZE"):
        Case.parse(word)


@pytest.mark.parametrize(("kind", "word"), [(int, "0"), (int, "1.5"), (float, "-1"), (float, "nan"), (int, "many")])
def test_counts_and_times_are_greater_than_0(kind, word):
    assert throughput.positive(kind)("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="> 0"):
        throughput.positive(kind)(word)


def test_a_measurement_counts_the_steps_after_the_warm_up_alone(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(loops.time, "perf_counter", lambda: clock[0])

    def steps():
        for number in count():
            clock[0] += 50.0 if number == 0 else 1.0  # the first builds everything
            yield 7

    result = loops.measure(steps(), 10.0)
    assert result == {"images_per_s": 7, "warm_up_steps": 3, "steps": 10, "images": 70, "seconds": 10}
    assert loops.measure(steps(), 40.0)["warm_up_steps"] == 9  # 8 s after the first
    short = loops.measure(steps(), 0.1)
    assert (short["warm_up_steps"], short["steps"], short["seconds"]) == (2, 1, 1)


@pytest.fixture
def config(folders, data_dir):
    where = {"data": str(folders), "data_dir": str(data_dir), "threads": 1, "device": "cpu"}
    return lambda model, batch_size: loops.configure(model, batch_size=batch_size, **where)


@pytest.mark.parametrize("loop", loops.LOOPS)
def test_each_loop_trains_its_model_batch_by_batch(loop, config, monkeypatch):
    built, build_model = [], loops.build_model

    def build(*given):
        built.append(build_model(*given))
        return built[-1]

    monkeypatch.setattr(loops, "build_model", build)
    monkeypatch.setattr(state, "build_model", build)
    torch.set_num_threads(1)
    steps = loops.LOOPS[loop](config("lenet", 100))
    sizes, weights = [], []
    for _ in range(4):
        sizes.append(next(steps))
        weights.append(torch.cat([p.detach().flatten() for p in built[0].parameters()]))
    steps.close()
    assert sizes == ([100] * 4 if loop in ("bare", "best") else [100, 100, 40, 100])  # 240 images, then another epoch
    assert len(built) == 1 and all(not a.equal(b) for a, b in pairwise(weights))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_only_best_lays_memory_out_as_our_runs_do(layout, config, monkeypatch):
    def build(*given):
        return build_model(*given).to(memory_format=layout)

    seen = []
    monkeypatch.setattr(loops, "build_model", build)
    monkeypatch.setattr(state, "build_model", build)
    monkeypatch.setattr(loops, "on_one_batch", lambda model, _, images: seen.append((next(model.parameters()), images)))
    loops.bare(config("resnet20", 8))
    assert all(tensor.is_contiguous() for tensor in seen.pop())
    loops.best(config("resnet20", 8))
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in seen.pop())


def test_best_knows_which_samples_its_dropout_sees(config):
    assert next(loops.best(config("ghasemi", 4))) == 4


def test_lenet_has_its_paper_s_recipe_and_others_the_default():
    lenet, resnet = loops.configure("lenet", batch_size=128), loops.configure("resnet", batch_size=512)
    assert (lenet.recipe, lenet.augment, lenet.batch_size) == ("li2024", (), 128)
    assert (resnet.recipe, resnet.model, resnet.augment, resnet.batch_size) == (
        "default",
        "resnet20",
        ("crop", "flip"),
        512,
    )
    with pytest.raises(UserError, match="som does not learn by cross-entropy"):
        loops.configure("som", batch_size=16)


def test_a_plain_model_has_torchs_dropout_and_a_plain_optimizer_the_recipes_numbers(config):
    model = loops.plain_model(config("ghasemi", 60), 4)
    assert [type(layer) for layer in model.modules() if "Dropout" in type(layer).__name__] == [nn.Dropout]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)  # without being told which samples these are
    optimizer = loops.plain_optimizer(model, config("ghasemi", 60))
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD) and len(group["params"]) == len(list(model.parameters()))
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.9, True, 5e-4)
    assert isinstance(loops.plain_optimizer(model, config("sengar", 60)), torch.optim.AdamW)


def test_decoded_images_are_what_torchvisions_cifar10_would_give():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    transform = transforms.ToTensor()
    cifar = CIFAR10.__new__(CIFAR10)  # without its archive
    cifar.data, cifar.targets, cifar.transform, cifar.target_transform = pixels, [3, 1, 4, 1, 5], transform, None
    decoded = loops.DecodedImages(pixels, [3, 1, 4, 1, 5], transform)
    assert len(decoded) == len(cifar) == 5
    for (image, target), (expected, expected_target) in zip(
        (decoded[i] for i in range(5)), (cifar[i] for i in range(5)), strict=True
    ):
        assert image.equal(expected) and target == expected_target


@pytest.mark.parametrize("normalize", ["half", "mean_std"])
def test_users_images_are_normalised_as_ours(normalize, folders, data_dir):
    where = {"data": str(folders), "data_dir": str(data_dir)}
    config = loops.configure("resnet20", batch_size=8, augment=(), normalize=normalize, **where)
    loader, num_classes = loops.users_loader(config)
    dataset = load_dataset(str(folders), data_dir)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if normalize == "half" else (dataset.mean, dataset.std)
    pixels, targets = dataset.train.gather(torch.arange(8))
    images = torch.stack([loader.dataset[i][0] for i in range(8)])
    torch.testing.assert_close(images, Normalize(mean, std, torch.device("cpu"))(pixels))
    assert [loader.dataset[i][1] for i in range(8)] == targets.tolist() and num_classes == 4
    assert len(loader) == 30 and loader.num_workers == 2


def test_users_images_move_where_the_recipe_moves_them(config):
    names = [type(step).__name__ for step in loops.users_loader(config("resnet20", 8))[0].dataset.transform.transforms]
    assert names == ["RandomCrop", "RandomHorizontalFlip", "ToTensor", "Normalize"]


def test_without_cifar10s_archive_users_get_its_decoded_images(folders, data_dir, tmp_path):
    train = load_dataset(str(folders), data_dir).train
    config = loops.configure("lenet", batch_size=4, data="cifar10", data_dir=str(tmp_path))
    images = loops.users_images(config, SimpleNamespace(name="CIFAR-10", train=train), transforms.ToTensor())
    assert isinstance(images, loops.DecodedImages) and len(images) == 240


def benchmark(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks/throughput.py"), "--threads", "1", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_the_command_measures_all_loops_and_writes_every_number(folders, data_dir, tmp_path):
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--json", str(tmp_path / "numbers.json")]
    done = benchmark("--cases", "mlp@60", "--rounds", "2", "--seconds", "0.5", *where)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert record["torch"] == torch.__version__.partition("+")[0] and record["threads"] == 1 and record["cpu"]
    (case,) = record["cases"]
    assert (case["model"], case["batch_size"], case["recipe"]) == ("mlp", 60, "default")
    assert [list(measured) for measured in case["rounds"]] == [list(throughput.order(i)) for i in range(2)]
    for measured in case["rounds"]:
        assert all(result["images_per_s"] > 0 for result in measured.values())
        assert measured["ours"]["images_per_s"] < measured["ours"]["without_pauses"]
        assert measured["ours"]["checkpoints"] > 0
    assert "mlp@60, 2 rounds" in done.stdout and all(label in done.stdout for label in throughput.ROWS.values())


@pytest.mark.slow
def test_a_loop_that_fails_ends_the_benchmark_with_its_error(folders, data_dir):
    where = ["--data", str(folders), "--data-dir", str(data_dir)]
    unknown = benchmark("--cases", "lenett@8", *where)
    assert unknown.returncode == 2 and "Did you mean 'lenet'?" in unknown.stderr
    assert unknown.stderr.endswith("lenett@8: bare ended with status 2\n") and unknown.stdout == ""
    # A batch of more images than there are is an error of train.py alone.
    large = benchmark("--cases", "lenet@300", "--seconds", "0.1", *where)
    assert large.returncode == 2 and "--batch-size 300 is larger than the 240 training images" in large.stderr
    assert large.stderr.endswith("lenet@300: train.py ended with status 2\n")


@pytest.mark.slow
def test_our_package_leaves_openmp_as_it_comes_in_all_loops_but_best():
    def settings(modules: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", f"import {modules}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr

    assert settings("benchmarks.loops") == settings("torch")
    assert settings("cifar_dist, benchmarks.loops") == settings("cifar_dist, torch")
