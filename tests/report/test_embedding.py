"""The picture of last features: what they are, which images they are of, and what is said where they can't be had."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cifar_dist.__main__ import main
from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import MODELS, build_model
from cifar_dist.report import embedding

NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["lenet", "mlp", "pandey", "resnet20", "sengar", "speednet", "zhang"])
def test_the_last_linear_layer_makes_the_logits_of_the_features(name):
    torch.manual_seed(0)
    model = build_model(name, 10).eval()
    features = embedding.last_features(model, PIXELS, NORMALIZE)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    made = torch.from_numpy(features) @ head.weight.T + (0 if head.bias is None else head.bias)
    images = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = model(images)
    scale = (logits / made).detach().mean()  # speednet's logits are its head's, made smaller
    torch.testing.assert_close(made.detach() * scale, logits, atol=1e-4, rtol=1e-3)


def test_a_map_has_no_last_features():
    with pytest.raises(UserError, match="no linear layer"):
        embedding.last_features(build_model("som", 4), PIXELS, NORMALIZE)
    assert "som" in MODELS


def test_images_are_drawn_by_the_seed_without_repeats():
    chosen = embedding.choose(10_000, 3)
    assert len(set(chosen.tolist())) == len(chosen) == embedding.MOST_IMAGES
    assert (np.diff(chosen) > 0).all() and chosen.max() < 10_000 and chosen.max() > 9_000
    assert (embedding.choose(10_000, 3) == chosen).all() and (embedding.choose(10_000, 4) != chosen).any()
    assert embedding.choose(7, 0).tolist() == [*range(7)]


def test_classes_that_lie_apart_are_drawn_apart():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 40)
    features = (rng.normal(size=(120, 20)) + 30 * np.eye(20)[targets]).astype(np.float32)
    points = embedding.embed(features, 0)
    assert (points == embedding.embed(features, 0)).all()
    nearest = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(120)
    assert (targets[nearest.argmin(axis=1)] == targets).all()


@pytest.mark.parametrize("count", [4, 130])
def test_the_picture_has_no_ground_and_nothing_is_cut_off(tmp_path, count):
    rng = np.random.default_rng(0)
    classes = [f"$a_{i} long name of a class" for i in range(count)]
    path = tmp_path / "plots/embedding.png"
    embedding.draw_embedding(rng.normal(size=(300, 2)), np.arange(300) % count, classes, path, ["title " * 40])
    alpha = np.asarray(Image.open(path).convert("RGBA"))[..., 3]
    for edge in (alpha[:2], alpha[-2:], alpha[:, :2], alpha[:, -2:]):
        assert (edge == 0).all()


@pytest.mark.parametrize("count", [2, 10, 100])
def test_title_points_and_names_lie_below_one_another(tmp_path, monkeypatch, count):
    figures = []
    monkeypatch.setattr(embedding, "save", lambda figure, path, **_: figures.append(figure) or path)
    points, targets = np.random.default_rng(0).normal(size=(300, 2)), np.arange(300) % count
    classes, title = [f"class {i}" for i in range(count)], ["a model, on some data with a long name, " * 3, "and how"]
    embedding.draw_embedding(points, targets, classes, tmp_path / "embedding.png", title)
    (figure,) = figures
    figure.draw_without_rendering()
    parts = (figure._suptitle, figure.axes[0], figure.legends[0])
    above, middle, below = (part.get_window_extent() for part in parts)
    assert above.ymin > middle.ymax and middle.ymin > below.ymax
    assert middle.height > 500


def test_report_draws_the_features_on_request(train, capsys, monkeypatch):
    result = train("--model", "lenet")
    picture = result.folder / "plots/embedding.png"
    words = ["report", str(result.folder)]
    assert main(words) == 0 and not picture.exists()
    assert main([*words, "--embedding"]) == 0 and picture.exists()
    assert "What the last layer sees" in (result.folder / "report.html").read_text()
    (result.folder / "predictions-test.npz").unlink()
    (result.folder / "predictions-val.npz").unlink()
    assert main([*words, "--embedding"]) == 1
    assert "an embedding needs the images of the run's evaluation" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedding, "find_spec", lambda _: None)
    assert main([*words, "--embedding"]) == 2
    assert "--embedding needs scikit-learn, which isn't installed; pip install scikit-learn" in capsys.readouterr().err
