"""`python -m cifar_dist predict RUN FILE...`: what a model sees in images, as a table, as JSON lines, on a contact sheet."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from cifar_dist.cli import command_parser
from cifar_dist.config import POSITIVE, TrainConfig, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.files import write_atomically
from cifar_dist.inference.predictions import LARGEST_FILE, Prediction, Source, look_at, sources
from cifar_dist.inference.predictor import Predictor, load_model
from cifar_dist.inference.settings import SHARED, prepare
from cifar_dist.options import add_flags, check_output
from cifar_dist.text import count, percent, printable

STDIN, SYNTHETIC = "-", "synthetic"
MOST_ON_SHEET = 400  # images: 50 rows
HELP = "a run folder or a weights file; then image files, folders (all images in them, other folders too), or - for one image's bytes "
HELP += "on standard input; of each image the middle square is seen, in as many pixels as the model was trained on"
EXIT = "Exit status: 0 all images read, 1 some not, 2 none, or wrong usage. A list of names: xargs -d '\\n' ... < LIST."


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The options of `predict` that `train.py` doesn't have."""

    top: int = option(3, "how many classes an image, the most probable first", must_be=POSITIVE)
    temperature: float | None = option(
        None,
        "what logits are divided by (default: what eval.py wrote beside the weights, if anything)",
        must_be=POSITIVE,
    )
    json: bool = option(
        False, "a JSON object an image and line: file, top (class, probability), error (default: a table)"
    )
    sheet: str = option("", "a PNG with the images, the most probable class and its probability (default: none)")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_output(self.sheet, "--sheet")
        if self.sheet and not self.sheet.lower().endswith(".png"):
            raise UserError(f"--sheet {self.sheet} is written as PNG; give a name that ends in .png")


def main(argv: Sequence[str]) -> int:
    """Say what the model sees in every image, and return the exit status; raises `UserError`."""
    parser = command_parser("predict", EXIT, usage="%(prog)s RUN FILE... [options]")
    parser.add_argument("words", nargs="*", metavar="RUN FILE", help=HELP)
    add_flags(parser, PredictOptions)
    add_flags(parser, TrainConfig, SHARED)
    given = parser.parse(argv)
    run, *names = given.pop("words") or [""]
    shared = {name: given.pop(name) for name in SHARED if name in given}
    options = PredictOptions(**given)
    if not names:
        raise UserError("which model and images? python -m cifar_dist predict runs/NAME IMAGE.png FOLDER ...")
    check_stdin(names)
    prepare(shared)
    precision = shared.get("mixed_precision")
    model = load_model(
        run, device=shared.get("device", "auto"), mixed_precision=precision, temperature=options.temperature
    )
    return show(model, names, options)


def show(model: Predictor, names: Sequence[str], options: PredictOptions) -> int:
    """Print and draw what the model says of these files, name those that can't be read, and return the exit status."""
    console, shown = Console(speaks=True), Sheet(options.sheet)
    told: list[Prediction] = []
    if model.dataset == SYNTHETIC:
        complain("the model knows drawn shapes alone: it was trained on SYNTHETIC DATA")
    good = bad = 0
    for prediction, pixels in look_at(model, _sources(names), options.top):
        if prediction.error:
            bad += 1
            complain(f"{prediction.name} {prediction.error}")
        else:
            good += 1
        if options.json:
            console.rich.print(json_line(prediction), markup=False, emoji=False)
        elif not prediction.error:
            told.append(prediction)
        shown.add(prediction, pixels)
        if console.rich.quiet and not options.sheet:  # nobody listens any more
            return FAILED if bad else FINISHED
    if good and options.json:
        complain(model.calibration)
    elif good:
        if not console.live:
            console.rich.width = 10_000  # half a name is none, to a program
        console.rich.print(table(told))
        console.say(f"probabilities {model.calibration}", "dim")
    if good and options.sheet:
        shown.write(good, model)
    if not good:
        raise UserError(f"none of {count(bad, 'image')} could be read; the lines above say why")
    return FAILED if bad else FINISHED


def check_stdin(names: Sequence[str]) -> None:
    """Raise `UserError` where - can't be an image."""
    if names.count(STDIN) > 1:
        raise UserError("- is given twice, and standard input holds one image; leave one out")
    if STDIN in names and sys.stdin.isatty():
        raise UserError(
            "- reads an image's bytes from standard input, which is a terminal; write - < IMAGE, or a file's name"
        )


def _sources(names: Iterable[str]) -> Iterator[Source]:
    for name in names:
        if name != STDIN:
            yield from sources([name])
            continue
        content = sys.stdin.buffer.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            yield Source(STDIN, error=f"has more than {LARGEST_FILE:,} bytes; give one image")
        else:
            yield Source(STDIN, content)


def complain(line: str) -> None:
    print(printable(" ".join(line.splitlines())), file=sys.stderr, flush=True)


def json_line(prediction: Prediction) -> str:
    """Return ASCII: a name's other characters are escaped, and come back when it is read."""
    top = [{"class": guess.label, "probability": guess.probability} for guess in prediction.top]
    return json.dumps({"file": prediction.name, "top": top, "error": prediction.error or None})


def table(predictions: Sequence[Prediction]) -> Table:
    """Return a row an image: its name, and class by class how probable it is."""
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    found.add_column("file", overflow="fold")
    for place in range(1, 1 + max(len(prediction.top) for prediction in predictions)):
        found.add_column("class" if place == 1 else f"{place}.", overflow="fold")
        found.add_column("", justify="right", no_wrap=True)
    for prediction in predictions:
        cells = [Text(_shown(prediction.name))]
        for place, guess in enumerate(prediction.top):
            style = "" if place else "bold"
            cells += [Text(_shown(guess.label), style), Text(percent(guess.probability), style)]
        found.add_row(*cells)
    return found


def _shown(name: str) -> str:
    """Return a name in one line, as wide as it will be."""
    return printable(" ".join(name.split("\n")).expandtabs(1))


class Sheet:
    """The contact sheet: the first images, as the model saw them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.shots: list[tuple[Prediction, np.ndarray]] = []

    def add(self, prediction: Prediction, pixels: np.ndarray | None) -> None:
        if self.path and pixels is not None and len(self.shots) < MOST_ON_SHEET:
            self.shots.append((prediction, pixels))

    def write(self, good: int, model: Predictor) -> None:
        """Write the PNG, of `good` images that there are; raises `OSError`."""
        from cifar_dist.report.canvas import rough_percent  # with matplotlib, which only this needs
        from cifar_dist.report.image_grids import Caption, grid

        captions = []
        for prediction, _ in self.shots:
            label, probability = prediction.top[0]
            captions.append(Caption(((_shown(label), rough_percent(probability)),), _shown(Path(prediction.name).name)))
        of = f"the first {len(self.shots)} of {good:,} images" if good > len(self.shots) else count(good, "image")
        of += ", as the model sees them, with the most probable class"
        trained = f"{model.name}, trained on {model.dataset}" + ", SYNTHETIC DATA" * (model.dataset == SYNTHETIC)
        lines = [trained, of, f"probabilities {model.calibration}"]
        buffer = BytesIO()
        grid(np.stack([pixels for _, pixels in self.shots]), captions, map(printable, lines)).save(buffer, "PNG")
        write_atomically(Path(self.path), buffer.getvalue())
