"""Every command of the README, run with small data and few steps appended."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from helpers.runs import ROOT
from PIL import Image

from cifar_dist.__main__ import main as package_main
from cifar_dist.cli import COMMANDS as PACKAGE_COMMANDS
from cifar_dist.inputs.augment import AUGMENTATIONS
from cifar_dist.models import MODELS
from cifar_dist.randomness import Purpose
from cifar_dist.recipes import RECIPES

README = (ROOT / "README.md").read_text()
PAGES = "\n".join((ROOT / "docs" / name).read_text() for name in ("DETERMINISM.md", "TRACKING.md"))
COMMANDS = [
    line.split("#")[0].split() for line in re.findall(r"^    (python (?:train|eval)\.py .*)$", README, re.MULTILINE)
]


def test_the_first_screen_has_the_two_commands_that_do_everything():
    first_screen = README.splitlines()[:25]
    assert any(line.startswith("    make train") for line in first_screen)
    assert any(line.startswith("    make test") for line in first_screen)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("train", "python train.py --model resnet --data auto"),
        ("test", 'python -m pytest -m "not slow"'),
        ("test-slow", "python -m pytest -m slow"),
        ("gpu", "python benchmarks/gpu.py --minutes 14 --data cifar10"),
        ("lint", "ruff check"),
        ("type", "mypy"),
    ],
)
def test_the_makefile_has_what_the_readme_and_contributing_name(target, expected):
    plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert expected in plan


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("words", [[], ["help"]])
def test_make_alone_says_what_there_is(words):
    shown = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1].rstrip(":") for line in shown.splitlines()] == targets
    assert len(targets) == 10


@pytest.mark.parametrize("script", [["train.py", "--model", "lenet"], ["eval.py"], ["-m", "cifar_dist", "models"]])
def test_outside_the_environment_a_line_says_how_to_get_in(script):
    bare = [sys.executable, "-I", "-S", "-c", RUN_BARE, *script]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: (torch|psutil|\w+) is not installed in .*; activate the environment .* or make it: make setup", line
    )


RUN_BARE = """if True:
    import runpy, sys
    sys.path.insert(0, "")
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", [*MODELS, *RECIPES, *AUGMENTATIONS])
def test_every_model_recipe_and_augmentation_is_named(name):
    families = {"ghasemi2024/": "`ghasemi2024/1` … `/15`"}
    word = next((text for prefix, text in families.items() if name.startswith(prefix)), f"`{name}`")
    assert word in README


@pytest.mark.parametrize("command", PACKAGE_COMMANDS)
def test_every_command_is_named(command):
    assert f"python -m cifar_dist {command}" in README


def walkthrough_hunks() -> list[tuple[str, str, str]]:
    """The diffs of CONTRIBUTING.md: (path, the lines it finds, the lines it leaves)."""
    hunks: list[tuple[str, str, str]] = []
    for block in re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL):
        for path, lines in re.findall(r"^--- a/(.*)\n\+\+\+ b/.*\n((?:(?!--- ).*\n)*)", block, re.MULTILINE):
            for hunk in re.split(r"^@@\n", lines, flags=re.MULTILINE):
                old, new = (
                    "".join(line[1:] + "\n" for line in hunk.splitlines() if line[:1] in (" ", s)) for s in "-+"
                )
                hunks.append((path, old, new))
    return hunks


def test_the_walkthroughs_of_contributing_fit_the_code_as_it_is():
    hunks = walkthrough_hunks()
    assert {path for path, _, _ in hunks} >= {
        "cifar_dist/models/__init__.py",
        "cifar_dist/recipes/__init__.py",
        "tests/models/test_models.py",
    }
    for path, old, new in hunks:
        assert (ROOT / path).read_text().count(old) == 1 or not old, f"{path}:\n{old}"
        assert new != old
    (number,) = (re.search(r"GREYSCALE = (\d+)", new) for *_, new in hunks if "GREYSCALE = " in new)
    assert int(number[1]) == max(Purpose) + 1  # one that nothing else uses


# These need a server, a network, a cluster or a minute, and have tests of their own.
ELSEWHERE = "sync|prepare|doctor|submit|queue|explain"
IN_BLOCKS = re.findall(rf"^    python -m cifar_dist (?!{ELSEWHERE})(.*)$", README + "\n" + PAGES, re.MULTILINE)
IN_TABLE = re.findall(
    rf"`python -m cifar_dist (?!{ELSEWHERE}|[A-Z]|verify`|bisect`|predict`|latency`|export`|\w+ (?:FILE|MODEL))([^`]*)`",
    README,
)


@pytest.mark.parametrize("line", dict.fromkeys([*IN_BLOCKS, *IN_TABLE]))
def test_every_command_of_the_package_runs(line, train, tmp_path, monkeypatch, capsys):
    example = re.search(r"my-sweep.yaml` is, for example,\n\n((?:    .*\n)+)", README)
    assert example
    (tmp_path / "my-sweep.yaml").write_text(textwrap.dedent(example[1]))
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    words = line.split("#")[0].split()
    for name in ["runs/NAME"] if words[0] == "compare" else [word for word in words if word.startswith("runs/")]:
        train("--steps", "2", name=name)
    assert package_main([*words, "--dry-run"] if words[0] == "sweep" else words) == 0
    assert len(capsys.readouterr().out.splitlines()) >= (1 if words[0] == "bisect" else 3)


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
    command = [sys.executable, *words[1:], *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
