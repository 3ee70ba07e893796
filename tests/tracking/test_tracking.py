import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from helpers.runs import ROOT, stop_after
from helpers.tracked import STEPS, expected_rows, no_server, our_part
from helpers.wandb_server import Server
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.errors import UserError
from cifar_dist.record.predictions import Predictions
from cifar_dist.record.reader import RunRecord
from cifar_dist.tracking import follower
from cifar_dist.tracking.link import group_name, has_key, open_link, read_link, resolve_mode
from cifar_dist.tracking.process import start_follower
from cifar_dist.tracking.rows import KINDS, row, sample_table, to_line
from cifar_dist.training import views


def offline_rows(directory: str) -> list[dict]:
    """Read a segment back with the tool wandb ships."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", directory]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in output.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def cores(folder: Path) -> list[psutil.Process]:
    """The wandb-core processes of the run in `folder`."""
    followers = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])]
    return [child for p in followers for child in p.children(recursive=True) if "wandb-core" in child.name()]


# What a row is


def test_a_line_becomes_a_row_whose_names_make_good_panels():
    line = {
        "kind": "val",
        "step": 40,
        "epoch": 2.0,
        "samples": 99,
        "accuracy": 0.5,
        "loss": 1.5,
        "num_images": 7,
        "seconds": 3.0,
    }
    line["per_class_accuracy"] = {"cat": 0.25, "dog": None}
    assert row(line) == {
        "global_step": 40, "epoch": 2.0, "samples": 99, "seconds": 3.0,
        "val/accuracy": 0.5, "val/loss": 1.5, "val/class/cat": 0.25, "val/class/dog": None,
    }  # fmt: skip


SHARES = st.none() | st.just(0.0) | st.floats(0, 1)
NUMBERS = st.just(0.0) | st.floats(-1e6, 1e6)
PLACE = {"step": st.integers(0, 10**7), "epoch": NUMBERS, "samples": st.integers(0, 10**9), "seconds": NUMBERS}
TRAIN_LINES = st.fixed_dictionaries(
    {"kind": st.just("train"), **PLACE, "loss": NUMBERS, "accuracy": SHARES, "lr": NUMBERS}
    | {"gradient_norm": st.none() | NUMBERS, "images_per_second": NUMBERS}
)
IMAGES = {"val": 7, "test": 9}
EVAL_LINES = st.sampled_from(["val", "test"]).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"kind": st.just(kind), **PLACE, "accuracy": NUMBERS, "top2_accuracy": NUMBERS, "loss": NUMBERS}
        | {"num_images": st.just(IMAGES[kind])}
        | {"per_class_accuracy": st.fixed_dictionaries({"cat": SHARES, "dog": SHARES})}
    )
)


@given(TRAIN_LINES | EVAL_LINES)
def test_a_row_says_all_that_its_line_says_zeros_too(line):
    dataset = {"classes": ["cat", "dog"], **IMAGES}
    sent = row(line)
    assert to_line(sent, line["kind"], dataset) == line
    assert [to_line(sent, kind, dataset) for kind in KINDS if kind != line["kind"]] == [None, None]


def test_seeds_and_folds_share_a_group_and_other_options_do_not(train):
    config = train("--steps", "1").json("config.json")["config"]
    name = group_name(config)
    assert name.startswith("lenet-default-")
    assert group_name({**config, "seed": 5, "fold": 1, "output_dir": "elsewhere", "threads": 7}) == name
    assert group_name({**config, "lr": 0.5}) != name
    assert group_name({**config, "wandb_group": "mine"}) == "mine"


@pytest.mark.parametrize(
    ("there", "sent", "has_final_row"), [(0, [1, 2], False), (1, [2], False), (2, [], False), (3, [], True)]
)
def test_a_sender_goes_on_behind_the_rows_that_are_there(tmp_path, monkeypatch, there, sent, has_final_row):
    """The row of pictures is one more than the record has lines, and is sent unless that one is there too."""
    monkeypatch.chdir(tmp_path)
    line = {"kind": "train", "epoch": 1.0, "samples": 9, "seconds": 1.0, "loss": 0.5}
    Path("metrics.jsonl").write_text("".join(json.dumps({**line, "step": step}) + "\n" for step in (1, 2)))
    rows: list[dict] = []
    ends: list[bool] = []
    run = SimpleNamespace(log=rows.append)
    monkeypatch.setattr(follower, "start", lambda *_: (run, there))
    monkeypatch.setattr(follower, "trainer_is_gone", lambda _: True)
    monkeypatch.setattr(follower, "finish", lambda *_, has_final_row: ends.append(has_final_row))
    follower.send(open_link(tmp_path), "offline")
    assert [row["global_step"] for row in rows] == sent and ends == [has_final_row]


@pytest.mark.parametrize(
    ("status", "ends"),
    [("finished", [("exit", 0)]), ("interrupted", [("preempting",), ("exit", 1)]), ("failed", [("exit", 1)])],
)
def test_a_run_ends_there_as_it_ended_here(status, ends):
    said: list[tuple] = []
    run = SimpleNamespace(
        summary={},
        mark_preempting=lambda: said.append(("preempting",)),
        finish=lambda exit_code: said.append(("exit", exit_code)),
    )
    record = RunRecord(Path("run"), status, config={"wandb_weights": False}, summary={"status": status, "best_step": 7})
    follower.finish(run, record, has_final_row=True)
    assert said == ends
    assert run.summary == {"status": status, "best_step": 7, "generalisation_gap": None}


def test_a_table_of_samples_says_what_they_are_and_both_guesses():
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]).astype(np.float32)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    kept = Predictions("test", 7, np.array([1, 0, 1]), logits, np.array([0, 2]), pixels)
    table = sample_table(["cat", "dog", "ship"], kept)
    columns = ["true", "predicted", "second guess", "right"]
    assert [[row[table.columns.index(name)] for name in columns] for row in table.data] == [
        ["dog", "cat", "dog", False],
        ["dog", "dog", "ship", True],
    ]
    confidences = [row[table.columns.index("confidence")] for row in table.data]
    assert confidences == pytest.approx([0.5, 0.5], rel=1e-6)


# Which mode


@pytest.mark.parametrize(
    ("variable", "expected"), [("", "auto"), ("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")]
)
def test_auto_honours_wandb_mode(monkeypatch, variable, expected):
    monkeypatch.setenv("WANDB_MODE", variable)
    assert resolve_mode("auto") == expected
    assert resolve_mode("offline") == "offline"


@pytest.mark.parametrize(
    ("text", "expected"), [("mode = offline", "offline"), ("disabled = true", "disabled"), ("", "auto")]
)
@pytest.mark.parametrize("where", ["wandb", ".wandb", "user"])
def test_auto_honours_what_the_clients_own_commands_have_stored(monkeypatch, tmp_path, where, text, expected):
    """As `wandb offline` does in the working folder: nothing is sent against a stated wish."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / where).mkdir()
    (tmp_path / where / "settings").write_text(f"[default]\n{text}\nproject = 100%\n")
    assert resolve_mode("auto") == expected
    assert resolve_mode("online" if has_key() else "offline") != "auto"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "online"


