"""What the Slurm templates ask for and decide, on a machine without Slurm: srun, scontrol and accelerate only take notes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.runs import ROOT

SLURM = ROOT / "slurm"
SCRIPTS = sorted([*SLURM.glob("*.sh"), *SLURM.glob("*.sbatch"), *(ROOT / "tests/slurm").glob("*.sh")])
WHOLE_NODE = {"exclusive": "", "gpus-per-node": "1", "mem": "0", "ntasks-per-node": "1"}
SHARE = {"nodes": "1", "gpus-per-node": "1", "cpus-per-task": "4", "mem": "16G", "ntasks-per-node": "1"}
GOES_ON = {"signal": "B:USR1@120", "requeue": "", "open-mode": "append"}
LOG = {"output": "%x-%j.out"}
DIRECTIVES = {
    "train": {"nodes": "1", "time": "04:00:00", **WHOLE_NODE, **GOES_ON, **LOG},
    "multinode": {"nodes": "2", "time": "04:00:00", **WHOLE_NODE, **GOES_ON, **LOG},
    "preemptible": {"nodes": "1", "time": "01:00:00", **WHOLE_NODE, **GOES_ON, **LOG},
    "sweep": {"array": "0-4%2", "time": "04:00:00", **SHARE, **GOES_ON, "output": "%x-%A_%a.out"},
    "eval": {"time": "00:10:00", **SHARE, **LOG, "open-mode": "append"},
}

SRUN = """#!/bin/bash
printf '%s\\n' "$@" >srun.txt
while [ "$1" != bash ]; do shift; done
[ "${TERMINATES:-}" ] && kill -TERM $PPID
[ "${STOPS:-}" ] && kill -USR1 $PPID && sleep 1 # in which the job's script hands the signal on
SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$2" = hostnames ]; then echo first; exit; fi
[ -e refuse ] && exit 1
echo "$@" >>scontrol.txt
kill -KILL $PPID # as Slurm ends a job that it requeues
"""
PYTHON = f"""#!/bin/bash
[ "${{STOPS_BEFORE:-}}" ] && [ "$3" = data ] && kill -USR1 "$JOB_PROCESS"
exec {sys.executable} "$@"
"""  # a link to it wouldn't find the environment's packages
LAUNCHED = """#!/bin/bash
printf '%s\\n' "$(basename "$0")" "$@" >launched.txt
env >environment.txt
if [ -d after ]; then mkdir -p "$FOLDER"; cp after/* "$FOLDER"; fi
exit "${EXITS:-0}"
"""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_every_script(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    result = subprocess.run(
        ["shellcheck", "-x", *SCRIPTS, SLURM / "site.sh.example"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_every_template_asks_for_what_is_expected_and_nothing_else():
    asked = {}
    for path in SLURM.glob("*.sbatch"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
        words = [line.split()[1].removeprefix("--").partition("=") for line in lines]
        asked[path.stem] = {name: value for name, _, value in words}
        assert len(lines) == len(asked[path.stem]), path
    assert asked == {name: {"job-name": name, **options} for name, options in DIRECTIVES.items()}


class Ended(NamedTuple):
    """What a template did."""

    status: int
    output: str
    folder: Path

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def requeued(self) -> list[str]:
        return self.lines("scontrol.txt")

    @property
    def launched(self) -> list[str]:
        return self.lines("launched.txt")


@pytest.fixture
def submit(tmp_path) -> Callable[..., Ended]:
    """Run a template as Slurm would, on the first of its nodes."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "accelerate": LAUNCHED, "python": PYTHON}.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    (tmp_path / "slurm").symlink_to(SLURM)
    (tmp_path / "cifar_dist").symlink_to(ROOT / "cifar_dist")

    def run(template: str, *words: str, nodes: int = 1, **environment: str) -> Ended:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PET_"))}
        own |= {"PATH": f"{bin_}:{os.environ['PATH']}", "FOLDER": "runs/train-7"}
        own |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_JOB_NODELIST": "first,second"}
        own |= {"SLURM_NNODES": str(nodes), "SLURM_CPUS_ON_NODE": "64", **environment}
        command = ["bash", "-c", 'JOB_PROCESS=$$ exec bash "$@"', "bash", SLURM / f"{template}.sbatch", *words]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60, check=False)
        return Ended(done.returncode, done.stdout + done.stderr, tmp_path)

    return run


def leave(folder: Path, status: str, step: int = 50, from_step: int = 0, signal: str = "SIGUSR1") -> None:
    """Write what a run leaves in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"status": status, "step": step, "total_steps": 90}
    (folder / "summary.json").write_text(json.dumps(summary | ({"signal": signal} if status == "interrupted" else {})))
    (folder / "config.json").write_text(
        json.dumps({"config": {}, "dataset": {}, "starts": [{"from_step": 0}, {"from_step": from_step}]})
    )


@pytest.mark.parametrize(
    ("nodes", "environment", "options"),
    [
        (1, {}, "--config_file launch/cpu.yaml --num_processes 1"),
        (1, {"PROCESSES_PER_NODE": "3"}, "--config_file launch/multi_cpu.yaml --num_processes 3"),
        (1, {"SLURM_GPUS_ON_NODE": "1"}, "--config_file launch/gpu.yaml --num_processes 1"),
        (1, {"SLURM_GPUS_ON_NODE": "4"}, "--config_file launch/multi_gpu.yaml --num_processes 4"),
        (1, {"GPUS_PER_NODE": "4"}, "--config_file launch/multi_gpu.yaml --num_processes 4"),
        (1, {"SLURM_GPUS_ON_NODE": "4", "GPUS_PER_NODE": "0"}, "--config_file launch/cpu.yaml --num_processes 1"),
        (2, {}, "--config_file launch/multi_cpu.yaml --num_processes 2 MACHINES"),
        (
            2,
            {"SLURM_GPUS_ON_NODE": "4"},
            "--config_file launch/multi_gpu.yaml --num_processes 8 MACHINES",
        ),
    ],
)
def test_the_launcher_is_told_what_the_job_has(submit, monkeypatch, nodes, environment, options):
    machines = "--rdzv_backend static --same_network --num_machines 2 --main_process_ip first --main_process_port 20007"
    expected = f"{options.replace('MACHINES', machines)} --num_cpu_threads_per_process 1"
    ended = submit("train", "--model", "lenet", nodes=nodes, **environment)
    script = ["train.py", "--output-dir", "runs/train-7", "--model", "lenet"]
    assert ended.launched == ["accelerate", "launch", "--machine_rank", "0", *expected.split(), *script]
    monkeypatch.chdir(ROOT)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(ended.launched[2:]))
    assert (args.num_processes, args.num_machines, args.machine_rank) == (int(options.split()[3]), nodes, 0)
    assert args.training_script_args == script[1:]
    on_cpu = "ACCELERATE_USE_CPU=true" in ended.lines("environment.txt")
    assert on_cpu == ("cpu.yaml" in options) == args.use_cpu


def test_a_step_asks_for_all_that_an_exclusive_job_has(submit):
    ended = submit("train", nodes=2, SLURM_GPUS_ON_NODE="4")
    expected = "--nodes=2 --ntasks=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=64 --mpi=none --export=ALL"
    assert ended.lines("srun.txt")[:8] == [*expected.split(), "--kill-on-bad-exit=1"]
    assert "--cpus-per-task=4" in submit("train", SLURM_CPUS_PER_TASK="4").lines("srun.txt")
    assert not [word for word in submit("train").lines("srun.txt") if word.startswith("--gpus")]


def test_a_port_that_is_taken_is_left_to_its_owner(submit):
    with socket.socket() as one:
        one.bind(("0.0.0.0", 20007))
        one.listen()
        launched = submit("multinode", nodes=2).launched
    assert launched[launched.index("--main_process_port") + 1] == "20008"


def test_the_site_names_the_environment_the_container_and_the_nodes_own_disk(submit, tmp_path):
    (tmp_path / "slurm").unlink()
    shutil.copytree(SLURM, tmp_path / "slurm", ignore=shutil.ignore_patterns("site.sh"))
    site = 'export CONTAINER="env CONTAINED=1" LOCAL_DATA="$PWD/local" SHARED_BY_ALL=1'
    (tmp_path / "slurm/site.sh").write_text(site)
    (tmp_path / "elsewhere/cache/cifar10-v2").mkdir(parents=True)
    (tmp_path / "elsewhere/cache/cifar10-v2.lock").touch()
    ended = submit("eval", "--checkpoint", "x", "--data-dir", "elsewhere", "--data_dir=elsewhere")
    assert {"CONTAINED=1", "SHARED_BY_ALL=1"} <= set(ended.lines("environment.txt"))
    assert ended.launched[-4:] == ["--checkpoint", "x", "--data-dir", f"{tmp_path}/local"]
    assert [path.name for path in (tmp_path / "local/cache").iterdir()] == ["cifar10-v2"]


@pytest.mark.parametrize(
    "given",
    [
        "--output-dir runs/mine",
        "--output-dir=runs/mine",
        "--output_dir runs/mine",
        "--output_dir=runs/mine",
    ],
)
@pytest.mark.parametrize(("status", "exits"), [("finished", 0), ("interrupted", 75), ("running", 1), ("failed", 1)])
def test_a_job_ends_as_the_run_in_the_folder_that_was_given(submit, tmp_path, given, status, exits):
    leave(tmp_path / "after", status)
    ended = submit("train", *given.split(), FOLDER="runs/mine")
    assert ended.status == exits, ended.output
    assert not ended.requeued
    if status == "interrupted":
        assert "interrupted after step 50 of 90, which is saved in runs/mine" in ended.output


def test_what_srun_says_is_the_status_of_a_failed_run(submit, tmp_path):
    leave(tmp_path / "after", "failed")
    assert submit("preemptible", EXITS="3").status == 3


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "FOLDER": "runs/train-7_4"}


@pytest.mark.parametrize(
    ("template", "environment", "job"),
    [
        ("preemptible", {}, "7"),
        ("preemptible", {"SLURM_RESTART_COUNT": "19"}, "7"),
        ("preemptible", {"EXITS": "1"}, "7"),
        ("sweep", ARRAY, "7_4"),
    ],
)
def test_an_interrupted_run_is_requeued_and_no_other_task_of_its_array(submit, tmp_path, template, environment, job):
    leave(tmp_path / "after", "interrupted")
    ended = submit(template, **environment)
    assert ended.requeued == [f"requeue {job}"], ended.output
    assert ended.status == -9  # Slurm ended it


@pytest.mark.parametrize(
    ("outcome", "environment", "exits", "message"),
    [
        (("finished",), {}, 0, ""),
        (("failed",), {"EXITS": "1"}, 1, "failed with status 1; the reason is above. Not requeued"),
        (("running",), {}, 1, "failed with status 0"),
        (("interrupted", 50, 50), {}, 75, "not requeued: it began at step 50 and got no further"),
        (("interrupted",), {"SLURM_RESTART_COUNT": "20"}, 75, "not requeued: it was already, 20 times"),
        (("interrupted",), {"SLURM_RESTART_COUNT": "3", "MAX_REQUEUE": "3"}, 75, "MAX_REQUEUE is 3"),
    ],
)
def test_nothing_is_requeued_for_ever(submit, tmp_path, outcome, environment, exits, message):
    leave(tmp_path / "after", *outcome)
    ended = submit("preemptible", **environment)
    assert (ended.status, ended.requeued) == (exits, []), ended.output
    assert message in ended.output


def test_a_start_that_fails_at_once_is_not_taken_for_the_interruption_before_it(submit, tmp_path):
    leave(tmp_path / "runs/train-7", "interrupted")
    ended = submit("preemptible", EXITS="1")
    assert (ended.status, ended.requeued) == (1, []), ended.output


def test_after_a_preemption_every_template_requeues(submit, tmp_path):
    leave(tmp_path / "after", "interrupted", signal="SIGTERM")
    ended = submit("train")
    assert ended.requeued == ["requeue 7"], ended.output


def test_a_job_that_slurm_is_ending_is_left_to_it(submit, tmp_path):
    leave(tmp_path / "after", "interrupted", signal="SIGTERM")
    ended = submit("preemptible", TERMINATES="1")
    assert (ended.status, ended.requeued) == (75, []), ended.output
    assert "Slurm is ending this job" in ended.output


def test_a_stop_while_srun_itself_is_starting_does_not_end_it(submit, tmp_path):
    leave(tmp_path / "after", "interrupted")
    ended = submit("train", STOPS="1", EXITS="75")
    assert (ended.status, len(ended.launched) > 0) == (75, True), ended.output
    assert "got USR1" in ended.output


@pytest.mark.parametrize("_", range(8))  # on two cores, a script that sends the signal at once failed 7 of 8 times
def test_a_stop_right_before_srun_is_started_does_not_end_it(submit, tmp_path, _):
    leave(tmp_path / "after", "interrupted")
    ended = submit("train", STOPS_BEFORE="1", EXITS="75")
    assert (ended.status, len(ended.launched) > 0) == (75, True), ended.output
    assert "got USR1" in ended.output


def test_where_slurm_refuses_to_requeue_the_job_ends_as_interrupted(submit, tmp_path):
    leave(tmp_path / "after", "interrupted")
    (tmp_path / "refuse").touch()
    ended = submit("preemptible")
    assert ended.status == 75
    assert "Slurm did not requeue it" in ended.output


def test_an_array_runs_over_seeds_or_over_a_sweep_file(submit):
    seeds = submit("sweep", "--model", "lenet", **ARRAY)
    assert seeds.launched[-7:] == ["train.py", "--output-dir", "runs/train-7_4", "--model", "lenet", "--seed", "4"]
    sweep = submit("sweep", "some/lr.yaml", "--data", "x", **ARRAY | {"FOLDER": "runs/lr/0004"})
    assert sweep.lines("srun.txt")[-9:] == [
        "python", "-m", "cifar_dist", "sweep", "some/lr.yaml", "--data", "x", "--index", "4",
    ]  # fmt: skip
