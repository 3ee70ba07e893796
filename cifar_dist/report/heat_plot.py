"""The picture of a search's heat maps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cifar_dist.report.canvas import VERMILLION, new_figure, plain, save, shorten, wrap
from cifar_dist.report.heat import HeatMap

ACROSS = 2  # maps beside each other
LETTERS = 18  # of a value on an axis


def draw_heat_maps(
    maps: Sequence[HeatMap], text: Callable[[float], str], maximize: bool, path: Path, title: str
) -> Path:
    """Draw the maps on one scale, each number in its cell as `text` spells it, the best of a map in a frame.

    A cell without a measurement is empty. Shades are brighter the larger the number.
    """
    across = min(ACROSS, len(maps))
    down = -(-len(maps) // across)
    panel = max(5.0, max(1.6 + 0.85 * len(one.columns) for one in maps))
    heights = [max(1.8 + 0.4 * len(one.rows) for one in maps[i : i + across]) for i in range(0, len(maps), across)]
    figure = new_figure(title, panel * across, 0.6 + sum(heights))
    axes = figure.subplots(down, across, squeeze=False, height_ratios=heights).flatten()
    means = [mean for one in maps for row in one.means for mean in row if mean is not None]
    for place, one in zip(axes, maps, strict=False):
        _draw(place, one, (min(means), max(means)), text, maximize)
        place.set_title(wrap(one.note, panel - 1.5), fontsize=9)
    for place in axes[len(maps) :]:
        place.set_axis_off()
    return save(figure, path)


def _draw(axes: Axes, one: HeatMap, limits: tuple[float, float], text: Callable[[float], str], maximize: bool) -> None:
    numbers = np.array([[np.nan if mean is None else mean for mean in row] for row in one.means])
    axes.imshow(numbers, cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto")
    middle = sum(limits) / 2
    for (row, column), value in np.ndenumerate(numbers):
        if not np.isnan(value):
            ink = "black" if value > middle else "white"
            axes.text(column, row, text(value), ha="center", va="center", color=ink, fontsize=9)
    row, column = one.best(maximize)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILLION, linewidth=3))
    slanted = sum(len(value) for value in one.columns) > 9 * len(one.columns)
    labels = [plain(shorten(value, LETTERS)) for value in one.columns]
    axes.set_xticks(range(len(labels)), labels, rotation=20 * slanted, ha="right" if slanted else "center")
    axes.set_yticks(range(len(one.rows)), [plain(shorten(value, LETTERS)) for value in one.rows])
    axes.set(xlabel=plain(one.column_name), ylabel=plain(one.row_name))
