"""What a model's last layer sees: images as points of a plane, near each other where their features are."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.report.canvas import LETTERS_PER_INCH, MIDTONE, TITLE_POINTS, plain, save, shorten, wrap

MOST_IMAGES = 2000  # t-SNE takes seconds for as many, and more points than these cover each other
BLOCK = 500
PERPLEXITY = 30.0  # scikit-learn's own
MARKERS = "os^vDPX*<>"
WIDTH, HEIGHT = 9.0, 7.0  # inches, without the classes' names
COLUMNS, ROW_HEIGHT = 4, 0.22  # of these, below the points; in inches


def check_installed() -> None:
    """Raise `UserError` where scikit-learn isn't installed."""
    if find_spec("sklearn") is None:
        raise UserError(
            "--embedding needs scikit-learn, which isn't installed; pip install scikit-learn, or leave it out"
        )


def choose(num_images: int, seed: int) -> np.ndarray:
    """Return the places of MOST_IMAGES images at most, drawn by `seed`, in their order."""
    drawn = np.random.default_rng(seed).choice(num_images, min(MOST_IMAGES, num_images), replace=False)
    return np.sort(drawn)


@torch.inference_mode()
def last_features(model: nn.Module, pixels: np.ndarray, normalize: Normalize) -> np.ndarray:
    """Return what enters the model's last linear layer, (N, D) float32, for images (N, S, S, 3) uint8.

    Raises `UserError` for a model without a linear layer.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "this model has no linear layer whose inputs could be embedded; a map draws itself: plots/map.png"
        )
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).float().cpu()))
    try:
        for block in torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).split(BLOCK):
            model(normalize(block))
    finally:
        hook.remove()
    features: np.ndarray = torch.cat(seen).numpy()
    return features


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """Return t-SNE's points (N, 2) float32 of features (N, D) (van der Maaten and Hinton 2008, by scikit-learn)."""
    from sklearn.manifold import TSNE

    if len(features) < 5:
        raise UserError(f"an embedding of {len(features)} images shows nothing; give 5 or more")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    points: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return points


def draw_embedding(
    points: np.ndarray, targets: np.ndarray, classes: Sequence[str], path: Path, title: Sequence[str]
) -> Path:
    """Draw points (N, 2), a colour and a marker for each class. Without a ground: the page, which may be dark, shows it."""
    rows = -(-len(classes) // COLUMNS)
    figure = Figure((WIDTH, HEIGHT + ROW_HEIGHT * rows), 110, layout="constrained")
    figure.suptitle("\n".join(wrap(line, WIDTH) for line in title), fontsize=TITLE_POINTS, color=MIDTONE)
    axes = figure.subplots()
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number, name in enumerate(classes):
        own = points[targets == number]
        if len(own):
            label = plain(shorten(name, LETTERS_PER_INCH * 2))
            marker = MARKERS[number % len(MARKERS)]
            axes.scatter(own[:, 0], own[:, 1], s=14, marker=marker, color=palette(number % palette.N), label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    axes.patch.set_visible(False)
    axes.spines[:].set_color(MIDTONE)
    figure.legend(loc="outside lower center", frameon=False, labelcolor=MIDTONE, ncols=COLUMNS)
    return save(figure, path, transparent=True)
