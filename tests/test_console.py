"""What a terminal shows while a run trains."""

import re
import time
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console as RichConsole
from rich.progress import Task, TaskID

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console, Numbers, Terminal, listing
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.recipes import own_config
from cifar_dist.text import clock

LINE = {"step": 1000, "loss": 1.23456, "accuracy": 0.5678, "lr": 0.04991, "images_per_second": 12345.6}


def test_nothing_that_is_shown_controls_the_terminal(capsys):
    console, hostile = Console(speaks=True), "a\x1b[2J\x07\x9b31mb\u202ec\udce9\r"
    console.say(hostile, "green")
    console.rich.print(f"[bold]{hostile}[/]")
    table = listing()
    table.add_column("x")
    table.add_row(hostile)
    console.rich.print(table)
    out = capsys.readouterr().out
    assert out.count("b") == 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", out)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (125, "2:05"), (3725, "1:02:05"), (86_400, "1 day 0:00:00"), (200_000, "2 days 7:33:20")],
)
def test_long_times_have_days(seconds, shown):
    assert clock(seconds) == shown


def test_rich_itself_still_does():
    output = StringIO()
    terminal = Terminal(file=output, force_terminal=True, color_system="standard")
    terminal.print("[red]x[/]")
    assert "\x1b[31mx" in output.getvalue()


@pytest.fixture
def shown(monkeypatch):
    """Return what the progress line says at some step, on a terminal of some width."""

    def show(width: int, *steps: int, line: dict | None = None) -> str:
        output = StringIO()
        console = Console(speaks=True)
        console.rich, console.live = RichConsole(file=output, force_terminal=True, width=width), True
        monkeypatch.setattr("cifar_dist.console.REFRESH_S", 0.0)
        console.start_progress(BatchPlan.from_config(TrainConfig(epochs=100, batch_size=128), 45_000, 1), 0)
        for step in steps:
            console.advance(step)
        if line:
            console.train_line(line, 35_200, 100.0)
        console.stop_progress()
        return re.sub(r"\x1b\[[?\d;]*\w", "", output.getvalue()).strip().splitlines()[-1].rpartition("\r")[2]

    return show


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_line_has_whole_numbers_the_most_important_first_and_a_bar(shown, width):
    text = shown(width, 5, line=LINE)
    assert len(text) <= width and "…" not in text
    assert text.startswith("epoch 3/100 ") and "left 5:5" in text
    assert len(re.findall("[━╸╺]", text)) >= 10
    for least, part in (
        (60, "12,346 images/s"),
        (80, "1000/35200"),
        (80, "accuracy 56.78 %"),
        (100, "loss 1.2346"),
        (160, "lr 0.04991"),
    ):
        assert (part in text) == (width >= least), (width, part)


def test_from_the_first_steps_on_there_is_a_speed_and_the_time_left(shown):
    text = shown(80, 5)
    assert text.startswith("epoch 1/100 ") and "5/35200" in text
    assert re.search(r"left [\d:]+  [\d,]+ images/s", text)


def on_terminal(width: int = 80) -> tuple[Console, StringIO]:
    """A console that is live, and what it writes."""
    output, console = StringIO(), Console(speaks=True)
    console.rich, console.live = RichConsole(file=output, force_terminal=True, width=width), True
    return console, output


def frames(output: StringIO) -> list[str]:
    """The lines that were on the terminal for a moment."""
    text = re.sub(r"\x1b\[[?\d;]*\w", "", output.getvalue())
    return [line.strip() for line in re.split("[\r\n]", text) if line.strip()]


def test_a_bar_shows_what_is_done_and_goes_away():
    console, output = on_terminal()
    with console.bar("preparing x", "images") as report:
        report(0, 0)
        report(15_000, 60_000)
        assert console._progress is not None
        console._progress.refresh()
    shown = frames(output)
    assert any(re.fullmatch(r"preparing x [━╸╺ ]+ for 0:00", line) for line in shown)
    assert any(re.fullmatch(r"preparing x [━╸╺ ]+ left 0:00  15,000/60,000 images", line) for line in shown), shown[-3:]
    assert console._progress is None
    assert output.getvalue().endswith("\x1b[1A\x1b[2K")  # the line is taken away again


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (15_000, 60_000, "left 1:20  15,000/60,000 images"),  # 500/s: 90 s are left, of which 10 have passed since
        (0, 60_000, "for 0:40  0/60,000 images"),
        (0, None, "for 0:40"),
        (60_000, 60_000, "left 0:00  60,000/60,000 images"),
    ],
)
def test_the_time_left_is_by_the_speed_so_far_and_runs_on_between_reports(done, total, shown):
    now = time.monotonic()
    fields = {"numbers": None, "unit": "images", "begun": now - 40, "told": now - 10}
    task = Task(TaskID(0), "x", total, done, lambda: 0.0, fields=fields)
    assert Numbers().render(task).plain == shown


def test_what_is_over_in_a_moment_is_not_shown():
    console, output = on_terminal()
    with console.bar("validation") as report:
        report(500, 1000)
        report(1000, 1000)
    assert frames(output) == []


def test_a_second_bar_stands_below_the_runs_and_leaves_it(monkeypatch):
    console, output = on_terminal()
    console.start_progress(BatchPlan.from_config(TrainConfig(epochs=100, batch_size=128), 45_000, 1), 0)
    monkeypatch.setattr("cifar_dist.console.REFRESH_S", 0.0)
    console.advance(5)
    with console.bar("validation", "images") as report:
        report(500, 1000)
        assert console._progress is not None
        console._progress.refresh()
        assert any("500/1,000 images" in line for line in frames(output))
    assert console._progress is not None
    assert [task.description for task in console._progress.tasks] == ["epoch 1/100"]
    console.stop_progress()


def test_elsewhere_than_on_a_terminal_a_bar_says_nothing(capsys):
    with Console(speaks=True).bar("preparing x") as report:
        report(0, 0)
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_of_the_options_only_those_are_shown_that_are_not_the_recipes_own(capsys):
    own = own_config("default", "lenet")
    console = Console(speaks=True)
    console.configuration(replace(own, seed=7, augment=(), output_dir="runs/x"), own)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "lenet with recipe default, but for"
    assert " ".join(rest).split() == ["augment", "none", "seed", "7"]
    console.configuration(own, own)
    assert capsys.readouterr().out == "lenet with recipe default, as it is\n"
    console.configuration(own, own_config("another version's", "lenet"))
    shown = capsys.readouterr().out
    assert shown.startswith("lenet with recipe default\n") and "momentum" in shown and "bias-lr-per-image" not in shown
