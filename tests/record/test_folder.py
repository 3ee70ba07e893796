import json
from pathlib import Path

import pytest

from cifar_dist.errors import UserError
from cifar_dist.files import write_synced
from cifar_dist.record.folder import RunFolder, in_use
from cifar_dist.training.resume import lock


def line(step: int, kind: str = "train") -> dict:
    return {"kind": kind, "step": step, "epoch": 0, "samples": 0, "loss": 0.0}


def test_resuming_drops_later_lines_torn_lines_and_test_results(tmp_path):
    folder = RunFolder(tmp_path)
    for entry in (line(10), line(10, "val"), line(20), line(10, "test"), line(21), line(30)):
        folder.append_metrics(entry)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    folder.truncate_metrics(20)
    assert folder.read_metrics() == [line(10), line(10, "val"), line(20)]
    folder.append_metrics(line(25))
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").open()] == [10, 10, 20, 25]


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged .*; move the run folder away"):
        RunFolder(tmp_path).read_json("config.json")
    assert RunFolder(tmp_path).read_json("summary.json") is None


def test_moving_aside_never_overwrites(tmp_path):
    for number in (1, 2):
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        (folder.path / "mark").write_text(str(number))
        assert folder.move_aside() == tmp_path / f"run.{number}"
    assert [(tmp_path / f"run.{n}/mark").read_text() for n in (1, 2)] == ["1", "2"]


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).append_metrics({"step": 1, "loss": float("nan")})


def test_a_folder_is_in_use_while_its_lock_is_held_and_looking_takes_nothing_away(tmp_path):
    assert not in_use(tmp_path)
    held = lock(tmp_path)
    assert in_use(tmp_path) and in_use(tmp_path)
    held.release()
    assert not in_use(tmp_path)
    lock(tmp_path).release()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_names_the_file_and_how_much_it_was(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device, writing 0\.1 kB: '.*/metrics.jsonl'"):
        RunFolder(tmp_path).append_metrics(line(1))
    with pytest.raises(OSError, match=r"No space left on device, writing 1\.5 MB: '/dev/full'"):
        write_synced(Path("/dev/full"), bytes(1_500_000))


def test_any_number_that_training_can_reach_is_read_again(tmp_path):
    folder = RunFolder(tmp_path)
    largest = {**line(1), "loss": 3.4e38, "gradient_norm": 3.4e38, "accuracy": None}
    folder.append_metrics(largest)
    assert folder.read_metrics() == [largest]


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    with (tmp_path / "summary.json").open("wb") as file:
        file.truncate(10**8 + 1)
    with pytest.raises(UserError, match=r"summary.json has 100.0 MB, more than 100.0 MB"):
        RunFolder(tmp_path).summary()
