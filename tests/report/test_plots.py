import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import ROOT
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.data import load_dataset
from cifar_dist.models.som import Som
from cifar_dist.record.curves import Point
from cifar_dist.record.predictions import Predictions
from cifar_dist.record.reader import RunRecord
from cifar_dist.record.training_images import Labelled, TrainingImages, read_training_images
from cifar_dist.report import canvas, class_plots, image_grids, plots
from cifar_dist.report.canvas import RIGHT, TRAIN, VAL, WRONG, rough_percent, shorten
from cifar_dist.report.class_plots import class_scores, confusion_matrix, draw_confusion
from cifar_dist.report.image_grids import mistake_captions, mistake_places, sample_captions

CURVE = [Point(i + 1.0, i, 2 / (i + 1), 1 - 0.5 / (i + 1), 1 + abs(i - 4) / 4, 0.7) for i in range(12)]
CLASSES = ("cat", "dog", "bird", "ship")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def near(image: np.ndarray, colour: str) -> np.ndarray:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(image.astype(int) - rgb).sum(axis=2) < 6


def has(image: np.ndarray, colour: str) -> bool:
    return bool(near(image, colour).any())


def predictions(targets, probabilities, *, split="test", kept=None) -> Predictions:
    """Predictions with these probabilities (M, K); image i, of those kept, is of the grey value 2 i."""
    targets = np.asarray(targets)
    kept = np.arange(len(targets)) if kept is None else np.asarray(kept)
    grey = np.broadcast_to((2 * kept).astype(np.uint8)[:, None, None, None], (len(kept), 32, 32, 3))
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, dtype=np.float64)).astype(np.float32)
    return Predictions(split, 1234, targets, logits, kept, grey)


def drawn_predictions(num_classes: int, num_images: int = 300, **options) -> Predictions:
    rng = np.random.default_rng(0)
    return predictions(np.arange(num_images) % num_classes, rng.dirichlet(np.ones(num_classes), num_images), **options)


def train_lines(epochs: float, count: int, lr, **more) -> list[dict]:
    steps = [
        {"kind": "train", "step": i + 1, "epoch": epochs * (i + 1) / count, "samples": 100 * (i + 1), "loss": 1.0}
        for i in range(count)
    ]
    return [line | {"accuracy": 0.5, "lr": lr((i + 0.5) / count)} | more for i, line in enumerate(steps)]


def constant(_: float) -> float:
    return 0.1


@pytest.mark.parametrize("published", [None, 0.7])
def test_curves_show_training_and_validation(tmp_path, published):
    plots.draw_curves(CURVE, tmp_path / "plots/curves.png", "a title", published)
    image = pixels(tmp_path / "plots/curves.png")
    assert image.shape == (440, 1100, 3)
    assert has(image, TRAIN)
    assert has(image, VAL)


def test_curves_without_validation_or_accuracy_are_drawn_too(tmp_path):
    plots.draw_curves(
        [p._replace(val_loss=None, val_accuracy=None) for p in CURVE], tmp_path / "a/curves.png", "no validation"
    )
    assert not has(pixels(tmp_path / "a/curves.png"), VAL)
    plots.draw_curves([p._replace(train_accuracy=None) for p in CURVE], tmp_path / "b/curves.png", "a map")
    left, right = np.split(pixels(tmp_path / "b/curves.png"), 2, axis=1)
    assert has(left, TRAIN) and not has(left, VAL)
    assert has(right, VAL) and not has(right, TRAIN)


