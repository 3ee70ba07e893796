"""Every path that the documents name is there, and defines what stands beside it."""

import re
from pathlib import Path

import pytest
from helpers.runs import ROOT

from cifar_dist.cli import COMMANDS
from cifar_dist.cli.evaluate import read_options
from cifar_dist.cli.train import train_parser
from cifar_dist.options import resolve_train_config

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/PERFORMANCE.md", "docs/EXPERIMENTS.md")
DOCUMENTS += ("docs/RELIABILITY.md", "docs/TUTORIAL.md", "docs/DETERMINISM.md", "docs/TRACKING.md", "docs/TRAPS.md")
FOLDERS = sorted(path.name for path in (ROOT / "cifar_dist").iterdir() if path.is_dir() and path.name != "__pycache__")
ROOTS = "|".join([*FOLDERS, "cifar_dist", "tests", "benchmarks", "docs", "launch"])
PATH = re.compile(rf"(?<![\w/.-])(?:(?:{ROOTS})/[\w/]*(?:\.\w+)?|[\w/]+\.py)(?![\w/-])")
NAMED = re.compile(r"`([\w/]+\.py)`[ ,]*\(((?:`\w+`(?:, )?)+)\)|\(`([\w/]+\.py)`, ((?:`\w+`(?:, )?)+)\)")
OTHERS = ("airbench94_muon.py", "slurm/site.sh")  # another project's; the user's own


def text_of(document: str) -> str:
    """Return a document without its diffs, which add what isn't there."""
    return re.sub(r"```diff.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)


def place_of(name: str) -> Path | None:
    """Return the file or folder that a document means by `name`."""
    places = (ROOT / "cifar_dist" / name, ROOT / name)
    return next((path for path in places if path.exists()), None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_is_there(document):
    named = {name for name in PATH.findall(text_of(document)) if name not in OTHERS}
    assert [name for name in sorted(named) if place_of(name) is None] == []
    assert named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_defines_what_stands_beside_it(document):
    for path, names, other_path, other_names in NAMED.findall(text_of(document)):
        place = place_of(path or other_path)
        assert place is not None, path
        source = place.read_text()
        for name in re.findall(r"\w+", names or other_names):
            assert re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE), (place, name)


@pytest.mark.parametrize(
    ("document", "trains", "evals"),
    [("docs/TUTORIAL.md", 4, 2), ("docs/DETERMINISM.md", 0, 0), ("docs/TRACKING.md", 1, 0)],
)
def test_every_command_of_a_page_has_its_options(document, trains, evals):
    """tests/test_readme.py runs them or their like; these are checked word by word."""
    lines = [line.strip() for line in text_of(document).splitlines() if line.startswith("    ")]
    programs = []
    for line in lines:
        words = line.split("#")[0].split()
        if "train.py" in words:
            given = words[words.index("train.py") + 1 :]
            resolve_train_config(train_parser(given).parse(given))
        elif words[:2] == ["python", "eval.py"]:
            assert read_options(words[2:])[0].checkpoint == ("runs/first",)
        elif words[:3] == ["python", "-m", "cifar_dist"]:
            assert words[3] in COMMANDS
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            flags = "\n".join(path.read_text() for path in [ROOT / words[1], *(ROOT / "cifar_dist").glob("*.py")])
            for word in words:
                assert (
                    not word.startswith("--") or f'"{word}"' in flags or f"{word[2:].replace('-', '_')}: " in flags
                ), word
        else:
            assert line in ("make setup", ". .venv/bin/activate")
        programs += [word for word in words if word.endswith(".py")]
    assert lines and (programs.count("train.py"), programs.count("eval.py")) == (trains, evals)


def test_every_trap_names_tests_that_are_there():
    _, *traps = re.split(r"\n(?=- \*\*)", text_of("docs/TRAPS.md"))
    assert len(traps) > 20
    for trap in traps:
        tests = re.findall(r"^  - `(tests/[\w/]+\.py)`: `(test_\w+)`$", trap, re.MULTILINE)
        assert tests, trap
        for path, name in tests:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), (path, name)


@pytest.mark.parametrize("document", ["README.md", "docs/TUTORIAL.md", "docs/ARCHITECTURE.md", "docs/TRACKING.md"])
def test_every_link_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", text_of(document))
    assert links
    for path, anchor in links:
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings], anchor


def test_the_map_names_what_each_row_sends_to():
    rows = re.findall(r"^\| .* \| (.*`.*) \|$", text_of("docs/ARCHITECTURE.md").split("## Where do I change")[1], re.M)
    assert len(rows) > 25
    assert all(PATH.search(row) for row in rows if "--" not in row)


@pytest.mark.parametrize("document", [*DOCUMENTS, "launch/README.md", "slurm/README.md"])
def test_sentences_are_short_enough_to_be_read_once(document):
    """180 characters. Tables, code, and lists of figures are read otherwise."""
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", text_of(document)):
        if paragraph.lstrip().startswith(("|", "#")) or paragraph.startswith("    "):
            continue
        prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "", " ".join(paragraph.split()))
        for sentence in re.split(r"(?<=[.!?:;])\s+", prose):
            assert len(sentence) <= 180, sentence
