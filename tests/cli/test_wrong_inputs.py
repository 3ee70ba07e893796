"""Wrong inputs made from the tables of options: every option, wrong in every way, for every command, on one process and two."""

import os
import re
import socket
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from accelerate.state import AcceleratorState
from helpers.runs import words

from cifar_dist.__main__ import main as command
from cifar_dist.cli import COMMANDS, evaluate
from cifar_dist.cli import train as train_command
from cifar_dist.cli.compare import CompareOptions
from cifar_dist.cli.latency import LatencyOptions
from cifar_dist.cli.predict import PredictOptions
from cifar_dist.config import TrainConfig, flag
from cifar_dist.options import PATHS

ANY_STRING = {"wandb_group", "wandb_tags"}
SMALL = {"--model": "lenet", "--steps": "1", "--batch-size": "8", "--threads": "1", "--wandb": "disabled"}
MAINS = {"train.py": train_command.main, "eval.py": evaluate.main}


def kind_of(hint: Any) -> type:
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    return {Literal: str, tuple: tuple}.get(get_origin(hint), hint)


def wrong_values(config: type, names: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the words of each wrong use of each option: nothing, another type, below, above, nan, empty, twice, a near miss."""
    hints = get_type_hints(config)
    for f in fields(config):
        name, kind = flag(f.name), kind_of(hints[f.name])
        if names and f.name not in names:
            continue
        near = name[:-1] if len(name) > 5 else f"{name}x"
        if kind is bool:
            yield from ([f"{name}=maybe"], [name, name.replace("--", "--no-")], [near])
            continue
        yield [name]
        yield [near, "1"]
        if f.name in ANY_STRING:
            continue
        yield [name, ""]
        if f.name not in PATHS:  # which may have any name
            yield [name, "\x1b[31m\u202e"]
        if kind in (int, float):
            yield from ([name, word] for word in ("x", "nan", "-1", "-inf", "1e999", "0x10", "1,5"))
            yield [name, "1", name, "2"]
        if kind is int:
            yield from ([name, word] for word in ("1.5", "inf", "9" * 400))


def clashes() -> Iterator[list[str]]:
    """Yield options beside what they have no effect with."""
    hints = get_type_hints(TrainConfig)
    values = {int: "3", float: "0.5", tuple: "0.5"}
    for f in fields(TrainConfig):
        if f.metadata["only_with"]:
            other, needed = f.metadata["only_with"]
            kind = kind_of(hints[f.name])
            without = next(value for value in get_args(hints[other]) if value not in needed)
            own = [flag(f.name)] if kind is bool else [flag(f.name), values[kind]]
            yield [*own, flag(other), without.replace("_", "-")]


def wrong_files(folder: Path) -> Iterator[list[str]]:
    """Yield paths that are there and of the wrong kind, or aren't."""
    (folder / "a file").write_text("{")
    (folder / "nothing").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    for path in ("nowhere/at/all", "a file", "nothing", "pipe", "loop", "/dev/null", "/proc/self/mem", "x" * 300):
        shown = path if path.startswith("/") else str(folder / path)
        yield ["--data", shown]
        yield ["--resume", shown]
        yield ["--output-dir", f"{shown}/run"] if path != "nothing" and "nowhere" not in path else ["--resume", path]


ENVIRONMENTS = [
    {"WORLD_SIZE": "x"},
    {"RANK": "0"},
    {"WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    {"LOCAL_RANK": "1.5"},
    {"ACCELERATE_MIXED_PRECISION": "fp8"},
    {"ACCELERATE_DYNAMO_BACKEND": "eager"},
    {"WANDB_MODE": "sometimes"},
]

OTHERS = {
    "compare": [[], ["nowhere"], ["--metric", "x", "."], ["--baseline"], [".", "--output", "/dev/null/x"]],
    "report": [[], ["nowhere"], ["--data-dir"]],
    "verify": [[], ["nowhere"], [".", "--segments", "-1"], [".", "--segments", "x"], [".", "--output", "/dev/null"]],
    "bisect": [[], ["nowhere"], ["nowhere", "nowhere"], ["a", "b", "c"]],
    "summary": [["nonsense"], ["lenet", "--batch-size", "-1"], ["lenet", "resnet"], ["--model"]],
    "models": [["x"], ["--y"]],
    "recipes": [["nonsense"], ["--model"], ["default", "--model", "nonsense"]],
    "prepare": [["--data", "nonsense"], ["--data"], ["x"], ["--data", "/dev/null"]],
    "doctor": [["--lr", "1"], ["--dry-run", "--lr", "x"], ["x"], ["--dry-run", "--model", "nonsense"]],
    "sweep": [[], ["nowhere.yaml"], ["sengar2024", "--index", "-1"], ["sengar2024", "--index", "x"], ["/dev/null"]],
    "submit": [["x"], ["--nodes", "0"], ["--seeds", "x"], ["--sweep", "nowhere"]],
    "queue": [["x"], ["--all", "1"]],
    "sync": [["nowhere"], ["--x"]],
    "predict": [[], ["nowhere"], ["nowhere", "x.png"], ["nowhere", "-", "-"], ["nowhere", "x.png", "--sheet", "x.jpg"]],
    "export": [[], ["nowhere"], ["nowhere", "--format", "onxx"], ["nowhere", "--push", "no/such/name"]],
    "explain": [[], ["nowhere"], ["nowhere", "--output", "no/such/x.json"]],
    "latency": [[], ["nowhere"], ["./lenet"], ["lenet", "--output", "x.png"], ["lenet", "--device", "gpus"]],
    "nonsense": [[], ["--help"]],
}


ABSURD_MODELS = {
    "mlp": [
        "width=100000000",
        "hidden_layers=100000000",
        "width=10000 hidden_layers=1000",
        "width=0",
        "width=-1",
        "width=x",
    ],
    "speednet": ["width=1000000", "width=10000"],
    "som": ["rows=100000 columns=100000", "rows=0"],
    "zhang": ["width=10000", "width=" + 400 * "9", "depth=3"],
    "lenet": ["width=1"],
}


def train_cases() -> list[list[str]]:
    absurd = [
        ["--model", m, "--model-options", *each.split()] for m, several in ABSURD_MODELS.items() for each in several
    ]
    return [*wrong_values(TrainConfig), *clashes(), *absurd]


def is_wrong(main: Any, argv: Sequence[str], capsys: pytest.CaptureFixture, folder: Path) -> str:
    """Run a command in an empty folder; return what is wrong with how it ends, empty if nothing."""
    AcceleratorState._reset_state(True)
    capsys.readouterr()
    begun = time.monotonic()
    try:
        status = main(list(argv))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    took, said = time.monotonic() - begun, capsys.readouterr()
    lines = said.err.splitlines()
    left = [p.name for p in folder.iterdir()]
    problems = {
        f"status {status}": status != 2,
        f"{len(lines)} lines: {said.err[:300]}": len(lines) != 1 or not lines[0].startswith("error: "),
        "control characters": bool(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said.err)),
        "a long line": len(said.err) > 1200,
        f"{took:.0f} s": took > 10,
        f"left {left}": bool(left),
    }
    return ", ".join(text for text, found in problems.items() if found)


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return folder


def found(cases: Sequence[tuple[str, Sequence[str]]], capsys: pytest.CaptureFixture, folder: Path) -> list[str]:
    """Return the cases that end otherwise than they should, each with what is wrong."""
    wrong = []
    for program, argv in cases:
        main = MAINS.get(program) or (lambda words, program=program: command([program, *words]))
        if problem := is_wrong(main, argv, capsys, folder):
            wrong.append(f"{program} {' '.join(argv)}: {problem}")
            for path in folder.iterdir():  # so that the next one is judged by what it does itself
                path.rename(folder.with_name(f"left-{len(wrong)}-{path.name}"))
    return wrong


def test_every_option_of_train_wrong_in_every_way(empty, folders, data_dir, capsys):
    usual = {**SMALL, "--data": folders, "--data-dir": data_dir}
    cases = [("train.py", words(usual, argv)) for argv in train_cases()]
    assert len(cases) > 250
    wrong = found(cases, capsys, empty)
    assert not wrong, "\n".join(wrong)


def test_every_option_of_eval_wrong_in_every_way(empty, train, data_dir, capsys):
    run = train("--steps", "1")
    usual = {"--checkpoint": run.folder, "--data-dir": data_dir}
    shared = wrong_values(TrainConfig, [name for name in evaluate.SHARED if name != "data_dir"])
    options = [*wrong_values(evaluate.EvalOptions), *shared, *([flag, "1"] for flag in ("--lr", "--steps", "--resume"))]
    cases = [("eval.py", words(usual, argv)) for argv in options]
    assert len(cases) > 50
    wrong = found(cases, capsys, empty)
    assert not wrong, "\n".join(wrong)


def test_every_command_wrong(empty, capsys):
    assert set(COMMANDS) <= set(OTHERS)
    options = [("compare", ["nowhere", *argv]) for argv in wrong_values(CompareOptions)]
    options += [("predict", ["nowhere", "x.png", *argv]) for argv in wrong_values(PredictOptions)]
    options += [
        ("latency", ["lenet", "--seconds=1e-9", *argv]) for argv in wrong_values(LatencyOptions, ["batch_sizes"])
    ]
    options += [
        ("latency", ["lenet", *argv]) for argv in wrong_values(LatencyOptions, ["seconds", "output", "compile"])
    ]
    cases = [*options, *((name, argv) for name, several in OTHERS.items() for argv in several)]
    wrong = found(cases, capsys, empty)
    assert not wrong, "\n".join(wrong)


def test_files_and_folders_of_the_wrong_kind(empty, folders, data_dir, tmp_path, capsys):
    usual = {**SMALL, "--data": folders, "--data-dir": data_dir}
    files = list(wrong_files(tmp_path))
    cases = [("train.py", words(usual, argv)) for argv in files]
    cases += [("eval.py", ["--checkpoint", argv[1]]) for argv in files]
    wrong = found(cases, capsys, empty)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_environments_that_no_launcher_makes(empty, folders, data_dir, capsys, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    usual = {**SMALL, "--data": folders, "--data-dir": data_dir}
    argv = words({name: value for name, value in usual.items() if name != "--wandb"}, [])
    assert found([("train.py", argv)], capsys, empty) == []


def test_forty_of_them_on_two_processes(empty, folders, data_dir, tmp_path):
    """In forks of this process, which has imported everything: rank 0 says the line, and both end with status 2."""
    usual = {**SMALL, "--data": folders, "--data-dir": data_dir}
    cases = [words(usual, argv) for argv in [*train_cases()[::9], *wrong_files(tmp_path)]]
    assert len(cases) >= 40
    wrong = [f"{argv}: {ended}" for argv in cases if (ended := on_two_processes(argv, tmp_path)) != [2, 2, 1]]
    wrong += [f"left {path}" for path in empty.iterdir()]
    assert not wrong, "\n".join(wrong)


def on_two_processes(argv: Sequence[str], folder: Path) -> list[Any]:
    """Return both statuses, and how many lines both said, or those where they are not what they should be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in (0, 1):
        if not (child := os.fork()):
            status = 99
            try:
                os.environ.update(
                    {**launched, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
                )
                os.dup2(os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                status = train_command.main(list(argv))
                sys.stderr.flush()
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = "".join((folder / f"said-{rank}").read_text(errors="replace") for rank in (0, 1))
    lines = [line for line in said.splitlines() if "socket.cpp" not in line]
    return [*statuses, 1 if len(lines) == 1 and lines[0].startswith("error: ") else said]
