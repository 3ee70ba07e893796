"""`--image-size`: images of any size, resized once, and what is trained on them in use."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from helpers.runs import CLASSES, torchrun
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.cli import evaluate
from cifar_dist.config import TrainConfig
from cifar_dist.data import cache_folder, load_dataset
from cifar_dist.data.synthetic import draw_images
from cifar_dist.errors import UserError
from cifar_dist.inference.predictor import load_model
from cifar_dist.models import MODELS
from cifar_dist.training.preflight import check_early
from cifar_dist.training.weights import load_weights

SIZES = ((24, 24), (32, 32), (61, 40), (30, 90))  # width, height


def smooth(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of images of several sizes and modes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 8)):
        for c, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = smooth(*SIZES[i % 4], rng)
                tinted = Image.fromarray((np.asarray(image) * [1, 0.3 + 0.2 * c, 1 - 0.2 * c]).astype(np.uint8))
                (tinted.convert("L") if i % 5 == 4 else tinted).save(root / part / name / f"{i:03d}.png")
    return root


def by_hand(path, side: int) -> np.ndarray:
    """The middle square of a picture, (3, side, side)."""
    image = Image.open(path).convert("RGB")
    if image.size == (side, side):
        return np.asarray(image).transpose(2, 0, 1)
    least = min(image.size)
    left, top = ((length - least) / 2 for length in image.size)
    square = (left, top, left + least, top + least)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=square)).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [28, 48])
def test_each_image_is_the_square_in_its_middle_resized_once(photos, data_dir, side):
    dataset = load_dataset(str(photos), data_dir, side)
    files = sorted((photos / "train").glob("*/*"))
    assert dataset.train.images.shape == (len(files), 3, side, side)
    for file, pixels in zip(files, dataset.train.images.numpy(), strict=True):
        assert np.array_equal(pixels, by_hand(file, side)), file
    exact = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(exact.mean(dim=(0, 2, 3)).tolist())


def test_grey_images_have_three_equal_channels_of_their_values_resized_or_not(tmp_path, photos, data_dir):
    values = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "grey" / part / name).mkdir(parents=True)
            Image.fromarray(values).save(tmp_path / "grey" / part / name / "0.png")
    for image_size in (None, 32):
        pixels = load_dataset(str(tmp_path / "grey"), tmp_path / "data", image_size).train.images[0].numpy()
        assert np.array_equal(pixels, np.stack([values] * 3))
    converted = np.asarray(Image.fromarray(values).convert("RGB"))
    assert np.array_equal(pixels, converted.transpose(2, 0, 1))
    larger = load_dataset(str(photos), data_dir, 48).train.images[4]  # of mode L
    assert torch.equal(larger[0], larger[1]) and torch.equal(larger[0], larger[2])


def test_without_a_size_another_size_is_refused_with_the_way_out(photos, tmp_path):
    said = r"\.png is \d+x\d+ pixels; images must be 32x32 unless they are resized: --image-size 32$"
    with pytest.raises(UserError, match=said) as error:
        load_dataset(str(photos), tmp_path)
    assert "\n" not in str(error.value)


def test_each_size_has_a_cache_of_its_own_and_32x32_images_are_the_same_either_way(folders, data_dir):
    caches = {cache_folder(str(folders), data_dir, size) for size in (None, 32, 48)}
    assert len(caches) == 3
    fingerprints = [load_dataset(str(folders), data_dir, size).fingerprint for size in (None, 32, 48)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_named_sets_are_resized_too_and_at_32_pixels_are_what_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_dist.data.SYNTHETIC_SIZES", {"train": 40, "test": 20})
    assert cache_folder("synthetic", tmp_path, 32) == cache_folder("synthetic", tmp_path)
    assert cache_folder("auto", tmp_path, 48) == cache_folder("cifar10", tmp_path, 48)
    dataset = load_dataset("synthetic", tmp_path, 48)
    assert dataset.synthetic and dataset.test.images.shape == (20, 3, 48, 48)
    image = Image.fromarray(draw_images(40, seed=0)[0][7].transpose(1, 2, 0))
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(dataset.train.images[7].numpy(), expected)


NEEDS_32 = {"lenet", "ghasemi", "pandey", "sengar", "mlp", "som"}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_layers_for_32_pixels_is_refused_and_all_others_take_any_size(name):
    for side in (20, 48):
        if name in NEEDS_32:
            said = (
                rf"--image-size {side}: {name} can't take images of that size \(.*\); use --image-size 32, or a model"
            )
            with pytest.raises(UserError, match=said) as error:
                check_early(TrainConfig(epochs=1, model=name, data="synthetic", image_size=side))
            assert "\n" not in str(error.value)
        elif name not in ("resnet34", "resnet50", "resnet56", "resnet110"):  # as their smaller ones, and slow
            check_early(TrainConfig(epochs=1, model=name, data="synthetic", image_size=side))


def test_what_was_trained_on_24_pixels_is_tested_used_and_exported_at_24(photos, train, capsys):
    options = ["--model", "zhang", "--image-size", "24", "--lr", "0.02", "--data", str(photos)]
    run = train(*options, "--val-fraction", "0.2", "--batch-size", "16", pictures=True)
    assert run.status == 0
    model, about = load_weights(run.folder / "model.safetensors")
    assert about["image_size"] == 24
    macs = run.json("summary.json")["macs_per_sample"]
    width = 16  # by hand: conv1 24x24, conv2 12x12, conv3 and skip 6x6, conv4 3x3, linear
    w1, w2, w3, w4 = (width << i for i in range(4))
    forward = 576 * 27 * w1 + 144 * 9 * w1 * w2 + 36 * (9 * w2 * w3 + w1 * w3) + 9 * 9 * 2 * w3 * w4 + 4 * w4
    assert macs == 3 * forward
    assert "3×24×24" in (run.folder / "report.html").read_text()

    # eval.py, without being told the size
    assert (
        evaluate.main(["--checkpoint", str(run.folder), "--data-dir", run.json("config.json")["config"]["data_dir"]])
        == 0
    )
    found, test = run_json(run.folder / "eval-test.json"), run.json("summary.json")["test"]
    assert (found["confusion_matrix"], found["loss"]) == (test["confusion_matrix"], test["loss"])

    # predict sees of a file what training saw of it
    predictor = load_model(run.folder, device="cpu")
    path = sorted((photos / "test/cat").iterdir())[2]
    logits = predictor.logits(torch.from_numpy(by_hand(path, 24).copy())[None])
    capsys.readouterr()
    assert main(["predict", str(run.folder), str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["top"][0]
    assert told["probability"] == pytest.approx(
        (logits.double() / (predictor.temperature or 1)).softmax(dim=1).max().item(), rel=1e-5
    )

    assert main(["latency", str(run.folder), "--batch-sizes", "2", "--seconds", "0.02"]) == 0
    assert run_json(run.folder / "latency.json")["image_size"] == 24
    assert main(["export", str(run.folder), "--format", "onnx"]) == 0
    graph = onnx.load(run.folder / "export/model.onnx").graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim][1:] == [3, 24, 24]
    card = (run.folder / "export/README.md").read_text()
    assert "resize((24, 24))" in card and "test images of the data it was trained on" in card and "32, 32" not in card
    assert model(torch.zeros(1, 3, 24, 24)).shape == (1, 4)


def run_json(path) -> dict:
    return json.loads(path.read_text())


def test_eval_takes_other_folders_at_the_weights_size_and_refuses_one_the_model_cannot_take(
    photos, train, data_dir, capsys
):
    run = train()  # lenet, 32x32
    where = ["--checkpoint", str(run.folder), "--data-dir", str(data_dir), "--data", str(photos)]
    assert evaluate.main([*where, "--image-size", "48"]) == 2
    assert re.search(r"^error: --image-size 48: lenet can't take images of that size", capsys.readouterr().err)
    assert evaluate.main(where) == 2
    assert "unless they are resized: --image-size 32" in capsys.readouterr().err
    assert evaluate.main([*where, "--image-size", "32"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image-size 19", "--image-size must be in [20, 128], got 19"),
        ("--image-size 129", "--image-size must be in [20, 128], got 129"),
        ("--image-size 64", "--image-size 64: lenet can't take images of that size"),
        ("--image-size 48 --model zhang --early-size 48", "--early-size must be in [20, 48), smaller than the images"),
    ],
)
def test_a_wrong_size_is_one_line_before_anything_starts(train, capsys, words, message):
    result = train(*words.split())
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert result.status == 2 and message in line and not result.folder.exists()


def test_prepare_says_the_size_that_jobs_need(photos, tmp_path, capsys):
    words = ["prepare", "--data", str(photos), "--data-dir", str(tmp_path)]
    assert main(words) == 2
    assert "--image-size 32" in capsys.readouterr().err
    assert main([*words, "--image-size", "28"]) == 0
    assert f"--data {photos} --data-dir {tmp_path} --image-size 28" in capsys.readouterr().out
    assert cache_folder(str(photos), tmp_path, 28).is_dir()


@pytest.mark.slow
def test_the_same_bits_on_one_process_and_on_three(photos, tmp_path):
    weights = []
    for size in (1, 3):
        folder = tmp_path / f"run-{size}"
        where = ["--data", str(photos), "--data-dir", str(tmp_path / f"data-{size}"), "--output-dir", str(folder)]
        options = "--model zhang --image-size 40 --steps 4 --batch-size 12 --exact-shards 3 --threads 1 --augment crop flip cutout"
        torchrun(size, ["train.py", *where, *options.split(), "--wandb", "disabled", "--val-fraction", "0.2"])
        weights.append(load_weights(folder / "model.safetensors")[1])
    assert weights[0]["weights_digest"] == weights[1]["weights_digest"]
