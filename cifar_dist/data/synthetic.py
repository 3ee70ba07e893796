"""A procedural stand-in for CIFAR-10: ten shapes under random pose, colour and clutter, drawn without any download."""

from collections.abc import Callable
from math import cos, hypot, pi, sin, sqrt

import numpy as np

from cifar_dist.progress import Report, unheard

Array = np.ndarray
Distance = Callable[[Array, Array], Array]

IMAGE_SIZE = 32
X_PX = np.arange(IMAGE_SIZE, dtype=np.float32) - (IMAGE_SIZE - 1) / 2  # (32,), rightwards from the middle
Y_PX = -X_PX[:, None]  # (32, 1), upwards from the middle

CHUNK = 500
"""Images drawn at once: keeps the working memory near 50 MB. A multiple of ten; changing it changes every image."""


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.9


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.72) - 0.23


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def _cross(x: Array, y: Array) -> Array:
    along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(along - 1.0, across - 0.3)


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x, y - 0.5))


def _heart(x: Array, y: Array) -> Array:
    half = 0.58  # a square standing on its corner, and a disc of its own width on each of the two upper sides
    x, y, side = np.abs(x), y + 0.2, half / sqrt(2)
    diamond = (x + np.abs(y)) / sqrt(2) - half
    return np.minimum(diamond, np.hypot(x - side, y - side) - half)


def _stripes(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 1.0, np.abs((1.5 * x) % 1 - 0.5) / 1.5 - 1 / 6)


def _checker(x: Array, y: Array) -> Array:
    # Two squares corner to corner, one above the other; side by side on a diagonal would not be its own mirror image.
    u, v = (x + y) / sqrt(2), (x - y) / sqrt(2)
    empty_quarter = np.minimum(np.abs(u), np.abs(v)) * np.sign(u * v)
    return np.maximum(np.maximum(np.abs(u), np.abs(v)) - 0.85, empty_quarter)


def _star(points: int, inner: float) -> Distance:
    """Return the distance to a star with tips at radius 1 and notches at radius `inner`."""
    half_sector = pi / points
    across, along = inner * sin(half_sector), 1 - inner * cos(half_sector)
    across, along = across / hypot(across, along), along / hypot(across, along)  # unit normal of the edge

    def distance(x: Array, y: Array) -> Array:
        # Rotating and mirroring every sector onto one leaves a single straight edge, from a tip to a notch.
        radius = np.hypot(x, y)
        from_tip = half_sector - np.abs(np.arctan2(x, y) % (2 * half_sector) - half_sector)
        return across * (radius * np.cos(from_tip) - 1) + along * radius * np.sin(from_tip)

    return distance


SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _star(points=3, inner=0.5),
    "cross": _cross,
    "star": _star(points=5, inner=0.42),
    "crescent": _crescent,
    "heart": _heart,
    "stripes": _stripes,
    "checker": _checker,
}
"""Class name → signed distance (negative inside) to an upright shape of about unit radius. Each is its own
mirror image, so that flip augmentation draws nothing that the set does not contain."""

CLASSES: tuple[str, ...] = tuple(SHAPES)

NUISANCES: dict[str, tuple[int, float, float]] = {
    "angle": (1, -0.6, 0.6),
    "centre_px": (2, -4, 4),
    "radius_px": (1, 6.5, 12),
    "stretch": (1, 0.8, 1.25),
    "softness_px": (1, 1, 2.5),
    "background": (3, 0, 0.7),
    "contrast": (1, 0.4, 1),
    "channel_contrast": (3, 0.3, 1),
    "wave_per_px": (4, -0.25, 0.25),
    "wave_phase": (2, 0, 2 * pi),
    "wave_colour": (6, -0.1, 0.1),
    "blob_px": (2, -14, 14),
    "blob_radius_px": (1, 1, 3),
    "blob_colour": (3, 0, 1),
    "line_angle": (1, 0, pi),
    "line_offset_px": (1, -12, 12),
    "line_width_px": (1, 0.5, 2),
    "line_colour": (3, 0, 1),
    "noise_std": (1, 0, 0.1),
}
"""Name → (values per image, low, high) of what varies, uniformly and whatever the class. Colours are in [0, 1], angles
in radians. Tuned so that a ResNet-20 needs several epochs; backgrounds lean dark, without which it starts slowly."""


