import math

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_dist import plots
from cifar_dist.curves import Point
from cifar_dist.models.som import Som

CURVE = [Point(i + 1.0, i, 2 / (i + 1), 1 - 0.5 / (i + 1), 1 + abs(i - 4) / 4, 0.7) for i in range(12)]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def has(image: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image.astype(int) - rgb).sum(axis=2) < 6).any())


@pytest.mark.parametrize("published", [None, 0.7])
def test_curves_show_training_and_validation(tmp_path, published):
    plots.draw_curves(CURVE, tmp_path / "plots/curves.png", "a title", published)
    image = pixels(tmp_path / "plots/curves.png")
    assert image.shape == (600, 1500, 3)
    assert has(image, plots.TRAIN)
    assert has(image, plots.VAL)


def test_curves_without_validation_or_accuracy_are_drawn_too(tmp_path):
    plots.draw_curves(
        [p._replace(val_loss=None, val_accuracy=None) for p in CURVE], tmp_path / "a/curves.png", "no validation"
    )
    assert not has(pixels(tmp_path / "a/curves.png"), plots.VAL)
    plots.draw_curves([p._replace(train_accuracy=None) for p in CURVE], tmp_path / "b/curves.png", "a map")
    left, right = np.split(pixels(tmp_path / "b/curves.png"), 2, axis=1)
    assert has(left, plots.TRAIN) and not has(left, plots.VAL)
    assert has(right, plots.VAL) and not has(right, plots.TRAIN)


def test_a_map_is_drawn_as_images_of_its_weights(tmp_path):
    model = Som(4, 2, 3, 1.0, 0.5)
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()
    with torch.no_grad():  # (x - 0.5) / 0.25, so that the pictures show pure colours
        model.weight.copy_(((colours - 0.5) / 0.25).repeat_interleave(1024, dim=1))
    model.wins.copy_(torch.eye(6, 4, dtype=torch.int64))  # the last two units win nothing
    plots.draw_map(model, (0.5,) * 3, (0.25,) * 3, ("cat", "dog", "bird", "ship"), tmp_path / "plots/map.png")
    image = pixels(tmp_path / "plots/map.png")
    left = image[:, : image.shape[1] // 2]
    for colour in ("#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff", "#00ffff"):
        assert has(left, colour), colour
    first, last = (np.argwhere((left == rgb).all(axis=2)).mean(axis=0) for rgb in ([255, 0, 0], [0, 255, 255]))
    assert (last > first + 100).all()  # unit 0 is top left, the last one bottom right


def test_a_run_draws_its_curves(train):
    result = train(pictures=True)
    assert (result.folder / "plots/curves.png").exists()
    assert not (result.folder / "plots/map.png").exists()
    gap = result.json("summary.json")["generalisation_gap"]["accuracy"]
    last, val = result.json("summary.json")["train"]["accuracy"], result.metrics("val")[-1]["accuracy"]
    assert math.isclose(gap, last - val)


def test_a_map_draws_its_grid(train):
    result = train("--model", "som", "--model-options", "rows=3", "columns=4", pictures=True)
    assert (result.folder / "plots/map.png").exists()


def test_a_picture_that_fails_costs_a_warning_not_the_run(train, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no font")

    monkeypatch.setattr(plots, "draw_curves", fail)
    result = train(pictures=True)
    assert result.status == 0
    assert result.json("summary.json")["status"] == "finished"
    assert "no pictures in" in capsys.readouterr().out
