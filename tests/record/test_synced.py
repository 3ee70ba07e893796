"""What has its name is on the disk before, and the name itself afterwards: fsync, rename, fsync of the folder."""

import os
from pathlib import Path

import pytest

from cifar_dist.files import write_atomically
from cifar_dist.record import checkpoint
from cifar_dist.training.resume import fork


@pytest.fixture
def events(monkeypatch) -> list[int | Path]:
    """What is forced to disk, by inode, and what gets a name, in order."""
    found: list[int | Path] = []
    move, real = os.replace, os.fsync

    def rename(source, target) -> None:
        move(source, target)
        found.append(Path(target))

    def fsync(descriptor: int) -> None:
        real(descriptor)
        found.append(os.fstat(descriptor).st_ino)

    for name, function in (("replace", rename), ("rename", rename), ("fsync", fsync)):
        monkeypatch.setattr(os, name, function)
    return found


def outlives_a_power_cut(path: Path, events: list[int | Path]) -> bool:
    named = events.index(path)
    content = {part.stat().st_ino for part in (path, *path.rglob("*"))}
    return content <= set(events[:named]) and path.parent.stat().st_ino in events[named:]


def test_a_file_that_is_replaced(tmp_path, events):
    (tmp_path / "summary.json").write_text("old")
    write_atomically(tmp_path / "summary.json", b"new")
    assert outlives_a_power_cut(tmp_path / "summary.json", events)


def test_a_checkpoint(tmp_path, events):
    checkpoint.save(tmp_path, 7, {"training.pt": b"state", "model.safetensors": b"weights"})
    assert outlives_a_power_cut(checkpoint.folder_for(tmp_path, 7), events)


def test_a_copy_of_a_run(tmp_path, events):
    checkpoint.save(tmp_path / "run/checkpoints", 7, {"training.pt": b"state"})
    (tmp_path / "run/config.json").write_text("{}")
    events.clear()
    fork(tmp_path / "run", None, tmp_path / "copy")
    assert (tmp_path / "copy/checkpoints/step_00000007/training.pt").read_bytes() == b"state"
    assert outlives_a_power_cut(tmp_path / "copy", events)
