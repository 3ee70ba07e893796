"""`python -m cifar_dist doctor`: each failing condition is provoked and named; several real processes meet, disagree and hang."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from filelock import FileLock
from helpers.runs import ROOT, torchrun, words

from cifar_dist.__main__ import main
from cifar_dist.cli import doctor as doctor_command
from cifar_dist.cli.doctor import MARKS, layout
from cifar_dist.data import cache_folder, load_dataset
from cifar_dist.data.cifar import OFFICIAL
from cifar_dist.doctor import check, dry_run, machine, network, services, slurm_ranks, software, storage
from cifar_dist.doctor.check import Check, Visit, examine
from cifar_dist.doctor.lines import Answer, Line, each_host, ok, ranks
from cifar_dist.doctor.wire import Meeting
from cifar_dist.options import resolve_train_config
from cifar_dist.runtime import cgroup


@pytest.fixture
def options(folders, data_dir, tmp_path) -> list[str]:
    """Options for the small class folders, prepared, with runs in a folder of the test."""
    load_dataset(str(folders), data_dir)
    return ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]


@pytest.fixture
def doctor(options, capsys, monkeypatch):
    """Run the command here, with little to write and few steps; returns its status and its lines by name."""
    monkeypatch.setattr(storage, "BLOCK_BYTES", 10**6)
    monkeypatch.setattr(dry_run, "MEASURE_S", 0.1)

    def run(*more: str) -> tuple[int, dict[str, Line]]:
        AcceleratorState._reset_state(True)
        usual = dict(zip(options[::2], options[1::2], strict=True))
        status = main(["doctor", "--json", *words(usual, more)])
        return status, by_name(capsys.readouterr().out)

    return run


def by_name(output: str) -> dict[str, Line]:
    groups = json.loads(output[output.index("{") :])["groups"]
    return {line["name"]: Line(**line) for lines in groups.values() for line in lines}


def answers(*facts: object, hosts: tuple[str, ...] = ("a", "b", "c")) -> list[Answer]:
    """Answers as rank 0 gets them: through JSON."""
    return [Answer(i, hosts[i], json.loads(json.dumps(fact))) for i, fact in enumerate(facts)]


# The command on this machine


def test_a_sound_machine_has_no_failure_and_no_run_folder_is_made(doctor, tmp_path):
    status, lines = doctor()
    assert status == 0, lines
    assert not list(tmp_path.iterdir())
    for name in ("versions", "torch pair", "memory", "ranks", "clock", "data", "locks", "rename"):
        assert lines[name].status == "ok", lines[name]
    assert torch.__version__ in lines["versions"].text
    assert lines["all-reduce"].status == "skipped"


def test_what_is_printed_fits_80_columns_and_says_its_status_in_words(options, capsys):
    assert main(["doctor", *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    paths = [word for word in options if "/" in word]
    assert all(len(line) <= 80 for line in printed if not any(path[:30] in line for path in paths))
    marked = [line for line in printed if line[2:3] in MARKS.values() and line[:2] == "  " and line[2] != " "]
    assert len(marked) > 10
    assert all(MARKS[line.split()[1]] == line[2] for line in marked)
    assert printed[0] == "Software" and "ok" in printed[-1]


def test_a_long_line_is_wrapped_under_its_beginning_and_its_advice_below():
    shown = layout(Line("failed", "disk", "word " * 20, "do this " * 12), MARKS, 80).splitlines()
    assert shown[0].startswith("  ✗ failed   disk         word word")
    assert shown[1].startswith(" " * 26 + "word") and shown[2].startswith(" " * 26 + "> do this")
    assert shown[3].startswith(" " * 28 + "do this") or shown[3].startswith(" " * 28 + "this")
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "lenet"], "error: --model has no effect without --dry-run"),
        (["--dry-run", "--model", "lenet5"], "error: unknown model 'lenet5'"),
        (["--dry-run", "--model", "lenet", "--epochs", "2", "--steps", "3"], "error: --epochs 2 and --steps 3 both"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(options, more, message, capsys):
    assert main(["doctor", *options, *more]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_data_that_is_not_prepared_fails_with_the_command_that_prepares_it(doctor, tmp_path, data):
    status, lines = doctor("--data", data, "--data-dir", str(tmp_path / "none"))
    assert status == 1
    assert lines["data"].status == "failed" and f"{data}-v2" in lines["data"].text
    assert f"python -m cifar_dist prepare --data {data} --data-dir {tmp_path}/none" in lines["data"].advice
    assert not (tmp_path / "none").exists()


def test_data_that_needs_no_internet_is_only_a_warning(doctor, tmp_path):
    status, lines = doctor("--data", "synthetic", "--data-dir", str(tmp_path))
    assert (status, lines["data"].status) == (0, "warning")
    (tmp_path / OFFICIAL["cifar10"].archive).write_bytes(b"")
    status, lines = doctor("--data", "cifar10", "--data-dir", str(tmp_path))
    assert (status, lines["data"].status) == (0, "warning")
    status, lines = doctor("--data", "cifar100", "--data-dir", str(tmp_path))  # the other archive is no help
    assert (status, lines["data"].status) == (1, "failed")


def test_a_damaged_cache_fails(doctor, folders, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    with (cache_folder(str(folders), tmp_path / "data") / "train_images.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    status, lines = doctor("--data-dir", str(tmp_path / "data"))
    assert status == 1
    assert lines["data"].status == "failed" and "is damaged" in lines["data"].text and "delete" in lines["data"].advice


def test_an_output_folder_that_cannot_be_written_fails(doctor):
    status, lines = doctor("--output-dir", "/proc/runs/run")
    assert status == 1
    assert lines["disk"].status == "failed" and "/proc/" in lines["disk"].text
    assert "--output-dir" in lines["disk"].advice


def test_a_gpu_that_is_not_there_fails_and_the_rest_goes_on(doctor):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, lines = doctor("--device", "gpu")
    assert status == 1
    assert lines["ranks"].status == "failed" and "torch sees no GPU" in lines["ranks"].text
    assert lines["all-reduce"].text == "not tried after the failure above"
    assert lines["data"].status == "ok"


# Weights & Biases


@pytest.mark.slow
def test_a_key_that_works_is_online(doctor, server):
    status, lines = doctor()
    assert (status, lines["W&B"].status) == (0, "ok")
    assert "runs would be online" in lines["W&B"].text and server.url in lines["W&B"].text


@pytest.mark.slow
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("wanted", "status"), [("auto", "warning"), ("online", "failed")])
def test_a_key_that_is_refused_is_named_in_a_bounded_time(doctor, wanted, status, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "9" * 40)
    start = time.monotonic()
    _, lines = doctor("--wandb", wanted)
    assert time.monotonic() - start < services.WANDB_TIMEOUT_S + 5
    assert lines["W&B"].status == status, lines["W&B"]
    assert "wandb login" in lines["W&B"].advice


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "9" * 40)
        monkeypatch.setattr(services, "WANDB_TIMEOUT_S", 2.0)
        start = time.monotonic()
        assert services.ask_wandb() == ("", "no answer within 2 s")
        assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("environment", "option", "status", "words"),
    [
        ({}, "auto", "warning", "no API key"),
        ({}, "online", "failed", "--wandb online needs an API key"),
        ({"WANDB_MODE": "offline"}, "auto", "ok", "offline"),
        ({"WANDB_MODE": "disabled"}, "auto", "ok", "disabled"),
    ],
)
def test_without_a_key_nothing_is_asked(doctor, environment, option, status, words, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(services, "ask_wandb", lambda: pytest.fail("it asked"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _, lines = doctor("--wandb", option)
    assert lines["W&B"].status == status and words in lines["W&B"].text


# Judging what was measured


def fine_versions(**other: object) -> dict[str, object]:
    packages = dict.fromkeys(software.PACKAGES, "1.0") | {"torch": "2.9.1", "torchvision": "0.24.1"}
    facts = {"python": "3.11.9", "packages": packages, "commit": "c0ffee", "misfits": [], "cuda": None, "driver": None}
    return facts | {"torchvision needs": "==2.9.1", "cuda problem": ""} | other


@pytest.mark.parametrize(
    ("change", "name", "status", "words"),
    [
        ({}, "torch pair", "ok", "made for this torch"),
        ({"torchvision needs": "==2.8.0"}, "torch pair", "failed", "needs torch ==2.8.0, this is 2.9.1"),
        ({"misfits": ["wandb 0.30, needed is >=0.31"]}, "requirements", "failed", "wandb 0.30"),
        ({"driver": "570.86"}, "CUDA", "warning", "built for CPUs only"),
        ({"driver": "470.1", "cuda": "12.8", "cuda problem": "too old"}, "CUDA", "failed", "too old"),
        ({"driver": "570.86", "cuda": "12.8"}, "CUDA", "ok", "works with driver 570.86"),
        ({"commit": None}, "commit", "ok", "not a git checkout"),
    ],
)
def test_versions_are_judged(change, name, status, words):
    line = next(line for line in software.judge(answers(fine_versions(**change))) if line.name == name)
    assert line.status == status and words in line.text
    assert bool(line.advice) == (status in ("warning", "failed"))


@pytest.mark.parametrize("key", ["python", "commit", "packages"])
def test_ranks_that_run_other_code_are_named(key):
    other = {"python": "3.12.1", "commit": "dead", "packages": dict.fromkeys(software.PACKAGES, "0.9")}[key]
    lines = software.judge(answers(fine_versions(), fine_versions(), fine_versions(**{key: other})))
    (line,) = (line for line in lines if line.name == "agreement")
    assert line.status == "failed" and "rank 2 on c" in line.text and "rank 0 on a" in line.text


def test_requirements_are_compared_with_what_is_installed():
    assert software.misfits("# a comment\n-r other.txt\n\nnumpy>=1.0\n") == []
    (old, none) = software.misfits("torch>=99\nno-such-package>=1\n")
    assert old.startswith("torch ") and "needed is >=99" in old
    assert none == "no-such-package is missing, needed is >=1"


def a_machine(**other: object) -> dict[str, object]:
    facts = {"cores": 8, "quota": None, "threads": 2, "processes": 4, "memory": 64e9, "memory limit": None}
    return facts | {"shared memory": 32e9, "gpus": 0, "gpu": None} | other


A_GPU = {"name": "GPU", "free": 79e9, "total": 80e9, "bf16": True}


@pytest.mark.parametrize(
    ("change", "name", "words", "advice"),
    [
        ({"threads": 4}, "cpu", "16 threads for 8 cores", "--threads 2"),
        ({"quota": 4.0}, "cpu", "grants the time of 4", "--threads 1"),
        ({"cores": 2}, "cpu", "8 threads for 2 cores", "fewer processes"),
        ({"memory": 3e9, "memory limit": 4e9}, "memory", "3.0 GB available, the limit", "--mem"),
        ({"gpu": A_GPU, "shared memory": 64e6}, "/dev/shm", "64.0 MB free", "--shm-size"),
        ({"gpu": {**A_GPU, "free": 10e9}}, "GPUs", "10.0 GB of 80.0 GB are free", "nvidia-smi"),
    ],
)
def test_a_machine_with_too_little_is_a_warning(change, name, words, advice):
    assert {line.status for line in machine.judge(answers(a_machine()))} == {"ok"}
    line = next(line for line in machine.judge(answers(a_machine(**change))) if line.status != "ok")
    assert (line.status, line.name) == ("warning", name)
    assert words in line.text and advice in line.advice


def test_the_smallest_limit_of_a_control_group_and_those_around_it_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "CGROUPS", tmp_path)
    own = tmp_path / "slurm" / "job"
    own.mkdir(parents=True)
    (own / "cpu.max").write_text("max 100000\n")
    (own.parent / "cpu.max").write_text("250000 100000\n")
    (own / "memory.max").write_text("4000000000\n")
    (own.parent / "memory.max").write_text("8000000000\n")
    assert cgroup.cgroup_limit(own, "cpu.max") == 2.5
    assert cgroup.cgroup_limit(own, "memory.max") == 4e9
    assert cgroup.cgroup_limit(None, "memory.max") is None


def test_hosts_that_are_alike_share_a_line_and_others_are_named():
    judge = each_host(lambda facts: [ok("one", "same"), ok("two", str(facts))])
    assert judge(answers(1, 1, 2)) == [ok("one", "same"), ok("two", "a: 1"), ok("two", "b: 1"), ok("two", "c: 2")]
    assert judge(answers(1, 1, hosts=("a", "a"))) == [ok("one", "same"), ok("two", "1")]


def test_rank_numbers_are_written_as_spans():
    assert ranks(Answer(r, "a") for r in (0, 1, 2, 5, 7, 8)) == "ranks 0-2, 5, 7-8"
    assert ranks([Answer(3, "a")]) == "rank 3"


def an_all_reduce(**other: object) -> dict[str, object]:
    return {"wrong": 0, "latency_s": 1e-4, "seconds": 0.01, "bytes": 16 * 2**20} | other


def test_bus_bandwidth_is_that_of_the_slowest_rank():
    lines = network.judge_all_reduce(answers(an_all_reduce(), an_all_reduce(seconds=0.02), an_all_reduce()))
    gb_per_s = 16 * 2**20 * 4 / 3 / 0.02 / 1e9  # each byte of a ring of three passes 2 (3 - 1) / 3 links
    assert f"{gb_per_s:.2f} GB/s" in lines[2].text and "slowest: rank 1 on b" in lines[2].text
    assert [line.status for line in lines] == ["ok"] * 3


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ({"wrong": 3}, "all-reduce", "failed"),
        ({"latency_s": 0.1}, "latency", "warning"),
        ({"seconds": 5}, "bandwidth", "warning"),
    ],
)
def test_a_rank_that_adds_up_wrongly_or_slowly_is_named(change, name, status):
    lines = network.judge_all_reduce(answers(an_all_reduce(), an_all_reduce(), an_all_reduce(**change)))
    line = next(line for line in lines if line.status != "ok")
    assert (line.name, line.status) == (name, status)
    assert "rank 2" in line.text and line.advice


def test_a_slow_link_is_named_with_its_host():
    assert network.judge_links(answers({1: 5.0, 2: 4.0}, None, None))[0].status == "ok"
    (line,) = network.judge_links([*answers({1: 5.0, 2: 0.2, 3: 5.0}, None, None), Answer(3, "d")])
    assert line.status == "warning" and "rank 2 on c" in line.text and "--exclude=c" in line.advice


@pytest.mark.parametrize(("offset", "status"), [(0.01, "ok"), (-2.5, "warning"), (400.0, "failed")])
def test_a_clock_that_is_off_is_named(offset, status):
    offsets = {1: [0.001, 0.0], 2: [0.002, offset]}
    (line,) = network.judge_clock(answers({"offsets": offsets, "steps_s": 0}, *[{"offsets": {}, "steps_s": 0}] * 2))
    assert line.status == status and "rank 2 on c" in line.text and f"{abs(offset):.4f} s" in line.text
    assert "give or take 0.0010 s" in line.text


def test_data_that_differs_between_nodes_is_named():
    facts = {
        "folder": "d",
        "recorded": "aaaa",
        "damage": "",
        "archive": False,
        "missing": False,
        "seconds": 0.1,
        "bytes": 9,
    }
    judge = storage.judge_data("cifar10", "data")
    assert judge(answers(facts, facts))[0].status == "ok"
    (line,) = judge(answers(facts, {**facts, "recorded": "bbbb"}))
    assert line.status == "failed" and "fingerprint bbbb on rank 1 on b" in line.text
    (line,) = judge(answers(facts, {**facts, "missing": True}))
    assert line.status == "failed" and "rank 1" in line.text and "prepare --data cifar10 --data-dir data" in line.advice


def a_disk(**other: object) -> dict[str, object]:
    facts = {"parent": "/runs", "free": 1e12, "bytes_per_s": 1e9, "fsync_s": 0.001, "locks": "yes", "rename": True}
    return facts | {"visible": True} | other


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ({"bytes_per_s": 5e6}, "disk", "warning"),
        ({"fsync_s": 2.0}, "disk", "warning"),
        ({"free": 2e9}, "space", "warning"),
        ({"free": 1e8}, "space", "failed"),
        ({"locks": "none"}, "locks", "warning"),
        ({"locks": "no"}, "locks", "failed"),
        ({"rename": False}, "rename", "failed"),
    ],
)
def test_a_disk_is_judged(change, name, status):
    assert {line.status for line in storage.judge_disk(answers(a_disk()))} == {"ok"}
    (line,) = (line for line in storage.judge_disk(answers(a_disk(**change))) if line.status != "ok")
    assert (line.name, line.status) == (name, status) and line.advice


def test_an_output_folder_that_a_node_does_not_see_is_a_warning():
    assert storage.judge_disk(answers(a_disk(), {"visible": True}))[-1] == ok(
        "sharing", "all 2 hosts see the output folder"
    )
    line = storage.judge_disk(answers(a_disk(), {"visible": True}, {"visible": False}))[-1]
    assert line.status == "warning" and "not seen on c" in line.text


def test_a_lock_that_is_given_twice_is_noticed(tmp_path, monkeypatch):
    assert storage.locks_hold(tmp_path) == "yes"
    monkeypatch.setattr(FileLock, "acquire", lambda self, **_: self)
    assert storage.locks_hold(tmp_path) == "no"

    def unsupported(self, **_):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    assert storage.locks_hold(tmp_path) == "none"


def test_accelerates_default_config_is_read_where_accelerate_reads_it(doctor, tmp_path, monkeypatch):
    from accelerate.commands.config import config_args

    path = tmp_path / "default_config.yaml"
    path.write_text("mixed_precision: bf16\nnum_processes: 4\ncompute_environment: LOCAL_MACHINE\n")
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    _, lines = doctor()
    line = lines["accelerate"]
    assert (
        line.status == "warning" and "mixed_precision: bf16, num_processes: 4" in line.text and str(path) in line.text
    )
    path.write_text("mixed_precision: 'no'\nnum_processes: 1\n")
    assert doctor()[1]["accelerate"].status == "ok"


def test_a_job_with_more_nodes_than_are_used_is_a_warning():
    facts = {
        "tools": ["sbatch"],
        "job": "17",
        "nodes": 2,
        "node list": "n[1-2]",
        "tasks": "2",
        "gpus": "4",
        "left": "59:00",
    }
    assert services.slurm_lines(facts, 2) == [
        ok("slurm", "job 17: 2 nodes (n[1-2]), 2 tasks, 4 GPUs a node, 59:00 left")
    ]
    line = services.slurm_lines(facts, 1)[1]
    assert line.status == "warning" and "run on 1" in line.text
    assert services.slurm_lines({**facts, "tools": []}, 2)[1].status == "warning"


# Ranks of srun


def test_tasks_of_srun_become_ranks(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = {
        "STEP_NUM_TASKS": "5",
        "STEP_TASKS_PER_NODE": "3,2",
        "STEP_NODELIST": "n[3-4]",
        "STEP_ID": "1",
        "JOB_ID": "40",
    }
    for name, value in {**slurm, "PROCID": "4", "LOCALID": "1", "NODEID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    slurm_ranks.adopt_slurm_ranks()
    assert [os.environ[name] for name in names[:5]] == ["4", "1", "5", "2", "n3"]
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 40000
    assert slurm_ranks.tasks_per_node("2(x3),1") == [2, 2, 2, 1]


# Several ranks: threads that share a notice board stand for processes


def examine_on_ranks(check_: Check, world_size: int, present: int | None = None) -> tuple[list[Line], list[Visit]]:
    """Run a check on some ranks at once; returns rank 0's lines."""
    store, config = dist.HashStore(), resolve_train_config({"model": "lenet", "epochs": 1})
    visits = [Visit(config, Meeting(store, rank, world_size)) for rank in range(present or world_size)]
    others = [threading.Thread(target=examine, args=(check_, visit), daemon=True) for visit in visits[1:]]
    for thread in others:
        thread.start()
    lines = examine(check_, visits[0])
    for thread in others:
        thread.join(10)
        assert not thread.is_alive()
    return lines, visits


