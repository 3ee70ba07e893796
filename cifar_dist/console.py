"""What a run says: configuration, live progress, validation lines, the final table. Every rank but 0 is silent."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from cifar_dist.config import TrainConfig, flag
from cifar_dist.progress import Report, unheard
from cifar_dist.record.lines import EvalLine, TrainLine
from cifar_dist.text import clock, fitting, length, option_text, percent, printable, shortened

if TYPE_CHECKING:  # commands that load no data need no torch
    from torch import Tensor

    from cifar_dist.data.dataset import Dataset
    from cifar_dist.data.splits import Splits
    from cifar_dist.inputs.plan import BatchPlan

REFRESH_S = 0.25
SHORTEST_BAR = 10  # columns
LONGEST_NAME = 40  # columns, of what a second bar is about
SHOWN_ELSEWHERE = ("model", "recipe", "output_dir", "resume")


class Terminal(RichConsole):
    """Standard output, as long as there is somebody at its other end: a run doesn't end because nobody listens any more."""

    def __init__(self, **options: Any) -> None:
        with suppress(AttributeError):  # somebody else's object in its place
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # an ASCII terminal has no ±
        super().__init__(highlight=False, **options)

    def on_broken_pipe(self) -> None:
        self.mute()

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:  # a full disk behind it, a terminal that was closed
            self.mute()

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is shown; whatever names, files and other people's runs hold, only rich itself controls the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def mute(self) -> None:
        """Say nothing from now on."""
        self.quiet = True
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """A run's voice. On a terminal a live bar, elsewhere one plain line per interval."""

    def __init__(self, speaks: bool) -> None:
        self.rich = Terminal(quiet=not speaks, soft_wrap=True)
        self.live = self.rich.is_terminal and speaks
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0.0
        self._gap_explained = False
        self._line: TrainLine | None = None  # the last one

    def say(self, text: str, style: str | None = None) -> None:
        self.rich.print(escape(text), style=style)

    def warn(self, text: str) -> None:
        self.say(text, "bold yellow")

    def configuration(self, config: TrainConfig, own: TrainConfig | None) -> None:
        """Print the model, the recipe, and every option that is other than the recipe's `own`; all, where that isn't known."""
        cells = []
        for f in fields(TrainConfig):
            other, values = f.metadata["only_with"] or (None, ())
            if f.name in SHOWN_ELSEWHERE or (other and getattr(config, other) not in values):
                continue
            value = getattr(config, f.name)
            if not own or value != getattr(own, f.name):
                cells.append((f"[dim]{flag(f.name)[2:]}[/]", escape(option_text(value))))
        columns = 3 if self.live and shutil.get_terminal_size().columns >= 100 else 2
        rows = -(-len(cells) // columns)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for _ in range(2 * columns):
            table.add_column(overflow="fold")
        for row in range(rows):
            table.add_row(*(cell for pair in cells[row::rows] for cell in pair))
        what = "" if not own else ", but for" if cells else ", as it is"
        self.rich.print(f"[bold]{config.model}[/] with recipe [bold]{escape(config.recipe)}[/]{what}")
        if cells:
            self.rich.print(table)

    def plan(self, plan: "BatchPlan", dataset: "Dataset", splits: "Splits", where: str, num_parameters: int) -> None:
        """Print what is trained on, the batch arithmetic and the length of the run."""
        val = f"{len(splits.val):,} validation" if splits.val else "no validation"
        self.say(
            f"data         {dataset.name}: {len(splits.train):,} train, {val}, {len(splits.test):,} test, {len(dataset.classes)} classes"
        )
        self.say(f"model        {num_parameters:,} parameters on {where}")
        self.say(f"global batch {plan.arithmetic()}")
        if plan.world_size > 1 and not plan.shards:
            scope = "" if plan.synchronised else ", and batch norm, where there is any, sees other batches"
            note = f"on another number of processes sums round differently{scope}"
            self.say(f"             {note}; with --exact-shards {plan.world_size} every bit is the same", "dim")
        self.say(f"length       {length(plan.total_steps, plan.steps_per_epoch)}")

    def synthetic_note(self, synthetic: bool) -> None:
        if synthetic:
            self.warn(
                "*** SYNTHETIC DATA: drawn shapes, not CIFAR-10. No number of this run says anything about CIFAR-10. ***"
            )

    def start_progress(self, plan: "BatchPlan", step: int) -> None:
        if self.live:
            self._progress = self._bars()
            self._plan, self._begun, self._line = plan, (time.monotonic(), step), None
            self._task = self._progress.add_task("", total=plan.total_steps, completed=step, numbers="")
            self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar, at most every `REFRESH_S` seconds."""
        if self._progress and (now := time.monotonic()) - self._shown >= REFRESH_S:
            self._shown = now
            self._show(step)

    def _show(self, step: int) -> None:
        """Draw the bar with as many numbers as there is room for; until there is a line, with the speed since the start."""
        plan, (begun, first), line = self._plan, self._begun, self._line
        samples = plan.samples_before(step)
        speed = line["images_per_second"] if line else 0.0
        if not line and step > first:
            speed = (samples - plan.samples_before(first)) / (time.monotonic() - begun)
        numbers = [f"{step}/{plan.total_steps}"]
        if speed:
            numbers = [
                f"left {clock((plan.samples_before(plan.total_steps) - samples) / speed)}",
                f"{speed:,.0f} images/s",
                *numbers,
            ]
        if line:
            numbers += [f"accuracy {percent(line['accuracy'])}", f"loss {line['loss']:.4f}", f"lr {line['lr']:.4g}"]
        epoch = f"epoch {min(step // plan.steps_per_epoch + 1, plan.epochs)}/{plan.epochs}"
        shown = fitting(numbers, self.rich.width - len(epoch) - SHORTEST_BAR - 2)
        assert self._progress
        self._progress.update(self._task, completed=step, description=epoch, numbers=shown)

    def train_line(self, line: TrainLine, total_steps: int, left_s: float) -> None:
        if self._progress:
            self._line = line
            self._show(line["step"])
            return
        self.say(
            f"step {line['step']:>6}/{total_steps}  epoch {line['epoch']:6.2f}  loss {line['loss']:.4f}  "
            f"accuracy {percent(line['accuracy']):>7}  lr {line['lr']:.4g}  "
            f"{line['images_per_second']:,.0f} images/s  left {clock(left_s)}"
        )

    def val_line(self, line: EvalLine, best: bool, gap: float | None) -> None:
        """`gap` is the accuracy in training since the validation before, minus this one's."""
        where = f"validation at step {line['step']}, epoch {line['epoch']:.2f}"
        text = f"{where}: accuracy {percent(line['accuracy'])}, top-2 {percent(line['top2_accuracy'])}, loss {line['loss']:.4f}"
        if gap is not None:
            meaning = "" if self._gap_explained else " (training minus this)"
            text, self._gap_explained = f"{text}, gap {100 * gap:+.1f} points{meaning}", True
        self.say(text + ("  (best so far)" if best else ""), "green" if best else None)

    def stop_progress(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _bars(self, **options: Any) -> Progress:
        """Return a display of bars, one below the other, each with its name and numbers."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(None), Numbers(Column(no_wrap=True)))
        return Progress(*columns, console=self.rich, expand=True, **options)

    @contextmanager
    def bar(self, name: str, unit: str = "") -> Iterator[Report]:
        """Show, on a terminal, how far something is that takes a while: below the run's bar, or alone, and gone at its end.

        What is over before `REFRESH_S` has passed isn't shown, unless it reports 0 to say that it has begun. Several threads may
        have a bar each, within one that is there the whole time.
        """
        if not self.live:
            yield unheard
            return
        bars, alone, begun = self._progress, self._progress is None, time.monotonic()
        if bars is None:
            bars = self._progress = self._bars(transient=True)
        task: TaskID | None = None

        def report(done: float, total: int) -> None:
            nonlocal task
            now = time.monotonic()
            if task is None and (done == 0 or now - begun >= REFRESH_S):
                fields: dict[str, Any] = {"unit": unit, "begun": begun, "told": now, "numbers": None}
                task = bars.add_task(shortened(name, LONGEST_NAME), total=total or None, completed=int(done), **fields)
                bars.start()
            elif task is not None:
                bars.update(task, completed=done, total=total or None, told=now)

        try:
            yield report
        finally:
            if alone:
                self.stop_progress()
            elif task is not None:
                bars.remove_task(task)

    def result_table(self, classes: Sequence[str], confusion: "Tensor", second: "Tensor", title: str) -> None:
        """Print accuracy per class, and in all: `confusion` (K, K) and `second` (K,) as of an `EvalResult`."""
        meaning = "second guess: wrong at first, right with the next class; top-2: either"
        table = Table(title=title, title_justify="left", caption=meaning, caption_justify="left")
        for name in ("class", "images", "correct", "accuracy", "second guess", "top-2"):
            table.add_column(name, justify="left" if name == "class" else "right")
        columns = [counts.tolist() for counts in (confusion.sum(dim=1), confusion.diagonal(), second)]
        for name, n, hits, near in [*zip(classes, *columns, strict=True), ("all", *map(sum, columns))]:
            accuracy, top2 = (percent(count / n if n else None) for count in (hits, hits + near))
            if name == "all":
                table.add_section()
            cells = (escape(name), str(n), str(hits), accuracy, str(near), top2)
            table.add_row(*cells, style="bold" if name == "all" else None)
        self.rich.print(table)


class Numbers(ProgressColumn):
    """What stands right of a bar: its own numbers or, where it has none, the time left, and how much of how much is done."""

    def render(self, task: Task) -> Text:
        if task.fields["numbers"] is not None:
            return Text(task.fields["numbers"], no_wrap=True)
        now, begun, told, done, total = (
            time.monotonic(),
            task.fields["begun"],
            task.fields["told"],
            task.completed,
            task.total,
        )
        when = (
            f"left {clock((told - begun) * (total - done) / done - (now - told))}"
            if done and total
            else f"for {clock(now - begun)}"
        )
        share = f"  {int(done):,}/{int(total):,} {task.fields['unit']}" if total else ""
        return Text(f"{when}{share}".rstrip(), no_wrap=True)


def listing() -> Table:
    """Return a table without lines, an empty line between its rows."""
    return Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