def test_a_key_is_found_where_wandb_keeps_it(monkeypatch, tmp_path):
    no_server(monkeypatch, tmp_path)
    assert not has_key()
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password " + "a" * 40 + "\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert has_key()


def test_online_without_a_key_is_wrong_input_before_anything_starts(train, monkeypatch, tmp_path, capsys):
    no_server(monkeypatch, tmp_path)
    with pytest.raises(UserError):
        resolve_mode("online")
    result = train("--wandb", "online")
    assert result.status == 2
    assert not result.folder.exists()
    assert "wandb login" in capsys.readouterr().err


def test_a_new_run_gets_an_id_and_keeps_it(tmp_path):
    first = open_link(tmp_path).id
    assert len(first) == 8
    assert open_link(tmp_path).id == first
    (tmp_path / "wandb.json").write_text("{torn")
    assert read_link(tmp_path) is None
    assert open_link(tmp_path).id != first


def test_disabled_leaves_nothing_behind(train):
    folder = train("--wandb", "disabled", "--steps", "2").folder
    assert not list(folder.glob("wandb*")) and not (folder.parent / "wandb").exists()


# Online, against a server


@pytest.mark.slow
def test_a_run_is_shown_whole_with_its_media(train, server: Server, monkeypatch):
    monkeypatch.setenv("WANDB_NOTES", "a note")
    result = train(*STEPS, "--wandb-tags", "a", "b", "--wandb-weights", pictures=True)
    assert result.status == 0
    view = read_link(result.folder)
    assert view and view.complete and view.mode == "online" and view.url
    shown = server.run(view.id)
    assert our_part(shown["history"]) == expected_rows(result.folder)
    assert len(shown["history"]) == len(expected_rows(result.folder)) + 1
    assert (shown["state"], shown["exit_code"]) == ("finished", 0)
    config = result.json("config.json")["config"]
    assert shown["config"]["lr"] == config["lr"]
    assert shown["group"] == group_name(config)
    assert (shown["tags"], shown["notes"], shown["display_name"]) == (["a", "b"], "a note", "run")
    files = " ".join(shown["files"])
    for name in ("pictures/curves", "pictures/confusion_matrix", "test/samples", "test/confusion_matrix"):
        assert name in files, name
    assert any("weights" in str(artifact) for artifact in shown["artifacts"])


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_is_one_run_without_gap_or_duplicate(train, server: Server, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        result = train(*STEPS)
    before = read_link(result.folder)
    assert before and server.run(before.id)["exit_code"] == 1
    assert len(our_part(server.run(before.id)["history"])) == len(expected_rows(result.folder)) > 0
    assert train(*STEPS).status == 0
    after = read_link(result.folder)
    assert after and after.id == before.id and after.complete
    shown = server.run(after.id)
    assert our_part(shown["history"]) == expected_rows(result.folder)
    assert (shown["state"], shown["exit_code"]) == ("finished", 0)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_run(folders, data_dir, tmp_path, server: Server):
    command = [sys.executable, "train.py", "--model", "lenet", "--data", str(folders), "--data-dir", str(data_dir)]
    command += ["--output-dir", str(tmp_path / "run"), "--threads", "1", "--batch-size", "8", "--log-every", "5"]
    command += ["--checkpoint-minutes", "0", "--epochs", "100"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        wait_for(lambda: any("wandb-history.jsonl" in event.get("files", {}) for event in server.events("file_stream")))
        process.kill()
        process.wait()
        view = read_link(tmp_path / "run")
        assert view
        # What was logged after the last checkpoint is dropped and logged again, some of it with the server already.
        assert subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=False).returncode == 0
    again = read_link(tmp_path / "run")
    assert again and again.id == view.id and again.complete and len(again.directories) == 2
    history = our_part(server.run(view.id)["history"])
    timeless = [[{k: v for k, v in row.items() if k not in ("seconds", "train/images_per_second")} for row in rows]
                for rows in (history, expected_rows(tmp_path / "run"))]  # fmt: skip
    assert timeless[0] == timeless[1]


def wait_for(condition, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


# What can go wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "no API key"),
        ({"WANDB_API_KEY": "short"}, "invalid"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, ""),
    ],
)
def test_without_a_server_a_run_is_kept_offline(train, monkeypatch, tmp_path, environment, reason):
    no_server(monkeypatch, tmp_path, **environment)
    result = train(*STEPS)
    assert result.status == 0
    view = read_link(result.folder)
    assert view and view.mode == "offline" and reason in view.note and view.note
    assert our_part(offline_rows(view.directories[0])) == expected_rows(result.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_key_the_server_does_not_know_keeps_the_run_offline(train, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    result = train(*STEPS)
    assert result.status == 0
    view = read_link(result.folder)
    assert view and view.mode == "offline" and view.note


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_wandb_core_costs_neither_the_run_nor_a_row(train, server: Server, monkeypatch, mode):
    killed = []
    tell = views.Tracker.tell

    def kill_once(tracker):
        tell(tracker)
        if not killed:
            wait_for(lambda: cores(tracker.folder))
            wait_for(lambda: (view := read_link(tracker.folder)) and view.mode)
            time.sleep(2)  # some rows are out
            for process in cores(tracker.folder):
                process.kill()
                killed.append(process)

    monkeypatch.setattr(views.Tracker, "tell", kill_once)
    result = train("--epochs", "3", "--wandb", mode)
    assert killed and result.status == 0
    view = read_link(result.folder)
    assert view and len(view.directories) == 2
    if mode == "online":
        assert view.complete
        assert our_part(server.run(view.id)["history"]) == expected_rows(result.folder)
    else:
        rows = [row for directory in view.directories for row in offline_rows(directory)]
        assert our_part(rows) == expected_rows(result.folder)


@pytest.mark.slow
def test_an_outage_that_heals_costs_no_row(train, server: Server, monkeypatch):
    tell, calls = views.Tracker.tell, []

    def outage(tracker):
        tell(tracker)
        calls.append(1)
        if len(calls) == 1:
            wait_for(lambda: (view := read_link(tracker.folder)) and view.mode == "online")
            server.outage()
        elif len(calls) == 2:
            time.sleep(3)
            server.heal()

    monkeypatch.setattr(views.Tracker, "tell", outage)
    result = train("--epochs", "4")
    view = read_link(result.folder)
    assert result.status == 0 and view and view.complete
    assert our_part(server.run(view.id)["history"]) == expected_rows(result.folder)


@pytest.mark.slow
def test_a_folder_wandb_cannot_write_to_costs_nothing(train, monkeypatch, tmp_path):
    no_server(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file"))
    assert train(*STEPS).status == 0


# Offline, and later


@pytest.mark.slow
def test_segments_of_an_offline_run_follow_each_other(train, monkeypatch, tmp_path):
    no_server(monkeypatch, tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train(*STEPS)
    result = train(*STEPS)
    view = read_link(result.folder)
    assert view and len(view.directories) == 2
    rows = [row for directory in view.directories for row in offline_rows(directory)]
    assert our_part(rows) == expected_rows(result.folder)


def test_a_record_is_read_as_it_grows_and_never_a_torn_line(tmp_path):
    record = follower.Record(tmp_path / "metrics.jsonl")
    assert [*record.new_lines()] == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert [*record.new_lines()] == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert [*record.new_lines()] == [{"step": 2}]
    assert [*record.new_lines()] == []


@pytest.mark.slow
def test_a_folder_that_is_moved_aside_takes_its_sender_along(train, monkeypatch, tmp_path):
    no_server(monkeypatch, tmp_path)
    folder = train("--wandb", "disabled", *STEPS).folder
    open_link(folder)
    sender = start_follower(folder, "offline", stdin=subprocess.PIPE)
    wait_for(lambda: read_link(folder).mode == "offline")
    aside = folder.rename(tmp_path / "run.1")
    train("--wandb", "disabled", "--seed", "5", *STEPS)  # another run takes the name
    sender.stdin.close()
    assert sender.wait(30) == 0
    assert not (folder / "wandb.json").exists()
    assert our_part(offline_rows(read_link(aside).directories[0])) == expected_rows(aside)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_signal_ends_the_waiting(train, server: Server, monkeypatch):
    finish, took = views.Tracker.finish, []

    def stuck(tracker, timeout_s, impatient):
        server.outage("close")
        start = time.monotonic()
        threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGTERM)).start()
        finish(tracker, timeout_s, impatient)
        took.append(time.monotonic() - start)

    monkeypatch.setattr(views.Tracker, "finish", stuck)
    monkeypatch.setattr(views, "WAIT_FOR_WANDB_S", dict.fromkeys(views.WAIT_FOR_WANDB_S, 60.0))
    assert train(*STEPS).status == 0
    assert 1 < took[0] < 15


def test_only_an_agent_chooses_the_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    assert open_link(tmp_path).id != "agents"
    (tmp_path / "wandb.json").unlink()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert open_link(tmp_path).id == "agents"


def test_a_key_for_a_server_of_ones_own_is_found(tmp_path, monkeypatch):
    no_server(monkeypatch, tmp_path)
    (tmp_path / "no-netrc").write_text("machine wandb.example.org login user password " + "a" * 40 + "\n")
    assert not has_key()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert has_key()


@pytest.mark.slow
def test_the_stop_button_saves_a_checkpoint_and_ends_the_run(train, server: Server, monkeypatch, capsys):
    """The client asks for it about every 15 seconds; a run that nobody stops would take much longer."""
    server.stop()
    monkeypatch.setattr(views, "WAIT_FOR_WANDB_S", {"finished": 60.0, "interrupted": 60.0, "failed": 60.0})
    run = train("--wandb", "online", "--epochs", "100000", "--eval-every", "100000", "--log-every", "7")
    assert run.status == 75
    out = capsys.readouterr().out
    assert "interrupted by the stop button of Weights & Biases after step" in out
    summary = run.json("summary.json")
    assert summary["status"] == "interrupted"
    assert (run.folder / "checkpoints" / f"step_{summary['step']:08d}").is_dir()
