"""Grids of images: a fair sample of what a model says of them, its worst mistakes, and what augmentation makes of them."""

import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cifar_dist.record.predictions import Predictions
from cifar_dist.record.training_images import Labelled
from cifar_dist.report.canvas import MIDTONE, RIGHT, WRONG, rough_percent, shorten
from cifar_dist.report.class_plots import describe

ROWS, COLUMNS = 5, 8
# In pixels of the picture. Images of 32 x 32 are enlarged by a whole number: every pixel of theirs stays a square.
ENLARGED = 5
SIDE, GAP, LINE, TITLE_LINE = 32 * ENLARGED, 24, 15, 22
WIDTH = GAP + COLUMNS * (SIDE + GAP)
TITLE_LETTERS = 130  # to a line
NO_GROUND = "#ffffff00"
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"


class Caption(NamedTuple):
    """What stands around an image."""

    above: tuple[tuple[str, str], ...]  # lines of text, each in two parts: at the left and at the right
    below: str = ""
    right: bool | None = None  # the verdict that the frame shows; None: none


def mistake_places(predictions: Predictions) -> np.ndarray:
    """Return the images whose first guess is wrong with the highest confidence, the most confident first."""
    wrong = np.flatnonzero(predictions.first != predictions.targets)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][: ROWS * COLUMNS]


def sample_captions(predictions: Predictions, classes: Sequence[str], places: Iterable[int]) -> list[Caption]:
    """Return first guess and verdict; the second guess and, where the first is wrong, its verdict and the truth."""
    captions = []
    for place in places:
        truth, first, second = predictions.targets[place], predictions.first[place], predictions.second[place]
        likely, less = (f"{classes[c]} {rough_percent(predictions.probabilities[place, c])}" for c in (first, second))
        if first == truth:
            captions.append(Caption(((likely, "✓ True"), (f"2nd {less}", "")), right=True))
        else:
            above = ((likely, "✗ False"), (f"2nd {less}", "✓" if second == truth else "✗"))
            captions.append(Caption(above, f"true: {classes[truth]}", right=False))
    return captions


def mistake_captions(predictions: Predictions, classes: Sequence[str], places: Iterable[int]) -> list[Caption]:
    """Return the first guess and the true class, each with the probability that the model gave it."""
    captions = []
    for place in places:
        guess, truth = predictions.first[place], predictions.targets[place]
        above = tuple(
            (f"{verb} {classes[c]}", rough_percent(predictions.probabilities[place, c]))
            for verb, c in (("said", guess), ("is", truth))
        )
        captions.append(Caption(above))
    return captions


def draw_samples(predictions: Predictions, classes: Sequence[str], path: Path, title: str) -> Path:
    """Draw images the run has kept, chosen whatever the model says of them, with first and second guess (as Zhang)."""
    kept = len(predictions.sample_places)
    count = min(ROWS * COLUMNS, kept)
    chosen = np.arange(count) * kept // max(1, count)  # evenly spaced, too
    captions = sample_captions(predictions, classes, predictions.sample_places[chosen])
    right = sum(bool(c.right) for c in captions)
    lines = [
        title,
        f"{count} images evenly spaced over {describe(predictions)}",
        f"first guess: {right} True (thin frame), {count - right} False (dashed frame); "
        "below it the second guess; in % the probability given to each",
    ]
    return _draw_grid(predictions.sample_pixels[chosen], captions, path, lines)


def draw_mistakes(predictions: Predictions, classes: Sequence[str], pixels: np.ndarray, path: Path, title: str) -> Path:
    """Draw the images that are wrong with the highest confidence; where none is wrong, say so."""
    places = mistake_places(predictions)
    wrong = int((predictions.first != predictions.targets).sum())
    lines = [title, f"no mistake in {describe(predictions)}"]
    if wrong:
        lines[1] = f"the {len(places)} most confident of {wrong:,} mistakes in {describe(predictions)}"
        lines.append("what the model said and what it is, in % the probability given to each")
    return _draw_grid(pixels[places], mistake_captions(predictions, classes, places), path, lines)


