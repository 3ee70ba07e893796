import os
import platform
import subprocess
import sys

import pytest
from helpers.runs import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_dist.files import write_atomically
from cifar_dist.record import checkpoint
from cifar_dist.record.checkpoint import BrokenCheckpointError

FILES = {"training.pt": b"x" * 1000, "model.safetensors": b"weights"}


def test_what_was_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path, 7, FILES)
    assert checkpoint.load_newest(tmp_path) == (checkpoint.Checkpoint(7, FILES), [])
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000007"]


def test_without_any_checkpoint_there_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nowhere") == (None, [])


@settings(max_examples=64, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*FILES, checkpoint.MANIFEST]),
    place=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_any_flipped_bit_or_lost_tail_is_noticed_and_the_one_before_is_used(tmp_path_factory, name, place, bit, cut):
    folder = tmp_path_factory.mktemp("c")
    checkpoint.save(folder, 1, FILES)
    checkpoint.save(folder, 2, FILES)
    path = checkpoint.folder_for(folder, 2) / name
    data = bytearray(path.read_bytes())
    if cut:
        data = data[: place % len(data)]
    else:
        data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    found, problems = checkpoint.load_newest(folder)
    if found.step == 2:  # only white space of the manifest may change without harm
        assert name == checkpoint.MANIFEST
        assert found.files == FILES
    else:
        assert (found.step, len(problems)) == (1, 1)
        assert "step_00000002" in problems[0]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_in_the_middle_of_a_save_leaves_the_older_one_whole(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, FILES)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, FILES)
    monkeypatch.undo()
    assert checkpoint.load_newest(tmp_path) == (checkpoint.Checkpoint(1, FILES), [])
    checkpoint.save(tmp_path, 2, FILES)
    checkpoint.prune(tmp_path, 5, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_write_that_did_not_reach_the_disk_is_noticed_before_anything_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_synced", lambda path, data: path.write_bytes(data[:-1]))
    with pytest.raises(BrokenCheckpointError):
        checkpoint.save(tmp_path, 1, FILES)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, FILES)
    checkpoint.prune(tmp_path, 2, [10])
    assert checkpoint.saved_steps(tmp_path) == [10, 30, 40]
    checkpoint.discard_after(tmp_path, 30)
    assert checkpoint.saved_steps(tmp_path) == [10, 30]


def test_an_atomic_write_replaces_or_leaves(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device"])
def test_an_atomic_write_replaces_nothing_but_files(tmp_path, kind):
    path = tmp_path / "result.json"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to a device": lambda: path.symlink_to(os.devnull),
    }
    make[kind]()
    with pytest.raises(FileExistsError, match=r"not a regular file: .*result\.json"):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"] and not path.is_file()


def test_what_dead_processes_left_goes_and_what_others_are_writing_stays(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    here, there = f".partial-a.json.{platform.node()}", ".partial-a.json.another.machine"
    names = {
        f"{here}.{dead.stdout.strip()}": False,
        f"{here}.{os.getppid()}": True,
        f"{there}.77": True,
        f"{there}.78": False,
    }
    names |= {".partial-step_00000007": False, ".partial-new": True}  # of an earlier version: by its age
    for name in names:
        (tmp_path / name).mkdir() if "step" in name else (tmp_path / name).touch()
    for name in (f"{there}.78", ".partial-step_00000007"):
        os.utime(tmp_path / name, (0, 0))
    write_atomically(tmp_path / "a.json", b"new")
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", *(name for name, stays in names.items() if stays)}


def test_processes_that_write_the_same_file_do_not_mix(tmp_path):
    code = "import sys; from pathlib import Path; from cifar_dist.files import write_atomically\n"
    code += "for _ in range(200): write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)"
    words = [sys.executable, "-c", code, tmp_path / "a.txt"]
    writers = [subprocess.Popen([*words, letter], cwd=ROOT) for letter in "xyz"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a.txt").exists():
            text = (tmp_path / "a.txt").read_bytes()
            assert len(text) == 100_000 and len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_crash_while_a_checkpoint_is_removed_leaves_nothing_that_looks_like_one(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, FILES)
    removed = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: removed.append(path))  # it is killed here
    checkpoint.prune(tmp_path, 2, [])
    assert removed and checkpoint.saved_steps(tmp_path) == [2, 3]


def test_checkpoints_behind_links_are_pruned_and_what_cannot_be_is_said(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    checkpoints = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(checkpoints, step, {"a": b"x"})
    elsewhere.mkdir()
    (checkpoints / "step_00000001").rename(elsewhere / "step_00000001")
    (checkpoints / "step_00000001").symlink_to(elsewhere / "step_00000001")
    assert checkpoint.load_newest(checkpoints)[1] == []
    assert checkpoint.prune(checkpoints, 2, []) == []
    assert checkpoint.saved_steps(checkpoints) == [2, 3]
    assert (elsewhere / "step_00000001/manifest.json").exists()

    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    (problem,) = checkpoint.prune(checkpoints, 1, [])
    assert "step_00000002 can't be removed: [Errno 13] Permission denied" in problem
