"""On a file system without locks, as some clusters' are: a file stands in for one, and says so."""

import errno
import fcntl
import os
import subprocess
import sys
from threading import Timer

import pytest

from cifar_dist.errors import UserError
from cifar_dist.files import locked, stand_in
from cifar_dist.record.folder import LOCK_FILE, in_use
from cifar_dist.training.resume import lock


@pytest.fixture(autouse=True, params=[errno.ENOLCK, errno.ENOTSUP])
def no_locks(request, monkeypatch):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_folder_is_held_by_one_process_all_the_same(tmp_path):
    assert not in_use(tmp_path)
    held = lock(tmp_path)
    assert in_use(tmp_path)
    with pytest.raises(UserError, match=r"in use by another process; .* if its process is gone, remove .*\.lock\.held"):
        lock(tmp_path)
    held.release()
    assert not in_use(tmp_path)
    lock(tmp_path).release()


def leave_behind(path, host=None) -> None:
    """Take the lock in a process that dies with it, on this machine or as if on another."""
    code = "import os, socket, sys; from filelock import SoftFileLock\n"
    code += f"socket.gethostname = lambda: {host!r}\n" if host else ""
    code += "held = SoftFileLock(sys.argv[1]); held.acquire(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, stand_in(path)], check=True)


def test_what_a_crash_left_is_taken_over_on_the_same_machine(tmp_path):
    leave_behind(tmp_path / LOCK_FILE)
    assert in_use(tmp_path)  # for all that a file tells
    lock(tmp_path).release()
    assert not in_use(tmp_path)


def test_what_another_machine_left_is_waited_for_and_named(tmp_path, capsys):
    path = tmp_path / "cache.lock"
    leave_behind(path, "elsewhere")
    assert stand_in(path).exists()
    Timer(1.0, stand_in(path).unlink).start()
    with locked(path, patience_s=0.1):
        assert stand_in(path).exists()
    assert not stand_in(path).exists()
    assert f"still waiting for {stand_in(path)}; remove it if its process is gone" in capsys.readouterr().err


def test_a_run_says_so_and_trains_and_leaves_its_folder_open(train, capsys):
    first = train("--epochs", "1")
    assert first.status == 0
    assert ".lock.held keeps other processes out" in capsys.readouterr().out
    assert not in_use(first.folder)
    assert train("--epochs", "1", "--seed", "3", "--resume", "never").status == 0
    assert not in_use(first.folder) and not in_use(first.folder.with_name("run.1"))


def test_what_is_refused_leaves_no_folder(train, tmp_path):
    refused = train("--resume", str(tmp_path), name="new")
    assert refused.status == 2 and not refused.folder.exists()