def test_a_rank_that_raises_is_a_failed_line_and_the_others_are_judged():
    def measure(visit):
        if visit.meeting.rank == 1:
            raise ValueError("broken")
        return visit.meeting.rank

    asked = Check("x", "X", measure, lambda found: [ok("x", ranks(found))], advice="repair it")
    lines, visits = examine_on_ranks(asked, 3)
    host = visits[0].meeting.host
    assert lines == [Line("failed", "x", f"rank 1 on {host}: ValueError: broken", "repair it"), ok("x", "ranks 0, 2")]
    assert all(visit.sound for visit in visits)


def test_after_a_collective_that_hangs_no_rank_tries_another(monkeypatch):
    monkeypatch.setattr(check, "GRACE_S", 1.0)
    hang = threading.Event()

    def measure(visit):
        return visit.meeting.rank or hang.wait(60)

    asked = Check("x", "X", measure, lambda found: [ok("x", ranks(found))], "look", timeout_s=0.5, collective=True)
    lines, visits = examine_on_ranks(asked, 3)
    hang.set()
    host = visits[0].meeting.host
    assert lines == [Line("failed", "x", f"rank 0 on {host}: no result within 0.5 s", "look"), ok("x", "ranks 1-2")]
    assert not any(visit.sound for visit in visits)
    assert [examine(asked, visit) for visit in visits[::-1]] == [
        [],
        [],
        [Line("skipped", "x", "not tried after the failure above")],
    ]


