"""Which images a page shows, and the sprites they are in: one JPEG of tiles a class, decoded when it is asked for."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cifar_dist.record.predictions import Predictions

COLUMNS = 24  # tiles in a row of a sprite
QUALITY = 85
MOST_RIGHT = 50  # images of a class that were recognised, the least certain ones; the wrong ones are all there
STRIP = 20  # samples at most, and mistakes


class Shot(NamedTuple):
    """One image of a strip."""

    place: int  # in the split, from 0
    true: str
    predicted: str
    confidence: float
    second: str
    right: bool


class Strip(NamedTuple):
    """A row of single images."""

    name: str  # samples or mistakes
    jpeg: str
    shots: list[Shot]


def sprite(pixels: np.ndarray) -> str:
    """Return images (N, S, S, 3) uint8 as one JPEG, base64: N tiles in rows of COLUMNS."""
    rows, side = -(-len(pixels) // COLUMNS), pixels.shape[1]
    tiles = np.zeros((rows * COLUMNS, side, side, 3), np.uint8)
    tiles[: len(pixels)] = pixels
    sheet = tiles.reshape(rows, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, COLUMNS * side, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def images_of(predictions: Predictions, true_class: int) -> np.ndarray:
    """Return the places (N,) of the images a page shows of a class: the most confident mistake first, then the least certain hits."""
    (places,) = np.nonzero(predictions.targets == true_class)
    right = predictions.first[places] == true_class
    confidence = predictions.confidence[places]
    wrong = places[~right][np.argsort(-confidence[~right], kind="stable")]
    unsure = places[right][np.argsort(confidence[right], kind="stable")]
    return np.concatenate((wrong, unsure[:MOST_RIGHT]))


def class_galleries(predictions: Predictions, pixels: np.ndarray | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return, for each class, what is known of the images it shows, JSON-ready, and their sprite; no sprites without `pixels`."""
    galleries, sprites = [], []
    for true_class in range(predictions.logits.shape[1]):
        places = images_of(predictions, true_class)
        galleries.append(
            {
                "places": places.tolist(),
                "first": predictions.first[places].tolist(),
                "second": predictions.second[places].tolist(),
                "confidence": predictions.confidence[places].round(4).tolist(),
            }
        )
        if pixels is not None:
            sprites.append(sprite(pixels[places]) if len(places) else "")
    return galleries, sprites


def strips(predictions: Predictions, pixels: np.ndarray | None, classes: Sequence[str]) -> list[Strip]:
    """Return STRIP of the samples that the run folder keeps and, where there are `pixels`, the STRIP most confident mistakes."""
    number = len(predictions.sample_places)
    chosen = np.linspace(0, number - 1, min(STRIP, number)).round().astype(np.int64)
    samples = shots(predictions, predictions.sample_places[chosen], classes)
    found = [Strip("samples", sprite(predictions.sample_pixels[chosen]), samples)]
    (wrong,) = np.nonzero(predictions.first != predictions.targets)
    worst = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:STRIP]
    if pixels is not None and len(worst):
        found.append(Strip("mistakes", sprite(pixels[worst]), shots(predictions, worst, classes)))
    return found


def shots(predictions: Predictions, places: np.ndarray, classes: Sequence[str]) -> list[Shot]:
    """Return what was predicted for the images at `places`."""
    found = []
    for place in places.tolist():
        true, first, second = (int(of[place]) for of in (predictions.targets, predictions.first, predictions.second))
        confidence = float(predictions.confidence[place])
        found.append(Shot(place, classes[true], classes[first], confidence, classes[second], true == first))
    return found