def draw_training_images(kept: Labelled, path: Path, title: str) -> Path:
    """Draw training images, drawn by the run's seed, each with its class (as Zhang)."""
    return _draw_labelled(kept, path, [title, f"{len(kept.images)} training images, drawn by the run's seed"])


def draw_augmented(kept: Labelled, steps: Sequence[str], path: Path, title: str) -> Path:
    """Draw training images after augmentation by `steps`, each with its label or its two."""
    return _draw_labelled(kept, path, [title, f"the same training images after {', '.join(steps)}"])


def _draw_labelled(kept: Labelled, path: Path, title: Iterable[str]) -> Path:
    """Draw images with their labels. Without a ground: the page, which may be dark, shows it."""
    labels = [label.split("\n") for label in kept.labels]
    tallest = max(map(len, labels), default=0)
    captions = [Caption((("", ""),) * (tallest - len(label)) + tuple((part, "") for part in label)) for label in labels]
    return _draw_grid(kept.images, captions, path, title, MIDTONE, NO_GROUND)


def _draw_grid(
    pixels: np.ndarray,
    captions: Sequence[Caption],
    path: Path,
    title: Iterable[str],
    ink: str = "black",
    ground: str = "white",
) -> Path:
    path.parent.mkdir(exist_ok=True)
    grid(pixels, captions, title, ink, ground).save(path)
    return path


def grid(
    pixels: np.ndarray, captions: Sequence[Caption], title: Iterable[str], ink: str = "black", ground: str = "white"
) -> Image.Image:
    """Draw images (N, S, S, 3) uint8 row by row, with their captions and frames, under lines of text."""
    head = "\n".join(textwrap.fill(line, TITLE_LETTERS) for line in title)
    top = 2 * GAP + TITLE_LINE * (head.count("\n") + 1)
    above = LINE * max((len(c.above) for c in captions), default=0) + 3
    cell = above + SIDE + LINE * any(c.below for c in captions) + GAP
    mode = "RGBA" if ground == NO_GROUND else "RGB"
    sheet = Image.new(mode, (WIDTH, top + cell * -(-len(captions) // COLUMNS)), ground)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((WIDTH / 2, GAP), head, ink, _font(17), "ma", align="center", spacing=5)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = GAP + i % COLUMNS * (SIDE + GAP), top + above + i // COLUMNS * cell
        smooth = Image.Resampling.BICUBIC if SIDE % len(image) else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(image).resize((SIDE, SIDE), smooth), (x, y))
        if caption.right is not None:
            _draw_frame(draw, x, y, caption.right)
        for line, (start, end) in enumerate(caption.above):
            bold = ink == MIDTONE or (line == 0 and bool(end))
            _draw_line(draw, x, y - above + line * LINE, start, end, ink, bold)
        _draw_line(draw, x, y + SIDE + 4, caption.below, "", ink, bold=False)
    return sheet


def _draw_frame(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """Draw a thin frame around an image at (x, y), or a thick and dashed one."""
    width = 2 if right else 4
    outside = (x - width, y - width, x + SIDE + width - 1, y + SIDE + width - 1)
    draw.rectangle(outside, outline=RIGHT if right else WRONG, width=width)
    if not right:
        for gap in range(10, SIDE, 20):
            for edge in (-width, SIDE):
                draw.rectangle((x + gap, y + edge, x + gap + 6, y + edge + width - 1), "white")
                draw.rectangle((x + edge, y + gap, x + edge + width - 1, y + gap + 6), "white")


def _draw_line(draw: ImageDraw.ImageDraw, x: int, y: int, start: str, end: str, ink: str, bold: bool) -> None:
    """Draw a line of text as wide as an image, in two parts, the first one shortened until there is room for it."""
    font, letters = _font(11, bold), len(start)
    while font.getlength(f"{shorten(start, letters)}  {end}") > SIDE:
        letters -= 1
    draw.text((x, y), shorten(start, letters), ink, font)
    draw.text((x + SIDE, y), end, ink, font, "ra")


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / f"DejaVuSans{'-Bold' * bold}.ttf", size)
