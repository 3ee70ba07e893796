"""Every command of the README, run with small data and few steps appended."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

from cifar_dist.__main__ import main as package_main

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].split() for line in re.findall(r"^    (accelerate launch .*)$", README, re.MULTILINE)]


def test_the_first_screen_has_the_two_commands_that_do_everything():
    first_screen = README.splitlines()[:25]
    assert any(line.startswith("    make train") for line in first_screen)
    assert any(line.startswith("    make test") for line in first_screen)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("train", "accelerate launch train.py --model resnet --data auto"),
        ("test", 'python -m pytest -m "not slow"'),
        ("test-slow", "python -m pytest -m slow"),
        ("test-gpu", "python -m pytest -m gpu"),
        ("lint", "ruff check"),
        ("type", "mypy"),
    ],
)
def test_the_makefile_has_what_the_readme_and_contributing_name(target, expected):
    plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert expected in plan


# These need a server, a network or a cluster, and have tests of their own.
@pytest.mark.parametrize(
    "line", re.findall(r"^    python -m cifar_dist (?!sync|prepare|doctor|submit|queue)(.*)$", README, re.MULTILINE)
)
def test_every_command_of_the_package_runs(line, train, tmp_path, monkeypatch, capsys):
    example = re.search(r"my-sweep.yaml` is, for example,\n\n((?:    .*\n)+)", README)
    assert example
    (tmp_path / "my-sweep.yaml").write_text(textwrap.dedent(example[1]))
    monkeypatch.chdir(tmp_path)
    words = line.split("#")[0].split()
    if words[0] == "compare":
        train("--steps", "2", name="runs/NAME")
    assert package_main([*words, "--dry-run"] if words[0] == "sweep" else words) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.slow
def test_every_command_runs(folders, data_dir, tmp_path):
    run = tmp_path / "run"
    trains = [words for words in COMMANDS if "train.py" in words]
    evals = [words for words in COMMANDS if "eval.py" in words]
    assert len(trains) == 2
    assert len(evals) == 1
    small = [
        "--data",
        str(folders),
        "--data-dir",
        str(data_dir),
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--limit-eval",
        "8",
    ]
    for number, words in enumerate(trains):
        launch(words, *small, "--output-dir", f"{run}{number}")
    launch([word.replace("runs/NAME", f"{run}0") for word in evals[0]], "--data-dir", str(data_dir))


def launch(words: list[str], *options: str) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", *words[2:], *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
