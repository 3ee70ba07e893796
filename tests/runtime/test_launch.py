"""The launch configs: every key is in Accelerate's schema, and those this machine can run really start what they say."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.runs import ROOT, Result, torchrun

from cifar_dist import exits
from cifar_dist.config import TrainConfig
from cifar_dist.runtime import launch
from cifar_dist.runtime.cpu import worthwhile_threads
from cifar_dist.runtime.launch import LaunchRequest, launch_request

CONFIGS = sorted((ROOT / "launch").glob("*.yaml"))

GPUS = torch.cuda.device_count()

EXPECTED = {
    "cpu": {"distributed_type": "NO", "num_processes": 1, "use_cpu": True},
    "gpu": {"distributed_type": "NO", "num_processes": 1, "use_cpu": False, "gpu_ids": "all"},
    "multi_cpu": {"distributed_type": "MULTI_GPU", "num_processes": 2, "use_cpu": True, "gpu_ids": "-1,-1"},
    "multi_gpu": {"distributed_type": "MULTI_GPU", "num_processes": -1, "use_cpu": False, "gpu_ids": "all"},
    "multi_node": {"distributed_type": "MULTI_GPU", "num_processes": -1, "use_cpu": False, "gpu_ids": "all", "num_machines": 2},
}  # fmt: skip
FIXED = {"compute_environment": "LOCAL_MACHINE", "machine_rank": 0, "mixed_precision": "no", "num_machines": 1}
PORTS = {"multi_cpu": {"main_process_port": 0}, "multi_gpu": {"main_process_port": 0}}
PORTS["multi_node"] = {"main_process_port": 29500, "rdzv_backend": "static", "same_network": True}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_key_and_value_is_the_expected_one_and_in_accelerates_schema(path):
    content = yaml.safe_load(path.read_text())
    assert content == {**FIXED, **PORTS.get(path.stem, {}), **EXPECTED[path.stem]}
    assert set(content) <= set(ClusterConfig.__dataclass_fields__)
    loaded = load_config_from_file(str(path)).to_dict()
    for key, value in content.items():
        assert str(loaded[key]).removeprefix("DistributedType.") == str(value), key


def commands_of_the_readme() -> list[list[str]]:
    text = (ROOT / "launch/README.md").read_text()
    return [words.split()[2:] for words in re.findall(r"`(accelerate launch --config_file [^`]*)`", text)]


@pytest.mark.parametrize("words", commands_of_the_readme(), ids=lambda words: Path(words[1]).stem)
def test_the_launcher_understands_every_command_of_the_readme(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.training_script_args == ["--model", "resnet"]
    assert args.num_processes >= 1
    assert args.multi_gpu == ("multi" in words[1])
    assert Path(words[1]).stem in EXPECTED


def test_the_readme_has_one_command_for_each_config():
    assert sorted(Path(words[1]).stem for words in commands_of_the_readme()) == [path.stem for path in CONFIGS]


def accelerate_launch(words: list[str], folder: Path, folders: Path, data_dir: Path, *more: str) -> subprocess.Popen:
    options = f"--model lenet --steps 3 --batch-size 32 --data {folders} --data-dir {data_dir} --output-dir {folder}"
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "train.py", *options.split(), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*launchers: subprocess.Popen) -> list[tuple[int, str]]:
    results = [launcher.communicate(timeout=300) for launcher in launchers]
    return [(p.returncode, "".join(out)) for p, out in zip(launchers, results, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "world_size"),
    [
        ("--config_file launch/cpu.yaml", 1),
        ("--config_file launch/multi_cpu.yaml", 2),
        ("--config_file launch/multi_cpu.yaml --num_processes 3", 3),
        pytest.param("--config_file launch/gpu.yaml", 1, marks=pytest.mark.gpu),
        pytest.param(f"--config_file launch/multi_gpu.yaml --num_processes {GPUS}", GPUS, marks=pytest.mark.gpu),
    ],
)
def test_a_config_starts_what_its_name_says(words, world_size, folders, data_dir, tmp_path):
    if "multi_gpu" in words and world_size < 2:
        pytest.skip("fewer than two GPUs")
    ((status, output),) = finish(accelerate_launch(words.split(), tmp_path / "run", folders, data_dir))
    assert status == 0, output
    record = Result(0, tmp_path / "run").json("config.json")
    start = record["starts"][-1]
    assert start["world_size"] == world_size
    assert start["device"].startswith("cpu") == ("cpu" in words), start
    cores = len(os.sched_getaffinity(0))
    config = TrainConfig.from_dict(record["config"])
    assert start["threads_per_process"] == worthwhile_threads(config, world_size, max(1, cores // world_size))


@pytest.mark.slow
def test_two_launchers_of_the_multi_node_config_form_one_world(folders, data_dir, tmp_path):
    port = str(20000 + os.getpid() % 10000)
    words = (
        f"--config_file launch/multi_node.yaml --num_processes 4 --main_process_ip 127.0.0.1 --main_process_port {port}"
    )
    nodes = [
        accelerate_launch([*words.split(), "--machine_rank", n], tmp_path / "run", folders, data_dir, "--device", "cpu")
        for n in ("0", "1")
    ]
    for status, output in finish(*nodes):
        assert status == 0, output
    assert Result(0, tmp_path / "run").json("config.json")["starts"][-1]["world_size"] == 4


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cpu --num_processes 2", "the launcher was asked for 2 processes and started 1"),
        ("--num_processes 2", "the launcher was asked for 2 processes and started 1"),
        ("--config_file launch/gpu.yaml", "launch/gpu.yaml asks for a GPU (use_cpu: false), but torch sees none"),
    ],
)
def test_the_obvious_mistakes_are_refused_with_the_right_command(words, message, folders, data_dir, tmp_path):
    ((status, output),) = finish(accelerate_launch(words.split(), tmp_path / "run", folders, data_dir))
    assert status == 1  # the launcher's, for our 2
    assert output.count(f"error: {message}") == 1
    assert not (tmp_path / "run").exists()


class FakeParent:
    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def parent(self) -> "FakeParent":
        return self

    def cmdline(self) -> list[str]:
        return self.words


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 2 train.py", LaunchRequest(2, None, True)),
        ("python -m accelerate.commands.launch train.py", LaunchRequest(None, None, False)),
        (
            "/bin/accelerate-launch --config_file launch/multi_cpu.yaml x.py",
            LaunchRequest(2, "launch/multi_cpu.yaml", True),
        ),
        (
            "python /bin/accelerate launch --config_file launch/gpu.yaml x.py",
            LaunchRequest(1, "launch/gpu.yaml", False),
        ),
        ("bash", None),
        ("python launch", None),
        ("python /bin/accelerate launch --no_such_flag", None),
    ],
)
def test_the_launchers_command_line_is_read_as_the_launcher_reads_it(monkeypatch, words, request_):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch.psutil, "Process", lambda: FakeParent(*words.split()))
    assert launch_request() == request_


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' in the environment is not a whole number; unset it"),
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4 in the environment says .* but RANK is not set; unset WORLD_SIZE, or start with",
        ),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment says .* but RANK is not set; unset LOCAL_RANK"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asked for FSDP, but here every process holds the whole model"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, "--dynamo_backend eager is not supported; use inductor, or --compile"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 in the environment says .* but MASTER_ADDR is not set"),
    ],
)
def test_what_another_program_left_in_the_environment_is_refused_in_a_line(
    train, monkeypatch, capsys, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = train()
    assert result.status == 2 and not result.folder.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


def test_a_single_process_may_say_so(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert train("--steps", "1").status == 0


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to commands in its background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_says_so_and_ends_on_a_signal(folders, data_dir, tmp_path, number):
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "ACCELERATE_USE_CPU": "true"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"}
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    command = [sys.executable, "train.py", "--model", "lenet", "--steps", "1", *where]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    ) as process:
        limit = Timer(100, process.kill)
        limit.start()
        assert process.stderr
        assert process.stderr.readline() == "still waiting for 1 other process of this run at 127.0.0.1:29871\n"
        process.send_signal(number)
        assert process.stderr.read() == f"ended by {number.name} while waiting\n"
        assert process.wait(10) == 128 + number
        limit.cancel()


SLOWED = """
import os, time
if os.environ.get("RANK") == os.environ.get("SLOW_RANK", "none"):
    time.sleep(6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("slow_rank", ["none", "0", "1"])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_a_wrong_input_is_said_once_whichever_process_finds_it_first(tmp_path, monkeypatch, slow_rank, script):
    (tmp_path / "sitecustomize.py").write_text(SLOWED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("SLOW_RANK", slow_rank)
    words = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "launch/multi_cpu.yaml",
        "--num_processes",
        "2",
        script,
    ]
    wrong = {"train.py": ["--data", "/nope"], "eval.py": ["--checkpoint", "/nope", "--device", "cpu"]}[script]
    start = time.monotonic()
    done = subprocess.run([sys.executable, *words, *wrong], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "/nope" in lines[0], done.stderr
    assert time.monotonic() - start < exits.PATIENCE_S, "the silent process was not ended"


@pytest.mark.slow
def test_the_error_of_a_silent_process_is_said_where_the_speaker_knows_of_none():
    code = """if True:
        import os, time
        from cifar_dist import exits
        from cifar_dist.errors import UserError
        exits.PATIENCE_S = 0.5
        def command():
            if os.environ["RANK"] == "1":
                raise UserError("only here")
            time.sleep(60)
        exits.finish(exits.guarded(command))
    """
    done = torchrun(2, ["--no-python", sys.executable, "-c", code], check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == ["error: only here"]


@pytest.mark.slow
def test_processes_live_through_the_debugging_switch_that_torchs_own_ddp_dies_of(
    folders, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    done = torchrun(2, ["train.py", "--model", "lenet", "--steps", "2", *where])
    said = "TORCH_DISTRIBUTED_DEBUG=DETAIL ends DDP with a segmentation fault; this run has INFO"
    assert done.stderr.splitlines().count(said) == 1


@pytest.mark.parametrize(
    ("environment", "parent", "line"),
    [
        ({}, "bash", "python train.py"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no"},
            "/env/bin/python /env/bin/accelerate launch --num_processes 2 train.py --model lenet",
            "accelerate launch --num_processes 2 train.py",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none"},
            "/env/bin/python3.11 /env/bin/torchrun --nproc_per_node=2 train.py --epochs 3",
            "torchrun --nproc_per_node=2 train.py",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none"},
            "python -m torch.distributed.run --nproc_per_node 2 train.py",
            "python -m torch.distributed.run --nproc_per_node 2 train.py",
        ),
        ({"TORCHELASTIC_RUN_ID": "none"}, "bash job.sh", "the same launch of train.py"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "train.py", "the same launch of train.py"),
        (
            {"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "/env/bin/python /env/bin/torchrun --nnodes 2 --node_rank 1 train.py",
            "on each machine the same launch of train.py",
        ),
    ],
)
def test_a_run_goes_on_by_the_launcher_that_started_it(monkeypatch, environment, parent, line):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=parent.split))
    monkeypatch.setattr(launch.psutil, "Process", lambda: process)
    monkeypatch.setattr(launch.sys, "argv", ["train.py", "--model", "lenet"])
    assert launch.start_again("train.py", ["--resume", "a run"]) == f"{line} --resume 'a run'"
    monkeypatch.setattr(launch.sys, "argv", ["my_own_program.py"])
    if not environment:
        assert launch.start_again("train.py", ["--resume", "a"]) == "python train.py --resume a"
