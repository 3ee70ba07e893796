"""The map's training step against Kohonen's rule, written out image by image and unit by unit."""

import numpy as np
import pytest
import torch
from helpers.runs import ROOT, torchrun
from safetensors.torch import load

from cifar_dist.data import load_dataset
from cifar_dist.inputs.plan import epoch_order
from cifar_dist.models import build_model

ROWS, COLUMNS, START, END, LR, BATCH, STEPS = 3, 4, 2.0, 0.5, 0.7, 26, 3
OPTIONS = [
    *f"--model som --model-options rows={ROWS} columns={COLUMNS} sigma_start={START} sigma_end={END}".split(),
    *f"--steps {STEPS} --batch-size {BATCH} --lr {LR} --schedule constant --seed 5 --val-fraction 0 --threads 1".split(),
]


def kohonen(folders, data_dir):
    """Return the weights (U, 3072) after STEPS steps, and how many training images of each class each unit wins."""
    dataset = load_dataset(str(folders), data_dir)
    mean, std = (np.array(s).reshape(1, 3, 1, 1) for s in (dataset.mean, dataset.std))
    images = ((dataset.train.images.numpy() / 255 - mean) / std).reshape(240, -1)
    torch.manual_seed(5)
    weights = build_model("som", 4, OPTIONS[3:7]).weight.detach().numpy().astype(np.float64)
    order = epoch_order(5, 0, 240).numpy()
    for step in range(STEPS):
        sigma = START * (END / START) ** (step / STEPS)
        change = np.zeros_like(weights)
        for x in images[order[step * BATCH : (step + 1) * BATCH]]:
            b = min(range(len(weights)), key=lambda j: np.linalg.norm(x - weights[j]))  # competition
            for j in range(len(weights)):
                d2 = (b // COLUMNS - j // COLUMNS) ** 2 + (b % COLUMNS - j % COLUMNS) ** 2
                h = np.exp(-d2 / (2 * sigma**2))  # cooperation
                change[j] += LR * h * (x - weights[j])  # adaptation
        weights += change / BATCH  # the batch rule: the mean of the images' updates
    wins = np.zeros((len(weights), 4), dtype=np.int64)
    for x, target in zip(images, dataset.train.targets.tolist(), strict=True):
        wins[min(range(len(weights)), key=lambda j: np.linalg.norm(x - weights[j])), target] += 1
    return weights, wins


def check(folder, folders, data_dir):
    weights, wins = kohonen(folders, data_dir)
    trained = load((folder / "model.safetensors").read_bytes())
    np.testing.assert_allclose(trained["weight"].numpy(), weights, atol=2e-6, rtol=0)
    assert trained["wins"].tolist() == wins.tolist()
    assert wins.sum() == 240
    assert (wins > 0).sum() > ROWS  # units differ, so that the test could fail


def test_engine_steps_equal_kohonens_update_by_hand(train, folders, data_dir):
    result = train(*OPTIONS)
    check(result.folder, folders, data_dir)
    assert [line["accuracy"] for line in result.metrics("train")] == [None]
    summary = result.json("summary.json")["test"]
    trained = load(result.weights())
    model = build_model("som", 4, OPTIONS[3:7]).eval()
    model.load_state_dict(trained)
    dataset = load_dataset(str(folders), data_dir)
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in (dataset.mean, dataset.std))
    images = ((dataset.test.images / 255 - mean) / std).float().flatten(1)
    labels = trained["wins"].argmax(dim=1)  # the majority of the training images a unit wins
    nearest = torch.cdist(images, trained["weight"][trained["wins"].sum(1) > 0]).argmin(dim=1)
    predicted = labels[trained["wins"].sum(1) > 0][nearest]
    assert summary["accuracy"] == (predicted == dataset.test.targets).double().mean().item()


@pytest.mark.slow
def test_engine_steps_equal_kohonens_update_by_hand_on_two_processes(folders, data_dir, tmp_path):
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    torchrun(2, [str(ROOT / "train.py"), *OPTIONS, *where])
    check(tmp_path / "run", folders, data_dir)


def test_every_checkpoint_of_a_map_has_its_labels(train, monkeypatch):
    from helpers.runs import stop_after

    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = train(*OPTIONS[:7], "--epochs", "3", "--batch-size", "30")
    saved = load((stopped.folder / "checkpoints/step_00000002/model.safetensors").read_bytes())
    assert saved["wins"].sum() == 216


def test_a_map_is_stopped_and_goes_on_bit_for_bit(train, monkeypatch):
    from helpers.runs import stop_after

    options = [*OPTIONS[:7], "--epochs", "3", "--batch-size", "30"]
    whole = train(*options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert train(*options, name="stopped").status == 75
    assert train(*options, name="stopped").weights() == whole.weights()
