"""What all pictures have in common: colours, titles, names cut to fit, and files. Needs no display, keeps no state."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Of Okabe & Ito's palette, which colour-blind readers can tell apart; never the only mark of a difference.
BLUE, VERMILLION, NOTE = "#0072B2", "#D55E00", "#555555"
MIDTONE = (
    "#7d7d7d"  # as far from white as from a dark page (contrast 4.1): of pictures without a ground, which pages show
)
TRAIN, VAL, RIGHT, WRONG = BLUE, VERMILLION, BLUE, VERMILLION
DPI = 110
TITLE_POINTS = 11
LETTERS_PER_INCH = 10  # of titles and of class names; few letters are wider


def new_figure(title: str, width: float, height: float) -> Figure:
    """Return an empty figure under its title; in inches."""
    figure = Figure((width, height), DPI, layout="constrained")
    figure.suptitle(wrap(title, width), fontsize=TITLE_POINTS)
    return figure


def new_axes(title: str, size: tuple[float, float], left: float, right: float, bottom: float) -> tuple[Figure, Axes]:
    """Return a figure and, of `size` (width, height), what is drawn in; in inches. Fitting many labels would take seconds."""
    width = left + size[0] + right
    text = wrap(title, width)
    height = bottom + size[1] + 0.5 + 0.2 * text.count("\n")
    figure = Figure((width, height), DPI)
    figure.text(0.5, 1 - 0.1 / height, text, fontsize=TITLE_POINTS, ha="center", va="top")
    return figure, figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))


def save(figure: Figure, path: Path, transparent: bool = False) -> Path:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, transparent=transparent)
    return path


def wrap(text: str, width: float) -> str:
    """Break a title into lines of `width` inches at most: its end may say that the data is synthetic, and must show."""
    lines = [textwrap.fill(line, int(width * LETTERS_PER_INCH)) for line in text.split("\n")]
    return plain("\n".join(lines))


def shorten(name: str, letters: int) -> str:
    """Return a class's name, the middle left out if it has more than `letters`: folders often share their beginning."""
    if len(name) > letters:
        tail = (letters - 1) // 2
        return f"{name[: letters - 1 - tail]}…{name[-tail:]}"
    return name


def plain(text: str) -> str:
    """Keep matplotlib from reading mathematics between dollar signs."""
    return text.replace("$", r"\$")


def rough_percent(share: float) -> str:
    """Return a share in [0, 1] as whole percent, but never one that looks certain and isn't."""
    if 0.995 <= share < 1:
        return ">99 %"
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