def draw_images(num_images: int, seed: int, progress: Report = unheard) -> tuple[np.ndarray, np.ndarray]:
    """Draw `num_images` labelled pictures; image i depends only on `seed` (≥ 0) and i.

    Returns images (N, 3, 32, 32) uint8 and targets (N,) int64 into `CLASSES`, which take turns: target i is i % 10.
    """
    images = np.empty((num_images, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for start in range(0, num_images, CHUNK):
        chunk = images[start : start + CHUNK]
        chunk[:] = _draw_chunk(len(chunk), np.random.default_rng((seed, start)))
        progress(start + len(chunk), num_images)
    return images, np.arange(num_images, dtype=np.int64) % len(CLASSES)


def _draw_chunk(n: int, generator: np.random.Generator) -> Array:
    """Return images (n, 3, 32, 32) uint8; image i is the same for every n > i."""
    # A stream of its own per quantity, filled row by row, makes a shorter chunk a prefix of a longer one.
    *streams, noise_stream = generator.spawn(len(NUISANCES) + 1)
    v = {
        name: (low + (high - low) * stream.random((n, count), np.float32))[:, :, None, None]
        for stream, (name, (count, low, high)) in zip(streams, NUISANCES.items(), strict=True)
    }
    # Each channel moves towards its farther end, where at least half of its range is free.
    far_end = (v["background"] < 0.5).astype(np.float32)
    foreground = v["background"] + v["contrast"] * v["channel_contrast"] * (far_end - v["background"])
    blob_px = np.hypot(X_PX - v["blob_px"][:, :1], Y_PX - v["blob_px"][:, 1:]) - v["blob_radius_px"]
    line_px = np.abs(np.cos(v["line_angle"]) * X_PX + np.sin(v["line_angle"]) * Y_PX - v["line_offset_px"])

    canvas = np.broadcast_to(v["background"], (n, 3, IMAGE_SIZE, IMAGE_SIZE)).copy()
    _paint(canvas, blob_px, v["blob_colour"], v["softness_px"])
    _paint(canvas, _shape_distance_px(v), foreground, v["softness_px"])
    _paint(canvas, line_px - v["line_width_px"] / 2, v["line_colour"], v["softness_px"])
    for wave in range(2):
        kx, ky = (v["wave_per_px"][:, k : k + 1] for k in (2 * wave, 2 * wave + 1))
        ripple = np.sin(kx * X_PX + ky * Y_PX + v["wave_phase"][:, wave : wave + 1])
        canvas += ripple * v["wave_colour"][:, 3 * wave : 3 * wave + 3]
    canvas += v["noise_std"] * noise_stream.standard_normal(canvas.shape, np.float32)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def _shape_distance_px(v: dict[str, Array]) -> Array:
    """Return the signed distance (n, 1, 32, 32) to each image's shape, posed by `v`; image i is of class i % 10."""
    x_px, y_px = X_PX - v["centre_px"][:, :1], Y_PX - v["centre_px"][:, 1:]
    c, s = np.cos(v["angle"]), np.sin(v["angle"])
    # One axis is stretched by as much as the other is shortened, so that the area stays.
    x = (c * x_px + s * y_px) / (v["radius_px"] * v["stretch"])
    y = (c * y_px - s * x_px) / (v["radius_px"] / v["stretch"])
    distance_px = np.empty_like(x)
    for target, distance in enumerate(SHAPES.values()):
        rows = slice(target, None, len(SHAPES))
        distance_px[rows] = distance(x[rows], y[rows]) * v["radius_px"][rows]
    return distance_px


def _paint(canvas: Array, distance_px: Array, colour: Array, softness_px: Array) -> None:
    """Blend `colour` (n, 3, 1, 1) into `canvas` (n, 3, 32, 32) where `distance_px` (n, 1, 32, 32) is negative."""
    coverage = np.clip(0.5 - distance_px / softness_px, 0, 1)
    canvas += coverage * (colour - canvas)
