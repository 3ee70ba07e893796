"""What a terminal shows while a run trains."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console, Terminal, listing
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