def test_a_map_is_drawn_as_images_of_its_weights(tmp_path):
    model = Som(4, 2, 3, 1.0, 0.5)
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()
    with torch.no_grad():  # (x - 0.5) / 0.25, so that the pictures show pure colours
        model.weight.copy_(((colours - 0.5) / 0.25).repeat_interleave(1024, dim=1))
    model.wins.copy_(torch.eye(6, 4, dtype=torch.int64))  # the last two units win nothing
    plots.draw_map(model.prototypes(), (0.5,) * 3, (0.25,) * 3, CLASSES, tmp_path / "plots/map.png")
    image = pixels(tmp_path / "plots/map.png")
    left = image[: image.shape[0] // 2, : image.shape[1] // 2]
    for colour in ("#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff", "#00ffff"):
        assert has(left, colour), colour
    first, last = (np.argwhere((left == rgb).all(axis=2)).mean(axis=0) for rgb in ([255, 0, 0], [0, 255, 255]))
    assert (last > first + 100).all()  # unit 0 is top left, the last one bottom right


@pytest.mark.parametrize("accuracy", [0.5, None])
def test_training_lines_are_drawn_by_step(tmp_path, accuracy):
    lines = train_lines(3, 5000, constant, accuracy=accuracy)
    path = plots.draw_training_lines(lines, tmp_path / "plots/training_lines.png", "a title")
    image = pixels(path).astype(int)
    blue = image[..., 2] - image[..., 0] > 40
    rows = np.flatnonzero(blue.sum(axis=1) > image.shape[1] / 2)  # constant values: level lines
    assert np.count_nonzero(np.diff(rows) > 50) + 1 == (1 if accuracy is None else 2)
    assert blue[rows[0]].sum() >= plots.MOST_POINTS  # no more points than pixels


@pytest.mark.parametrize(
    ("lr", "logarithmic"),
    [
        (constant, False),
        (lambda x: 0.05 * (1 + math.cos(math.pi * x)), False),  # near 0 at its end alone
        (lambda x: 0.1 if x < 0.5 else 0.01, False),
        (lambda x: 0.1 if x < 0.5 else 0.01 if x < 0.75 else 0.001, True),
        (lambda x: 0.1 * 0.9 ** (100 * x), True),
        (np.zeros_like, False),
    ],
)
def test_a_learning_rate_over_two_decades_is_drawn_on_a_logarithmic_scale(lr, logarithmic):
    assert plots.spans_decades(np.array([lr((i + 0.5) / 60) for i in range(60)])) == logarithmic


def test_the_gradients_norm_is_drawn_where_it_was_measured(tmp_path):
    path = tmp_path / "plots/learning_rate.png"
    plots.draw_learning_rate(train_lines(3, 9, constant), path, "a title")
    bare = pixels(path)
    assert has(bare, TRAIN) and not has(bare, VAL)
    lines = train_lines(3, 9, constant, gradient_norm=2.0)
    lines[4]["gradient_norm"] = None  # fp16 that overflowed
    plots.draw_learning_rate(lines, path, "a title", limit=1.0)
    image = pixels(path)
    top, bottom = np.split(image, [len(image) // 2])
    assert has(top, TRAIN) and not has(top, VAL)
    assert has(bottom, VAL) and not has(bottom, TRAIN)


def test_a_class_score_has_wilsons_interval():
    guesses = [0] * 8 + [1] * 2 + [1] * 5
    scores = class_scores(predictions([0] * 10 + [1] * 5, np.eye(3)[guesses]), ("a", "b", "no images"))
    assert [(s.name, s.correct, s.total) for s in scores] == [("b", 5, 5), ("a", 8, 10)]  # best first
    # By hand: (0.8 + z²/20 ± z sqrt(0.8 · 0.2 / 10 + z²/400)) / (1 + z²/10), z = 1.959964
    assert (scores[1].low, scores[1].high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert (scores[0].low, scores[0].high) == pytest.approx((0.565518, 1.0), abs=1e-6)


def test_rows_of_the_confusion_matrix_are_true_classes(tmp_path):
    made = predictions([0, 0, 0, 1, 1, 2], np.eye(3)[[1, 1, 0, 1, 1, 1]])
    assert confusion_matrix(made, 3).tolist() == [[1, 2, 0], [0, 2, 0], [0, 1, 0]]
    draw_confusion(predictions([0, 0, 1, 1], np.eye(2)[[1, 1, 1, 1]]), CLASSES[:2], tmp_path / "a/matrix.png", "")
    image = pixels(tmp_path / "a/matrix.png")[:, :600]  # without the scales
    (wrong_y, wrong_x), (right_y, right_x) = (np.argwhere(near(image, c)).mean(axis=0) for c in (WRONG, RIGHT))
    assert right_y - wrong_y > 150 and abs(right_x - wrong_x) < 5  # true cat said dog is above true dog said dog


@pytest.mark.parametrize("num_classes", [10, 41, 100])
def test_names_in_a_confusion_matrix_do_not_run_into_one_another(tmp_path, monkeypatch, num_classes):
    figures = []
    monkeypatch.setattr(class_plots, "save", lambda figure, path: figures.append(figure) or path)
    names = [f"sweet_pepper{number:02d}" for number in range(num_classes)]
    draw_confusion(drawn_predictions(num_classes), names, tmp_path / "matrix.png", "")
    (figure,) = figures
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for labels, side in ((axes.get_yticklabels(), "height"), (axes.get_xticklabels(), "width")):
        assert [label.get_text() for label in labels] == names
        centres = [label.get_transform().transform(label.get_position()) for label in labels]
        apart = np.hypot(*np.diff(centres, axis=0).T).min()
        size = labels[0].get_fontsize() * figure.dpi / 72
        assert size < apart * (math.sin(math.radians(45)) if labels[0].get_rotation() == 45 else 1)
        boxes = [label.get_window_extent() for label in labels]
        assert min(b.x0 for b in boxes) >= 0 and min(b.y0 for b in boxes) >= 0  # none is cut off
        if labels[0].get_rotation() != 45:
            assert max(getattr(box, side) for box in boxes) < apart


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.004, "<1 %"), (0.006, "1 %"), (0.994, "99 %"), (0.996, ">99 %"), (1, "100 %")],
)
def test_a_probability_is_not_rounded_to_a_certainty(share, text):
    assert rough_percent(share) == text


def test_a_long_name_keeps_both_its_ends():
    assert shorten("automobile", 10) == "automobile"
    assert shorten("n01440764_tench", 10) == "n0144…ench"


def test_samples_say_first_and_second_guess_and_which_of_them_is_right():
    made = predictions([0, 1, 2], [[0.9, 0.06, 0.04, 0], [0.5, 0.3, 0.15, 0.05], [0.1, 0.6, 0.002, 0.298]], split="val")
    right, second_right, wrong = sample_captions(made, CLASSES, [0, 1, 2])
    assert right == ((("cat 90 %", "✓ True"), ("2nd dog 6 %", "")), "", True)
    assert second_right == ((("cat 50 %", "✗ False"), ("2nd dog 30 %", "✓")), "true: dog", False)
    assert wrong == ((("dog 60 %", "✗ False"), ("2nd ship 30 %", "✗")), "true: bird", False)


def test_samples_are_spread_over_the_split_whatever_the_model_says(tmp_path):
    made = drawn_predictions(4, 100, kept=range(0, 100, 2))  # 50, of which 40 are shown
    path = image_grids.draw_samples(made, CLASSES, tmp_path / "plots/samples.png", "a title")
    image, middle = pixels(path), image_grids.SIDE // 2
    column, step = image_grids.GAP + middle, image_grids.SIDE + image_grids.GAP
    grey = image[:, column + step * np.arange(8)]  # through the middles of the eight columns
    values, lengths = np.unique(grey[..., 0][(np.ptp(grey, axis=2) == 0)], return_counts=True)
    shown = [int(v) for v, n in zip(values, lengths, strict=True) if n >= image_grids.SIDE and v < 255]
    assert shown == [4 * (i * 50 // 40) for i in range(40)]


def test_frames_differ_in_more_than_colour(tmp_path):
    every = {}
    for name, guess in (("right", 0), ("wrong", 1)):
        made = predictions([0], np.eye(2)[[guess]])
        image = pixels(image_grids.draw_samples(made, CLASSES, tmp_path / name / "samples.png", "a title"))
        every[name] = image
        assert has(image, RIGHT) == (name == "right") and has(image, WRONG) == (name == "wrong")
    top = {name: near(image, RIGHT if name == "right" else WRONG) for name, image in every.items()}
    runs = {name: np.diff(mask[mask.any(axis=1)][0].astype(int)).clip(0).sum() for name, mask in top.items()}
    assert runs["right"] == 1 and runs["wrong"] > 5  # one line, and dashes


def test_mistakes_are_wrong_alone_and_begin_with_the_most_confident():
    made = predictions(
        [0, 1, 2, 3, 0],
        [[0.97, 0.01, 0.01, 0.01], [0.8, 0.1, 0.1, 0], [0.95, 0, 0.05, 0], [0, 0, 0.6, 0.4], [0, 0.8, 0.2, 0]],
    )
    assert mistake_places(made).tolist() == [2, 1, 4, 3]  # of equal ones the first first
    assert mistake_captions(made, CLASSES, [2])[0].above == (("said cat", "95 %"), ("is bird", "5 %"))
    many = drawn_predictions(4)
    places = mistake_places(many)
    wrong = np.flatnonzero(many.logits.argmax(axis=1) != many.targets)
    assert len(places) == 40 and set(places) <= set(wrong)
    left_out = np.setdiff1d(wrong, places)
    assert many.confidence[places].min() >= many.confidence[left_out].max()
    assert (np.diff(many.confidence[places]) <= 0).all()


def test_a_perfect_model_is_said_to_make_no_mistake(tmp_path, monkeypatch):
    made = predictions([0, 1], np.eye(2))
    notes = []
    draw = image_grids._draw_grid
    monkeypatch.setattr(image_grids, "_draw_grid", lambda *a: notes.extend(a[3]) or draw(*a))
    path = image_grids.draw_mistakes(
        made, CLASSES, np.zeros((2, 32, 32, 3), np.uint8), tmp_path / "p/mistakes.png", "T"
    )
    assert notes == ["T", "no mistake in 2 test images, weights of step 1,234"]
    assert not near(pixels(path), "#000000").all(axis=1).any()


def test_augmented_images_are_drawn_as_they_are(tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 0], images[1] = 255, 128
    path = image_grids.draw_augmented(
        Labelled(images, ["cat 62 %\ndog 38 %", "a" * 300]), ["mixup"], tmp_path / "p/augmented.png", "a title"
    )
    image = pixels(path)
    assert (image == [255, 0, 0]).all(axis=2).sum() == image_grids.SIDE**2
    assert (image == [128, 128, 128]).all(axis=2).sum() >= image_grids.SIDE**2
    assert (image[:, 2 * image_grids.SIDE + 2 * image_grids.GAP + 2 :] == 255)[100:].all()  # a long label is cut


ALL = [
    "curves",
    "training_lines",
    "learning_rate",
    "per_class",
    "confusion_matrix",
    "samples",
    "mistakes",
    "training_images",
    "augmented",
]


@pytest.mark.parametrize(
    ("num_classes", "status", "lines", "expected"),
    [
        (4, "interrupted", train_lines(0.4, 3, constant, gradient_norm=1.0), ALL),
        (10, "finished", train_lines(1, 1, constant), ALL),
        (130, "finished", train_lines(200, 400, lambda x: 10 ** (-3 * x), gradient_norm=1.0), ALL),
    ],
)
def test_every_picture_that_can_be_drawn_is_drawn_within_its_edges(tmp_path, num_classes, status, lines, expected):
    classes = [
        r"$\frac{$",
        "GREAT SPOTTED WOODPECKER",
        *(f"n0144{i:04d}_of_a_long_name_{i}" for i in range(num_classes - 2)),
    ]
    config = {"augment": ["crop", "flip"], "max_grad_norm": 1.0}
    record = RunRecord(Path("run"), status, "", config, {"classes": classes}, [], {"epoch": 0.4}, lines)
    made = drawn_predictions(num_classes)
    shown = Labelled(np.zeros((3, 32, 32, 3), np.uint8), ["cat"] * 3)
    title = "RECIPE " * 30 + "$, SYNTHETIC DATA"
    images = np.zeros((300, 32, 32, 3), np.uint8)
    drawn = plots.draw_pictures(record, made, images, TrainingImages(shown, shown), tmp_path / "plots", title, 0.9)
    assert [path.stem for path in drawn] == expected
    for path in drawn:
        image = pixels(path)
        assert max(image.shape) < 2500
        for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
            assert (edge == 255).all(), f"something is cut off in {path.name}"


def test_nothing_is_drawn_from_nothing(tmp_path):
    record = RunRecord(tmp_path, "failed", "it did")
    assert plots.draw_pictures(record, None, None, None, tmp_path / "plots", "a title", None) == []


def test_a_run_draws_its_pictures(train):
    result = train(pictures=True)
    assert {path.stem for path in (result.folder / "plots").iterdir()} == set(ALL)
    gap = result.json("summary.json")["generalisation_gap"]["accuracy"]
    last, val = result.json("summary.json")["train"]["accuracy"], result.metrics("val")[-1]["accuracy"]
    assert math.isclose(gap, last - val)


def test_training_images_are_kept_as_they_are_and_as_the_first_step_saw_them(train, folders, data_dir):
    result = train("--augment", "flip", pictures=True)
    kept, dataset = read_training_images(result.folder), load_dataset(str(folders), data_dir)
    names = [dataset.classes[target] for target in dataset.train.targets]
    pictures = dataset.train.images.permute(0, 2, 3, 1).numpy()
    whereabouts = [np.flatnonzero((pictures == image).all(axis=(1, 2, 3))) for image in kept.plain.images]
    assert len(whereabouts) == 40
    assert all(name in {names[i] for i in found} for name, found in zip(kept.plain.labels, whereabouts, strict=True))
    assert sorted(found[0] for found in whereabouts) != [found[0] for found in whereabouts]  # in the order of a draw
    same = (kept.augmented.images == kept.plain.images).all(axis=(1, 2, 3))
    mirrored = (kept.augmented.images == kept.plain.images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all() and not same.all() and not mirrored.all()


def test_training_images_are_drawn_from_the_record_where_the_data_are_gone(train, tmp_path):
    result = train(pictures=True, name="moved")
    plots_folder = result.folder / "plots"
    before = {name: (plots_folder / name).read_bytes() for name in ("training_images.png", "augmented.png")}
    for name in before:
        (plots_folder / name).unlink()
    assert main(["report", str(result.folder), "--data-dir", str(tmp_path / "nothing")]) == 0
    assert {name: (plots_folder / name).read_bytes() for name in before} == before
    (result.folder / "training-images.npz").write_bytes(b"PK torn")
    assert read_training_images(result.folder) is None


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


def test_pictures_that_a_page_shows_have_no_ground_of_their_own(tmp_path):
    """And the ink reads on a white page and on a dark one: WCAG's contrast, of large text at least 3."""
    shown = Labelled(np.zeros((3, 32, 32, 3), np.uint8), ["cat"] * 3)
    path = image_grids.draw_augmented(shown, ["crop"], tmp_path / "augmented.png", "a title")
    model = Som(4, 2, 3, 1.0, 0.5)
    plots.draw_map(model.prototypes(), (0.5,) * 3, (0.25,) * 3, CLASSES, tmp_path / "map.png")
    for picture in (path, tmp_path / "map.png"):
        alpha = np.asarray(Image.open(picture).convert("RGBA"))[..., 3]
        assert (alpha[0] == 0).all() and (alpha == 255).any(), picture

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    sheet = (ROOT / "cifar_dist/report/assets/style.css").read_text()
    for surface in re.findall(r"--surface: (#\w{6})", sheet):
        ratio = luminance(canvas.MIDTONE) / luminance(surface)
        assert max(ratio, 1 / ratio) > 4, surface
