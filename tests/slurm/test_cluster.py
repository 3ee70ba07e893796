"""Every template on a real Slurm cluster of three nodes: submitted, stopped, preempted, crashed, and finished all the same."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.runs import ROOT, words
from helpers.slurm_cluster import Job, cluster, read

pytestmark = pytest.mark.slow

STEPS = 1500
TEMPLATES = sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
README = (ROOT / "slurm/README.md").read_text()
SUBMITTED = [
    line.split("#")[0].strip() for line in re.findall(r"(?:^    |`)(sbatch [^`…\n]+)(?:`|$)", README, re.MULTILINE)
]
SHARE = ["--oversubscribe", "--gpus-per-node=1", "--cpus-per-task=2", "--mem=8G"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with cluster(3, tmp_path_factory.mktemp("checkout")) as up:
        yield up


@pytest.fixture(scope="module")
def small(folders, tmp_path_factory) -> list[str]:
    """Options of a run of STEPS steps on the small folders, about ten seconds long, evaluated at its end only."""
    where = f"--data {folders} --data-dir {tmp_path_factory.mktemp('data')}"
    return f"--model lenet --lr 0.01 --batch-size 8 --threads 1 --eval-every 1000 --steps {STEPS} {where}".split()


@pytest.fixture(scope="module")
def two_at_once(lab, small) -> list[Job]:
    """Two uninterrupted runs on the same two nodes at the same time, one process each on each."""
    where = [*SHARE, "--nodelist=node[1-2]", "slurm/multinode.sbatch", *small]
    jobs = [lab.submit(*where, "--seed", seed) for seed in ("0", "1")]
    for job in jobs:
        assert job.ended()["JobState"] == "COMPLETED", job.log
    return jobs


@pytest.fixture(scope="module")
def reference(two_at_once) -> Path:
    """The folder of an uninterrupted run on two nodes, seed 0."""
    return folder(two_at_once[0])


def folder(job: Job) -> Path:
    return job.cluster.checkout / f"runs/{job.facts()['JobName']}-{job.id}"


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def starts(path: Path) -> list[tuple[int, int]]:
    """Return (step, number of processes) of each start of a run."""
    return [(start["from_step"], start["world_size"]) for start in read(path, "config.json")["starts"]]


def pause(job: Job) -> list[psutil.Process]:
    """Suspend the launcher and the training of a job, whose nodes are all this machine, and return them."""
    of_job, python = f"runs/{folder(job).name}", Path(sys.executable).resolve()
    every = psutil.process_iter(["cmdline", "exe"])
    found = [p for p in every if of_job in (p.info["cmdline"] or ()) and Path(p.info["exe"] or "").resolve() == python]
    assert found
    for process in found:
        process.suspend()
    return found


def check_that_it_went_on(job: Job, run: Path, reference: Path) -> None:
    """Assert that the job was requeued once and ended as one run with the weights of the uninterrupted one."""
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log
    assert (summary := read(run))["status"] == "finished"
    assert summary["step"] == STEPS
    assert [world_size for _, world_size in starts(run)] == [2, 2]
    assert 0 < starts(run)[1][0] < STEPS
    assert weights(run) == weights(reference)


@pytest.mark.parametrize("template", TEMPLATES)
def test_slurm_would_accept_every_template(lab, template):
    assert "to start at" in lab.call("sbatch", "--test-only", f"slurm/{template}", "--model", "lenet")


@pytest.mark.parametrize("line", SUBMITTED)
def test_slurm_would_accept_every_command_of_the_readme(lab, line):
    assert "to start at" in lab.call("sbatch", "--test-only", *shlex.split(line)[1:])


def test_two_jobs_on_the_same_nodes_run_side_by_side(two_at_once):
    one, other = (job.facts() for job in two_at_once)
    assert one["NodeList"] == other["NodeList"] == "node[1-2]"
    assert max(one["StartTime"], other["StartTime"]) < min(one["EndTime"], other["EndTime"])
    for job in two_at_once:
        assert starts(folder(job)) == [(0, 2)]
        assert read(folder(job))["status"] == "finished"
    assert weights(folder(two_at_once[0])) != weights(folder(two_at_once[1]))


def test_at_its_time_limit_a_job_is_requeued_and_ends_bit_for_bit_like_an_uninterrupted_one(lab, small, reference):
    run = ["--output_dir", "runs/mine"]  # in train.py's other spelling
    job = lab.submit("--nodes=2", "slurm/preemptible.sbatch", *small, *run).training()
    job.stop()
    check_that_it_went_on(job, lab.checkout / "runs/mine", reference)
    assert "interrupted by SIGUSR1" in job.log
    assert "srun: error" not in job.log  # the launchers lived through the signal
    assert "requeue 1 of at most 20" in job.log


def test_a_job_that_is_preempted_by_a_more_important_one_goes_on_after_it(lab, small, reference):
    job = lab.submit("slurm/multinode.sbatch", *small).training()
    important = lab.submit("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    check_that_it_went_on(job, folder(job), reference)
    assert "interrupted by SIGTERM" in job.log
    assert important.facts()["EndTime"] < job.facts()["StartTime"]


def test_a_cancelled_job_saves_a_checkpoint_and_stays_cancelled(lab, small):
    job = lab.submit("slurm/preemptible.sbatch", *small).training()
    lab.call("scancel", job.id)
    job.wait_for(lambda: not lab.call("squeue", "--noheader", "--jobs", job.id))
    assert job.facts()["JobState"] == "CANCELLED"
    assert read(folder(job))["status"] == "interrupted"


def test_a_lost_node_costs_no_more_than_what_came_after_the_last_checkpoint(lab, small, reference):
    often = ["--checkpoint-minutes", "0"]
    job = lab.submit("slurm/multinode.sbatch", *small, *often).training()
    assert job.facts()["NodeList"] == "node[1-2]"
    job.wait_for(lambda: [*folder(job).glob("checkpoints/step_*/manifest.json")])
    lab.node("crash", "node2")
    try:
        job.wait_for(lambda: job.facts()["JobState"] == "PENDING")
        check_that_it_went_on(job, folder(job), reference)
        assert job.facts()["NodeList"] == "node[1,3]"
    finally:
        lab.node("start", "node2")


def test_a_failing_run_ends_its_job_and_is_not_requeued(lab, small):
    usual = dict(zip(small[::2], small[1::2], strict=True))
    wrong = lab.submit(*SHARE, "slurm/preemptible.sbatch", *words(usual, ["--lr", "-1"]))
    diverging = lab.submit(*SHARE, "slurm/preemptible.sbatch", *words(usual, ["--lr", "1e30"]))
    for job, message in ((wrong, "error: --lr must be"), (diverging, "failed: ")):
        ended = job.ended()
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0"), job.log
        assert message in job.log
        assert "failed with status 1; the reason is above. Not requeued" in job.log
    assert read(folder(diverging))["status"] == "failed"


def test_a_stopped_run_goes_on_with_the_same_samples_on_another_number_of_nodes(lab, small, reference):
    first = lab.submit("slurm/multinode.sbatch", *small)
    first.wait_for(lambda: "processes: 2, nodes: 2" in first.log)
    first.stop()  # while torch is being imported, so that it has to be said again
    ended = first.ended()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), first.log
    assert "the same command with --output-dir goes on from it" in first.log
    run = f"runs/multinode-{first.id}"
    second = lab.submit("slurm/train.sbatch", *small, "--output-dir", run, PROCESSES_PER_NODE="4")
    assert second.ended()["JobState"] == "COMPLETED", second.log
    assert [world_size for _, world_size in starts(lab.checkout / run)] == [2, 4]
    check_same_samples(lab.checkout / run, reference)


def check_same_samples(run: Path, reference: Path) -> None:
    """Assert that both saw as many samples at every step, and learned the same from them up to rounding."""
    lines, expected = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (run, reference)
    )
    assert len(lines) == len(expected) > STEPS / 100
    for line, other in zip(lines, expected, strict=True):
        assert [line[name] for name in ("kind", "step", "samples")] == [other[n] for n in ("kind", "step", "samples")]
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_an_array_runs_a_sweep_and_requeues_only_the_task_that_was_interrupted(lab, small):
    (lab.checkout / "momentum.yaml").write_text(
        "method: grid\nmetric: {name: val/accuracy, goal: maximize}\nparameters:\n  momentum: {values: [0.8, 0.9]}\n"
    )
    array = lab.submit("--array=0-1", "slurm/sweep.sbatch", "momentum.yaml", *small)
    tasks = [Job(lab, f"{array.id}_{index}") for index in (0, 1)]
    tasks[1].wait_for(lambda: (lab.checkout / "runs/momentum/0001/metrics.jsonl").exists())
    tasks[1].stop()  # the last one, whose SLURM_JOB_ID is the array's
    restarts = []
    for index, task in enumerate(tasks):
        ended = task.ended()
        assert ended["JobState"] == "COMPLETED", task.log
        assert read(lab.checkout / f"runs/momentum/000{index}")["status"] == "finished"
        restarts.append(ended["Restarts"])
    assert restarts == ["0", "1"]


def test_an_array_runs_over_seeds(lab, small):
    array = lab.submit("--array=3,5", "slurm/sweep.sbatch", *small[:-6], "--steps", "3", *small[-4:])
    for seed in (3, 5):
        task = Job(lab, f"{array.id}_{seed}")
        assert task.ended()["JobState"] == "COMPLETED", task.log
        run = lab.checkout / f"runs/sweep-{task.id}"
        assert read(run, "config.json")["config"]["seed"] == seed
        assert read(run)["status"] == "finished"


def test_an_evaluation_job_finds_what_the_run_found(lab, small, reference):
    job = lab.submit("slurm/eval.sbatch", "--checkpoint", str(reference), *small[-2:], PROCESSES_PER_NODE="2")
    assert job.ended()["JobState"] == "COMPLETED", job.log
    measured, expected = read(reference, "eval-test.json"), read(reference)["test"]
    assert {name: measured[name] for name in expected} == expected


@pytest.mark.parametrize(("options", "gpus"), [("", "0"), ("--gpus-per-node=2 --time=04:00:00", "0,1")])
def test_a_shell_on_a_node_has_the_sites_environment_and_its_gpus(lab, options, gpus):
    line = f"slurm/interactive.sh {options} <<< 'env; exit 3' || echo status $?"
    lab.call("script", "-qec", line, "typescript", SHELL="/bin/bash")  # script runs the line with $SHELL
    lines = (lab.checkout / "typescript").read_text().replace("\r", "").splitlines()
    assert {"GPUS_PER_NODE=0", "SLURM_JOB_NAME=interactive", f"CUDA_VISIBLE_DEVICES={gpus}", "status 3"} <= set(lines)


def test_submit_and_queue_and_what_became_of_it(lab, small):
    package = ("python", "-m", "cifar_dist")
    path = {"PATH": f"{Path(sys.executable).parent}:{lab.environment['PATH']}"}
    options = [*small, "--array-seeds", "2", "--gpus-per-node", "1", "--time", "30m", "--job-name", "seeds"]
    line = lab.call(*package, "submit", *options, "--dry-run", **path).splitlines()
    assert "--array=0-1" in line[0] and line[1].startswith("# Slurm accepts it")
    said = lab.call(*package, "submit", *options, **path)
    array = re.search(r"job array (\d+) of 2 runs", said)
    assert array, said
    jobs = [Job(lab, f"{array[1]}_{task}") for task in (0, 1)]
    paused = [process for job in jobs for process in pause(job.training())]  # or a slow machine would ask too late
    shown = lab.call(*package, "queue", COLUMNS="160", **path)
    for process in paused:
        process.resume()
    for job in jobs:
        row = next(line for line in shown.splitlines() if line.startswith(job.id))
        assert "running" in row and f"runs/seeds-{job.id}" in row
    for seed, job in enumerate(jobs):
        assert job.ended()["JobState"] == "COMPLETED", job.log
        run = lab.checkout / f"runs/seeds-{job.id}"
        assert read(run)["status"] == "finished" and read(run, "config.json")["config"]["seed"] == seed


def test_submit_refuses_what_the_cluster_never_could(lab, small):
    command = [sys.executable, "-m", "cifar_dist", "submit", *small, "--nodes", "9"]
    done = subprocess.run(command, cwd=lab.checkout, env=lab.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: sbatch refuses: ")


def test_the_doctor_examines_all_ranks_of_a_job(lab, small):
    data = small[small.index("--data") :]
    lab.call(sys.executable, "-m", "cifar_dist", "prepare", *data)
    doctor = shlex.join([sys.executable, "-m", "cifar_dist", "doctor", *data, "--device", "cpu"])
    said = lab.call("srun", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "bash", "-c", doctor)
    assert re.search(r"ok +ranks +2 over gloo, on 2 hosts", said), said
    assert re.search(r"ok +all-reduce ", said) and " failed" not in said.replace("0 failed", "")