def test_a_rank_that_never_answers_is_named_once(monkeypatch):
    monkeypatch.setattr(check, "GRACE_S", 0.2)
    asked = Check(
        "x", "X", lambda visit: visit.meeting.rank, lambda found: [ok("x", ranks(found))], "look", timeout_s=0.3
    )
    lines, visits = examine_on_ranks(asked, 4, present=3)
    assert lines[0].text == "rank 3: does not answer: its process has ended or hangs" and lines[0].status == "failed"
    assert lines[1:] == [ok("x", "ranks 0-2")]
    assert visits[0].absent == {3} and not any(visit.sound for visit in visits)


# What a run would do


def test_a_dry_run_says_what_the_run_would_do_and_makes_no_folder(doctor, tmp_path):
    status, lines = doctor(
        "--dry-run", "--model", "lenet", "--batch-size", "64", "--epochs", "3", "--micro-batch-size", "16"
    )
    assert status == 0, lines
    parameters = 62_006 - 10 * 84 - 10 + 4 * 84 + 4  # LeNet-5 with 4 classes in place of 10
    assert lines["model"].text == f"{parameters:,} parameters"
    assert lines["global batch"].text == "64 = 1 process x 16 x 4 accumulated"
    assert lines["length"].text == "12 steps, 3 epochs of 4"  # 216 of 240 images, the last batch short
    assert "648 images" in lines["time"].text and "4 evaluations" in lines["time"].text
    assert (
        f"parameters {4 * parameters / 1e3:.1f} kB" in lines["memory"].text
        and "micro-batch of 16" in lines["memory"].text
    )
    assert "a new run" in lines["folder"].text
    assert not list(tmp_path.iterdir())


