"""The package as pip installs it."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from helpers.runs import ROOT

from cifar_dist import __version__

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(source)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(source / done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = [path.relative_to(ROOT) for path in (ROOT / "cifar_dist").rglob("*") if path.is_file()]
    ours = {str(path) for path in files if "__pycache__" not in path.parts}
    assert {"cifar_dist/report/assets/style.css", "cifar_dist/compare/assets/compare.js"} < ours
    assert ours == {name for name in wheel.namelist() if name.startswith("cifar_dist/")}


@pytest.mark.slow
def test_version_and_requirements_are_those_of_the_package_and_of_requirements_txt(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Version"] == __version__

    def parts(requirement: str) -> tuple[str, frozenset[str]]:
        split = min((requirement.find(sign) for sign in "<>=" if sign in requirement), default=len(requirement))
        return requirement[:split], frozenset(requirement[split:].split(","))

    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) > 10
    assert {parts(text) for text in metadata.get_all("Requires-Dist")} == {parts(line) for line in lines}


@pytest.mark.slow
def test_the_installed_command_runs_from_any_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(name).decode().split() == ["[console_scripts]", "cifar-dist", "=", "cifar_dist.__main__:run"]
    (tmp_path / "here").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from cifar_dist.__main__ import run; sys.exit(run())"
    for words, status, said in (
        (["recipes", "li2024"], 0, "--lr 0.001"),
        (["sweep", "sengar2024", "--dry-run"], 2, "there is no program train.py in"),
        (["submit"], 2, "has no slurm/ beside it"),
    ):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, *words],
            cwd=tmp_path / "here",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr
    assert list(Path(tmp_path / "here").iterdir()) == []
