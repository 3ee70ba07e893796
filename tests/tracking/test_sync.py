import shutil
import subprocess
import sys

import pytest
from helpers.runs import ROOT, stop_after
from helpers.tracked import STEPS, expected_rows, no_server, our_part
from helpers.wandb_server import Server

from cifar_dist.tracking.link import Link, read_link, write_link
from cifar_dist.tracking.uploads import find_uploads
from cifar_dist.training import views

pytestmark = pytest.mark.slow


def sync(*paths) -> subprocess.CompletedProcess:
    """Run the command in a process of its own: wandb's state is a process's."""
    command = [sys.executable, "-m", "cifar_dist", "sync", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def offline_run(train, monkeypatch):
    """A run in two offline segments."""
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train(*STEPS, "--wandb", "offline")
    result = train(*STEPS, "--wandb", "offline", pictures=True)
    assert len(read_link(result.folder).directories) == 2
    return result


def assert_all_there(server: Server, folder, media: bool = True) -> None:
    view = read_link(folder)
    shown = server.run(view.id)
    assert our_part(shown["history"]) == expected_rows(folder)
    assert len(shown["history"]) == len(expected_rows(folder)) + 1
    assert shown["state"] == "finished"
    assert view.complete and view.url
    if media:
        assert any("test/samples" in name for name in shown["files"])
        assert shown["artifacts"]  # the images of the table


def test_two_offline_segments_become_one_run_there(server: Server, offline_run):
    done = sync(offline_run.folder.parent)
    assert done.returncode == 0 and "all there" in done.stdout, done.stderr
    assert_all_there(server, offline_run.folder)
    assert "all there" in sync(offline_run.folder).stdout
    assert_all_there(server, offline_run.folder)


def test_what_wandbs_folders_lost_is_sent_from_the_run_folder(server: Server, offline_run):
    view = read_link(offline_run.folder)
    shutil.rmtree(view.directories[1])
    assert sync(offline_run.folder).returncode == 0
    assert_all_there(server, offline_run.folder)


def test_wandbs_folders_alone_are_uploaded_too(server: Server, offline_run):
    view, rows = read_link(offline_run.folder), expected_rows(offline_run.folder)
    wandb_folder = server.log.parent / "wandb"
    shutil.rmtree(offline_run.folder)
    assert sync(wandb_folder).returncode == 0
    assert our_part(server.run(view.id)["history"]) == rows
    assert sync(wandb_folder).returncode == 0  # and not twice
    assert our_part(server.run(view.id)["history"]) == rows


def test_what_an_outage_held_back_is_sent_later(train, server: Server, monkeypatch, capsys):
    monkeypatch.setattr(views, "WAIT_FOR_WANDB_S", dict.fromkeys(views.WAIT_FOR_WANDB_S, 3.0))
    with monkeypatch.context() as patch:
        tell = views.Tracker.tell

        def outage(tracker):
            if (view := read_link(tracker.folder)) and view.mode == "online":
                server.outage()
            tell(tracker)

        patch.setattr(views.Tracker, "tell", outage)
        result = train("--epochs", "20", pictures=True)
    assert result.status == 0
    view = read_link(result.folder)
    assert not view.complete and view.mode == "online"
    assert "sends the rest" in capsys.readouterr().out
    server.heal()
    assert sync(result.folder).returncode == 0
    assert_all_there(server, result.folder, media=False)


def test_wrong_input_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    no_server(monkeypatch, tmp_path)
    (tmp_path / "with").mkdir()
    write_link(tmp_path / "with", Link("abc"))
    for folder, rule in (("nowhere", "is not a folder"), ("runs", "no run to upload"), ("with", "wandb login")):
        done = sync(tmp_path / folder)
        assert done.returncode == 2, folder
        assert rule in done.stderr and len(done.stderr.splitlines()) == 1


def test_runs_are_found_below_a_folder_and_wandbs_folders_of_theirs_are_not_taken_twice(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "wandb/offline-run-20260101_000000-aaaa").mkdir(parents=True)
    (tmp_path / "wandb/offline-run-20260101_000001-bbbb").mkdir()
    write_link(tmp_path / "a", Link("aaaa", directories=["x"]))
    uploads = find_uploads([tmp_path])
    assert [(upload.id, upload.folder) for upload in uploads] == [("aaaa", tmp_path / "a"), ("bbbb", None)]


def test_what_was_trained_without_it_is_sent_too(train, server: Server, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train(*STEPS)
    folder = train(*STEPS, "--wandb", "disabled").folder  # wandb.json still says that all is there
    done = sync(folder)
    assert done.returncode == 0, done.stderr
    assert_all_there(server, folder, media=False)