def measured(options: list[str], *more: str) -> dict[str, object]:
    AcceleratorState._reset_state(True)
    words = ["--dry-run", *options, "--model", "lenet", "--steps", "2", "--threads", "1", *more]
    config, _, _ = doctor_command.read_options(words)
    return dry_run.measure(Visit(config, Meeting.open(1)))


def test_memory_is_that_of_the_optimizer_and_of_the_micro_batch(options, monkeypatch):
    monkeypatch.setattr(dry_run, "MOST_STEPS", 2)
    sgd = measured(options, "--batch-size", "64", "--micro-batch-size", "16")["bytes"]
    adam = measured(options, "--batch-size", "64", "--optimizer", "adamw", "--ema-decay", "0.9")["bytes"]
    assert sgd["optimizer"] == sgd["parameters"] == adam["average"] and sgd["average"] == 0
    assert 0 <= adam["optimizer"] - 2 * adam["parameters"] <= 100  # and a step count for each parameter
    assert adam["activations"] == pytest.approx(4 * sgd["activations"], rel=0.01)  # 64 images in place of 16


def test_the_time_is_images_by_speed_and_evaluations():
    facts = {"peak": {"peak": 1e9}, "bytes": {"parameters": 10**6}, "micro_batch": 8, "data": "", "synthetic": False}
    facts |= {"parameters": 9, "batch": "", "steps": 100, "steps_per_epoch": 10, "images": 36_000, "images_per_s": 10.0}
    facts |= {"step_s": [0.9, 1.1], "evaluation_s": 65.0, "evaluations": 11, "destination": "runs/x", "block_s": 1.0}
    lines = {line.name: line for line in dry_run.judge(answers(facts, {**facts, "images_per_s": 9.0}))}
    assert lines["time"].text.startswith(
        "about 1:07:45, an estimate: 1:06:40 for 36,000 images at 9 a second, 1:05 for 11"
    )
    full = {**facts, "peak": {"peak": 78e9, "total": 80e9}}
    lines = {line.name: line for line in dry_run.judge(answers(facts, full))}
    assert lines["memory"].status == "warning" and "rank 1 on b" in lines["memory"].text
    assert "pace" not in lines
    lines = {line.name: line for line in dry_run.judge(answers(facts, {**facts, "block_s": 2.1}))}
    assert lines["pace"].status == "warning" and "rank 1 on b takes 2.1 times as long" in lines["pace"].text


