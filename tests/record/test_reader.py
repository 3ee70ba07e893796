import json

import numpy as np
import pytest
import torch
from helpers.runs import stop_after

from cifar_dist.config import TrainConfig
from cifar_dist.data import load_dataset, make_splits
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.predictions import read_predictions
from cifar_dist.record.reader import is_run, read_run
from cifar_dist.report.images import load_pixels
from cifar_dist.training.resume import lock
from cifar_dist.training.weights import load_weights


@pytest.fixture
def finished(train):
    return train("--epochs", "1").folder


def test_a_finished_run_is_read_whole(finished):
    record = read_run(finished)
    assert is_run(finished) and record.status == "finished" and not record.problem
    assert record.config["model"] == "lenet" and record.dataset["classes"] == ["bird", "cat", "dog", "ship"]
    assert [line["kind"] for line in record.lines][-2:] == ["val", "test"]
    assert len(record.starts) == 1 and record.title == f"lenet, recipe default, {record.dataset['name']}"


def test_a_run_that_says_running_runs_only_while_its_folder_is_held(finished):
    (finished / "summary.json").write_text('{"status": "running"}')
    assert read_run(finished).status == "killed"
    held = lock(finished)
    assert read_run(finished).status == "running"
    held.release()


def test_a_broken_folder_is_named_and_the_rest_is_read(finished):
    (finished / "summary.json").write_text('{"half')
    record = read_run(finished)
    assert record.status == "broken" and "summary.json" in record.problem
    assert record.config and record.lines
    (finished / "config.json").unlink()
    assert "config.json: No such file" in read_run(finished).problem
    with (finished / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert "metrics.jsonl line" in read_run(finished).problem


def test_a_torn_last_line_is_not_an_error(finished):
    lines = len(read_run(finished).lines)
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    record = read_run(finished)
    assert (len(record.lines), record.status) == (lines, "finished")


def test_an_interrupted_run_has_predictions_of_validation_only(train, monkeypatch):
    stop_after(monkeypatch, 9)
    folder = train().folder
    predictions = read_predictions(folder)
    assert read_run(folder).status == "interrupted" and predictions and predictions.split == "val"


def test_predictions_are_the_logits_of_the_kept_weights_and_show_the_images(finished, data_dir):
    predictions, summary = read_predictions(finished), json.loads((finished / "summary.json").read_text())
    assert predictions and predictions.split == "test" and predictions.step == summary["best_step"]
    config = TrainConfig.from_dict(read_run(finished).config)
    dataset = load_dataset(config.data, data_dir)
    test = make_splits(dataset, config, torch.device("cpu")).test
    model, about = load_weights(finished / "model.safetensors")
    pixels, targets = test.gather(torch.arange(len(test)))
    mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        logits = model((pixels / 255 - mean) / std)
    np.testing.assert_allclose(predictions.logits, logits, atol=1e-4)
    assert predictions.targets.tolist() == targets.tolist()
    images = pixels.permute(0, 2, 3, 1).numpy()
    assert (predictions.sample_pixels == images[predictions.sample_places]).all()
    assert len(set(predictions.sample_places.tolist())) == 50
    assert (load_pixels(read_run(finished), "test") == images).all()


def test_counts_made_from_predictions_are_those_of_the_summary(finished):
    predictions, test = read_predictions(finished), json.loads((finished / "summary.json").read_text())["test"]
    confusion = np.zeros((4, 4), int)
    for target, first in zip(predictions.targets, predictions.first, strict=True):
        confusion[target, first] += 1
    assert confusion.tolist() == test["confusion_matrix"]
    right_second = [int(((predictions.second == c) & (predictions.targets == c)).sum()) for c in range(4)]
    assert right_second == test["second_guess_correct"]
    assert np.allclose(predictions.probabilities, torch.tensor(predictions.logits).double().softmax(1))


def test_predictions_that_cannot_be_read_are_none(finished):
    (finished / "predictions-test.npz").write_bytes(b"torn")
    assert read_predictions(finished).split == "val"
    (finished / "predictions-val.npz").unlink()
    assert read_predictions(finished) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"config": null, "dataset": [], "starts": {}}'),
        ("summary.json", '{"status": "excellent"}'),
        ("metrics.jsonl", "5\n"),
        ("metrics.jsonl", "{}\n"),
    ],
)
def test_what_no_run_writes_is_named_not_fatal(finished, name, content):
    (finished / name).write_text(content)
    record = read_run(finished)
    assert record.status == "broken" and name in record.problem
    (finished / "predictions-test.npz").write_bytes(b"")
    assert read_predictions(finished).split == "val"


def test_a_run_that_goes_back_keeps_no_predictions_of_what_comes_after(train, monkeypatch):
    stop_after(monkeypatch, 9)
    folder = train().folder
    run = RunFolder(folder)
    (folder / "predictions-test.npz").write_bytes(b"another's")
    step = read_predictions(folder, ["val"]).step
    run.drop_predictions(step)
    assert read_predictions(folder).split == "val"
    run.drop_predictions(step - 1)
    assert read_predictions(folder) is None
    run.drop_predictions(step)
