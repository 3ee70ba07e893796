"""`python -m cifar_dist bisect`: two runs that differ in one thing, and what is said of them."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.runs import torchrun
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.replay.parting import first_difference


def bisect(a, b, tmp_path) -> tuple[int, dict]:
    output = tmp_path / "answer.json"
    status = main(["bisect", str(a.folder), str(b.folder), "--output", str(output)])
    return status, json.loads(output.read_text())


def test_the_first_difference_of_what_both_know():
    a, b, c = ({"weights_digest": name, "optimizer_digest": ""} for name in "abc")
    assert first_difference({10: a, 20: b, 30: c}, {10: a, 20: b, 40: c}) == (20, None)
    assert first_difference({10: a, 20: b, 30: c}, {10: a, 30: b}) == (10, 30)
    assert first_difference({10: a}, {10: b}) == (0, 10)


def test_runs_that_are_the_same_are_said_to_be(train, tmp_path, capsys):
    status, answer = bisect(train(name="a"), train(name="b"), tmp_path)
    assert (status, answer["same"], answer["up_to"]) == (0, True, 21)
    assert "the same at all 3 steps that both know, up to step 21" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "step", "kind", "said"),
    [
        ("", "--seed 1", 1, "weights", r"begin with other weights: "),
        ("--lr 0.1", "--lr 0.2", 1, "lr", r"another learning rate"),
        ("--warmup 0 --schedule step --step-epochs 2", "--warmup 0 --schedule constant", 15, "lr", "another learning rate"),
        ("--weight-decay 0", "--weight-decay 0.1", 1, "update", "the same gradient and another update"),
        ("--micro-batch-size 8", "", 1, "outputs|gradient", "computed together with 7 and 31|micro-batches of 8 and 32"),
        ("--augment crop", "--augment crop cutout", 1, "pixels", "other pixels: 32 images"),
        ("--label-smoothing 0", "--label-smoothing 0.1", 1, "gradient", "the same outputs and another gradient"),
    ],
)  # fmt: skip
def test_what_differs_is_named(train, tmp_path, capsys, ours, theirs, step, kind, said):
    keep = ["--keep-every", "1"]
    status, answer = bisect(train(*ours.split(), *keep, name="a"), train(*theirs.split(), *keep, name="b"), tmp_path)
    assert (status, answer["same"]) == (1, False)
    assert answer["step"] == step
    assert re.fullmatch(kind, answer["reason"]["kind"])
    out = capsys.readouterr().out
    assert re.search(rf"they part at step {step}: .*({said})", out)
    changed = (theirs or ours).split()[-2 if "--augment" not in theirs else 0]
    assert any(cause.startswith(changed) for cause in answer["circumstances"]) or changed == "--micro-batch-size"


@pytest.mark.slow
def test_one_changed_image_is_found(folders, train, tmp_path):
    """In the second epoch, too, that it is in: the first step it is part of."""
    other = tmp_path / "other"
    shutil.copytree(folders, other)
    path = other / "train/dog/0007.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4] ^= 128
    Image.fromarray(pixels).save(path)
    plain = ["--normalize", "half", "--augment", "flip"]
    ours = train(*plain, name="a")
    theirs = train(*plain, "--data", str(other), name="b")
    status, answer = bisect(ours, theirs, tmp_path)
    assert status == 1
    assert answer["reason"]["kind"] == "pixels"
    assert answer["reason"]["text"].startswith("other pixels: 1 image, the first at position ")
    assert 1 <= answer["step"] <= 7
    assert "data with other fingerprints" in answer["circumstances"]


@pytest.mark.parametrize(("runs", "said"), [([], "Got 0"), (["a"], "Got 1"), (["a", "b"], "a is not a run folder")])
def test_what_cannot_be_compared_is_refused_in_a_line(capsys, runs, said):
    assert main(["bisect", *runs]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_another_number_of_processes_is_another_gradient_unless_shards_are_exact(folders, data_dir, tmp_path):
    small = [
        "--model",
        "lenet",
        "--epochs",
        "2",
        "--batch-size",
        "48",
        "--limit-train",
        "96",
        "--lr",
        "0.1",
        "--threads",
        "1",
    ]
    where = ["--data", str(folders), "--data-dir", str(data_dir)]
    for size in (1, 3):
        for name, exact in (("plain", []), ("exact", ["--exact-shards", "4"])):
            torchrun(size, ["train.py", *where, *small, *exact, "--output-dir", str(tmp_path / f"{name}{size}")])
    assert main(["bisect", str(tmp_path / "exact1"), str(tmp_path / "exact3")]) == 0
    output = tmp_path / "answer.json"
    assert main(["bisect", str(tmp_path / "plain1"), str(tmp_path / "plain3"), "--output", str(output)]) == 1
    answer = json.loads(output.read_text())
    assert answer["step"] == 1
    assert answer["reason"]["kind"] in ("outputs", "gradient")
    assert "world_size 1, 3" in answer["circumstances"]