def test_the_folder_that_a_run_would_go_on_in_is_recognised(train, doctor):
    result = train("--epochs", "1", name="run")
    again = ["--dry-run", "--model", "lenet", "--batch-size", "32", "--epochs", "1"]
    assert "is finished, so nothing would be trained" in doctor(*again)[1]["folder"].text
    summary = result.json("summary.json")
    (result.folder / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")}
    assert "goes on from its checkpoint of step 7" in doctor(*again)[1]["folder"].text
    assert {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")} == before


# Several real processes

PATCHED = """
import os, sys, time
from cifar_dist.__main__ import main
from cifar_dist.doctor import check, network, wire
rank, argv = int(os.environ["RANK"]), sys.argv[1:]
all_reduce = wire.all_reduce
{patch}
sys.exit(main(["doctor", "--json", *argv]))
"""


def launch_patched(world_size: int, patch: str, options: list[str], folder: Path) -> tuple[int, dict[str, Line]]:
    script = folder / "patched.py"
    script.write_text(PATCHED.format(patch=patch))
    result = torchrun(world_size, [str(script), *options], check=False)
    assert "{" in result.stdout, result.stderr
    return result.returncode, by_name(result.stdout)


@pytest.mark.slow
def test_three_processes_meet_and_agree(options):
    result = torchrun(3, ["-m", "cifar_dist", "doctor", "--json", *options])
    lines = by_name(result.stdout)
    assert result.stdout.count('"counts"') == 1  # only rank 0 speaks
    assert "3 over gloo, on 1 host" in lines["ranks"].text
    assert lines["all-reduce"] == ok("all-reduce", "right on all 3 ranks")
    assert "GB/s of bus bandwidth = 16 MiB x 2(3 - 1)/3" in lines["bandwidth"].text
    assert "all 3 ranks" in lines["agreement"].text and "equal on 3 ranks" in lines["data"].text
    assert "rank" in lines["links"].text and "s apart" in lines["clock"].text


@pytest.mark.slow
def test_a_wrong_sum_on_one_rank_fails(options, tmp_path):
    patch = "if rank == 1: wire.all_reduce = lambda t: (all_reduce(t), t[-1].add_(1))"
    status, lines = launch_patched(2, patch, options, tmp_path)
    assert status == 1
    assert lines["all-reduce"].status == "failed"
    assert "wrong sums on rank 1 (1 numbers" in lines["all-reduce"].text


@pytest.mark.slow
def test_a_rank_that_does_not_take_part_in_the_all_reduce_is_a_failure_and_the_rest_goes_on(options, tmp_path):
    patch = """
import dataclasses
network.CHECKS[1] = dataclasses.replace(network.CHECKS[1], timeout_s=3.0)
if rank == 1: network.CHECKS[1] = dataclasses.replace(network.CHECKS[1], measure=lambda visit: time.sleep(1000))
"""
    start = time.monotonic()
    status, lines = launch_patched(2, patch, options, tmp_path)
    assert time.monotonic() - start < 60
    assert status == 1
    assert lines["all-reduce"].status == "failed"
    assert (
        "ranks 0-1: no result within 3 s" in lines["all-reduce"].text and "SOCKET_IFNAME" in lines["all-reduce"].advice
    )
    assert lines["links"].status == "skipped"
    assert lines["data"].status == "ok"


@pytest.mark.slow
def test_ranks_with_other_data_fail(options, folders, data_dir, tmp_path):
    other = shutil.copytree(data_dir, tmp_path / "other")
    about = cache_folder(str(folders), Path(other)) / "about.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"fingerprint": "f" * 64}))
    patch = f"if rank == 1: argv[3] = {str(other)!r}"
    status, lines = launch_patched(2, patch, options, tmp_path)
    assert status == 1
    assert lines["data"].status == "failed" and "fingerprint ffffffffffff on rank 1" in lines["data"].text


@pytest.mark.slow
def test_accelerate_launches_it_as_a_module_and_a_dry_run_counts_all_processes(options, tmp_path):
    words = "-m accelerate.commands.launch --config_file launch/multi_cpu.yaml --num_processes 2 -m cifar_dist doctor"
    run = ["--json", "--dry-run", "--model", "lenet", "--batch-size", "64", "--epochs", "3"]
    command = [sys.executable, *words.split(), *options, *run]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    lines = by_name(result.stdout)
    assert "accelerate launch with launch/multi_cpu.yaml: 2 processes" in lines["launcher"].text
    assert lines["global batch"].text == "64 = 2 processes x 32 x 1 accumulated"
    assert lines["length"].text == "12 steps, 3 epochs of 4"
    assert not (tmp_path / "run").exists()


def without_launcher(script: Path, options: list[str], world_size: int = 2) -> tuple[list[int], dict[str, Line]]:
    """Start ranks as srun does: nobody else hosts the meeting, and nobody ends them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    fixed = {**os.environ, **world, "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks_ = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world_size)]
    processes = [subprocess.Popen(command, env={**fixed, **r}, **pipes) for r in ranks_]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert "{" in outputs[0][0], outputs[0][1]
    return [process.returncode for process in processes], by_name(outputs[0][0])


@pytest.mark.slow
def test_without_a_launcher_every_rank_learns_the_status_before_rank_0_leaves(options, tmp_path):
    script = tmp_path / "doctor.py"
    script.write_text(PATCHED.format(patch=""))
    statuses, lines = without_launcher(script, options, 3)
    assert statuses == [0, 0, 0], lines
    assert "3 over gloo" in lines["ranks"].text


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_nobody_waits_for_ever(options, tmp_path):
    patch = """
import dataclasses
check.GRACE_S = 2.0
network.CHECKS[1] = dataclasses.replace(network.CHECKS[1], timeout_s=5.0)
if rank == 1: network.CHECKS[1] = dataclasses.replace(network.CHECKS[1], measure=lambda visit: os._exit(9))
"""
    script = tmp_path / "doctor.py"
    script.write_text(PATCHED.format(patch=patch).replace('"--json"', '"--json", "--device", "cpu"'))
    start = time.monotonic()
    statuses, lines = without_launcher(script, options)
    assert time.monotonic() - start < 60
    assert statuses == [1, 9]
    assert lines["all-reduce"].text == "rank 1: does not answer: its process has ended or hangs"
    assert lines["links"].status == "skipped" and lines["clock"].status == lines["data"].status == "ok"
