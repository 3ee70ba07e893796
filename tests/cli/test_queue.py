import json
import os
import sys
from pathlib import Path

import pytest
from helpers.runs import ROOT, stop_after

from cifar_dist.__main__ import main
from cifar_dist.cli.queue import seconds_left
from cifar_dist.record.reader import read_run
from cifar_dist.slurm.squeue import Job, folder_pattern, is_ours, parse, run_folder

FAKE = """#!{python}
import json, sys
json.dump(sys.argv[1:], open("{log}", "w"))
sys.stdout.write(open("{answer}").read())
sys.stderr.write({stderr!r})
sys.exit({status})
"""
# Slurm 22.05 on two nodes: one job whose argument has a space, and an array of six, one at a time; | for \x1f.
CAPTURED = """\
7|N/A|7|train|FAILED|BadConstraints||0:00|UNLIMITED|hello|{slurm}/train.sbatch|{here}
3|1-5%1|3|we ird|PENDING|JobArrayTaskLimit||0:00|UNLIMITED|cifar_dist:runs/%x-%A_%a|{slurm}/sweep.sbatch --lr 0.1|{here}
2|N/A|2|train|RUNNING|None|node1|1:00|365-00:00:00||{slurm}/train.sbatch --lr 0.1 --output-dir runs/a b|{here}
3|0|11|we ird|RUNNING|None|node1|1:00|365-00:00:00|cifar_dist:runs/%x-%A_%a|{slurm}/sweep.sbatch --lr 0.1|{here}
9|N/A|9|wrap|RUNNING|None|node2|1:00|365-00:00:00||(null)|{here}
"""


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Put an squeue on PATH that gives this answer; returns the file where it leaves its arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    log, answer = tmp_path / "argv.json", tmp_path / "answer"

    def install(text: str, stderr: str = "", status: int = 0) -> Path:
        answer.write_text(fields(text, tmp_path))
        program = tmp_path / "squeue"
        program.write_text(FAKE.format(python=sys.executable, log=log, answer=answer, stderr=stderr, status=status))
        program.chmod(0o755)
        return log

    return install


def fields(text: str, here: Path) -> str:
    return text.format(slurm=ROOT / "slurm", here=here).replace("|", "\x1f")


def write_run(folder: Path, lines: list[dict], summary: dict, **config) -> None:
    folder.mkdir(parents=True)
    starts = config.pop("starts", [{"from_step": 0}])
    dataset = {"synthetic": config.pop("synthetic", False), "train": 1000, "classes": ["cat", "dog"]}
    about = {"config": {"model": "lenet", "batch_size": 100, **config}, "dataset": dataset, "starts": starts}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary))


def line(kind: str, step: int, seconds: float, accuracy: float) -> dict:
    common = {"kind": kind, "step": step, "epoch": step / 10, "samples": 100 * step, "seconds": seconds}
    return {**common, "loss": 1.0, "accuracy": accuracy}


RUNNING = [
    line("train", 10, 8.0, 0.2),
    line("val", 10, 8.0, 0.3),
    line("train", 20, 10.0, 0.4),
    line("val", 20, 12.0, 0.625),
    line("train", 30, 13.0, 0.5),
    line("val", 30, 15.0, 0.5),
]


def shown(capsys, monkeypatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["queue"]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


QUEUE = """\
40|N/A|40|lenet|RUNNING|None|node1|1:02:05|2:00:00|cifar_dist:runs/%x-%j|{slurm}/preemptible.sbatch|{here}
41|2-9%2|41|seeds|PENDING|JobArrayTaskLimit||0:00|1-12:00:00|cifar_dist:runs/%x-%A_%a|{slurm}/sweep.sbatch|{here}
41|1|44|seeds|PENDING|BeginTime||0:00|1-12:00:00|cifar_dist:runs/%x-%A_%a|{slurm}/sweep.sbatch|{here}
42|N/A|42|train|COMPLETED|None|node2|5:00|4:00:00||{slurm}/train.sbatch|{here}
43|N/A|43|train|FAILED|NonZeroExitCode|node2|5:00|4:00:00||{slurm}/train.sbatch|{here}
50|N/A|50|other|RUNNING|None|node3|5:00|4:00:00||/home/other/job.sh|{here}
"""


@pytest.fixture
def runs(tmp_path) -> None:
    """The runs of QUEUE: one that runs, one that was requeued, one that is finished, one that diverged."""
    write_run(tmp_path / "runs" / "lenet-40", RUNNING, {"status": "running", "total_steps": 100}, epochs=10)
    starts = [{"from_step": 0}, {"from_step": 10}, {"from_step": 10}]
    write_run(
        tmp_path / "runs" / "seeds-41_1",
        RUNNING[:3],
        {"status": "interrupted", "total_steps": 100},
        epochs=10,
        starts=starts,
    )
    test = {
        "accuracy": 0.6,
        "loss": 1.0,
        "top2_accuracy": 0.8,
        "num_images": 100,
        "per_class_accuracy": {"cat": 0.5, "dog": 0.7},
    }
    finished = {"status": "finished", "total_steps": 30, "val": {**test, "accuracy": 0.625}, "test": test}
    write_run(tmp_path / "runs" / "train-42", RUNNING, finished, epochs=3, synthetic=True)
    failed = {"status": "failed", "error": "DivergedError: the loss is nan", "total_steps": 100}
    write_run(tmp_path / "runs" / "train-43", RUNNING[:1], failed, steps=100)


@pytest.mark.usefixtures("runs")
def test_a_wide_terminal_shows_a_line_for_each_of_our_jobs(squeue, capsys, monkeypatch):
    squeue(QUEUE)
    # 20 steps in 7 s after the first line: 70 more take 24.5 s. The second start of three began at step 10: 80 steps at 10 s / 20.
    assert shown(capsys, monkeypatch, 140) == [
        "job         state      where                 time       limit   epoch  attempt      accuracy       best  left  run folder",
        "40          running    node1              1:02:05     2:00:00  3.0/10        1       50.00 %    62.50 %  0:24  runs/lenet-40",
        "41_1        pending    BeginTime             0:00  1-12:00:00  2.0/10        3       30.00 %    30.00 %  0:40  runs/seeds-41_1",
        "41_[2-9%2]  pending    JobArrayTaskLimit     0:00  1-12:00:00       –        –             –          –     –  (seeds)",
        "42          completed  node2                 5:00     4:00:00   3.0/3        1  test 60.00 %    62.50 %     –  runs/train-42",
        "                                                                                              SYNTHETIC",
        "43          failed     node2                 5:00     4:00:00  1.0/10        1             –          –     –  runs/train-43",
        "43: DivergedError: the loss is nan",
        "*** SYNTHETIC DATA: drawn shapes, not CIFAR-10. No number of this run says anything about CIFAR-10. ***",
    ]


@pytest.mark.usefixtures("runs")
def test_a_narrow_terminal_shows_two_lines_for_each(squeue, capsys, monkeypatch):
    squeue("".join(QUEUE.splitlines(keepends=True)[:3]))
    assert shown(capsys, monkeypatch, 80) == [
        "job              state                    time    epoch  accuracy",
        "run folder       where                   limit  attempt      best  left",
        "40               running               1:02:05   3.0/10   50.00 %  0:24",
        "runs/lenet-40    node1                 2:00:00        1   62.50 %",
        "41_1             pending                  0:00   2.0/10   30.00 %  0:40",
        "runs/seeds-41_1  BeginTime          1-12:00:00        3   30.00 %",
        "41_[2-9%2]       pending                  0:00        –         –     –",
        "(seeds)          JobArrayTaskLimit  1-12:00:00        –         –",
    ]


def test_only_this_users_jobs_are_asked_for(squeue, capsys):
    log = squeue("")
    assert main(["queue"]) == 0
    assert "python -m cifar_dist submit starts one" in capsys.readouterr().out
    argv = json.loads(log.read_text())
    assert f"--user={os.getuid()}" in argv and "--states=all" in argv


def test_a_run_that_was_really_interrupted_is_read(train, squeue, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # of 21 steps, 7 an epoch, with a line every 3 and at its end
        train(name="mine")
    capsys.readouterr()
    squeue("40|N/A|40|x|PENDING|BeginTime||0:00|2:00:00||{slurm}/preemptible.sbatch --output-dir mine|{here}\n")
    cells = shown(capsys, monkeypatch, 140)[1].split()
    assert cells[0] == "40" and cells[-1] == "mine"
    assert cells[5:7] == ["1.0/3", "1"]  # the last line before
    best = max(
        line["accuracy"]
        for line in map(json.loads, (tmp_path / "mine" / "metrics.jsonl").open())
        if line["kind"] == "val"
    )
    assert cells[9:11] == [f"{100 * best:.2f}", "%"]


def test_a_folder_that_makes_no_sense_is_named_and_the_others_are_shown(squeue, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "runs" / "train-42", [{"kind": "train", "step": "many"}], {"status": "running"}, epochs=1)
    write_run(tmp_path / "runs" / "train-43", RUNNING, {"status": "running"}, epochs=10)
    squeue(QUEUE)
    lines = shown(capsys, monkeypatch, 140)
    assert any(line.startswith("42: metrics.jsonl line 1: not a line that a run writes") for line in lines)
    assert any(line.startswith("43 ") and "62.50 %" in line for line in lines)


def test_the_time_left_is_that_of_the_steps_left_at_the_pace_of_this_start(tmp_path):
    def left(lines: list[dict], total_steps: int | None, *began: int) -> float | None:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        write_run(folder, lines, {"status": "running"}, starts=[{"from_step": step} for step in began])
        return seconds_left(read_run(folder), total_steps)

    assert left(RUNNING, 100, 0) == pytest.approx(70 * 7 / 20)
    assert left(RUNNING, 100, 0, 10) == pytest.approx(70 * 5 / 10)
    assert left(RUNNING, 30, 0) == 0
    assert left(RUNNING[:2], 100, 0) == pytest.approx(90 * 8 / 10)
    assert left(RUNNING, 100, 0, 30) is None  # not a step since
    assert left(RUNNING, None, 0) is None
    assert left([], 100, 0) is None


def test_what_slurm_22_05_answered_is_understood(tmp_path):
    jobs = parse(fields(CAPTURED, tmp_path))
    assert [job.label for job in jobs] == ["2", "3_0", "3_[1-5%1]", "7", "9"]
    assert [is_ours(job) for job in jobs] == [True, True, True, True, False]
    first, task, waiting, *_ = jobs
    assert (first.elapsed, first.limit, first.nodes, first.state) == ("1:00", "365-00:00:00", "node1", "RUNNING")
    assert run_folder(task) == tmp_path / "runs" / "we ird-3_0"
    assert run_folder(waiting) is None


def test_tasks_are_in_order_though_the_last_has_the_arrays_own_id():
    line = "2|{}|{}|x|RUNNING|None|n|1:00|2:00|||/x\n"
    text = "".join(line.format(*pair) for pair in [("10", 2), ("9", 13), ("1", 4)]).replace("|", "\x1f")
    assert [job.label for job in parse(text)] == ["2_1", "2_9", "2_10"]


def test_a_job_name_with_a_line_break_is_left_out():
    assert parse("1|N/A|1|two\nlines|RUNNING|None|n|1:00|2:00|||/x\n".replace("|", "\x1f")) == []


def job(command: str, comment: str = "", task: str | None = None) -> Job:
    return Job(
        "70", task, "73" if task else "70", "name", "RUNNING", "None", "n", "1:00", "2:00", comment, command, "/home/me"
    )


@pytest.mark.parametrize(
    ("template", "arguments", "task", "folder"),
    [
        ("train", "", None, "runs/name-70"),
        ("preemptible", "--output-dir runs/mine --lr 1", None, "runs/mine"),
        ("multinode", "--output-dir=a --output-dir=/b", None, "/b"),
        ("sweep", "--model lenet", "3", "runs/name-70_3"),
        ("sweep", "sweeps/lr.yaml --data x", "3", "runs/lr/0003"),
        ("sweep", "sengar2024 --output-dir mine", "12", "mine/0012"),
    ],
)
def test_the_folder_of_a_job_submitted_by_hand_is_the_one_that_job_sh_makes(template, arguments, task, folder):
    command = f"{ROOT}/slurm/{template}.sbatch {arguments}".strip()
    assert run_folder(job(command, task=task)) == Path("/home/me") / folder


def test_an_evaluation_has_no_run_folder():
    assert run_folder(job(f"{ROOT}/slurm/eval.sbatch --checkpoint runs/x")) is None


def test_a_folder_with_any_name_survives_the_comment():
    pattern = folder_pattern("runs/50% a %j", None, is_array=False)
    assert run_folder(job("/x/y.sh", f"cifar_dist:{pattern}")) == Path("/home/me/runs/50% a %j")
    sweep = folder_pattern(None, "my/100%.yaml", is_array=True)
    assert run_folder(job("/x/y.sh", f"cifar_dist:{sweep}", "7")) == Path("/home/me/runs/100%/0007")


def test_another_projects_template_of_the_same_name_is_not_ours(tmp_path):
    assert not is_ours(job(f"{tmp_path}/slurm/train.sbatch --lr 1"))
    (tmp_path / "cifar_dist").mkdir()
    assert is_ours(job(f"{tmp_path}/slurm/train.sbatch --lr 1"))
    assert not is_ours(job(f"{tmp_path}/slurm/train.sbatch.old"))


def test_without_squeue_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["queue"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no squeue on this machine; use a login node of the cluster, "
        "or python -m cifar_dist compare for the runs alone\n"
    )


def test_an_squeue_that_fails_is_one_line(squeue, capsys):
    squeue("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)
    assert main(["queue"]) == 2
    assert capsys.readouterr().err == (
        "error: squeue fails (slurm_load_jobs error: Unable to contact slurm controller (connect failure)); "
        "try again in a few minutes, python -m cifar_dist compare shows the runs\n"
    )


def test_an_unknown_option_is_refused(capsys):
    assert main(["queue", "--everything"]) == 2
    assert "unknown option '--everything'" in capsys.readouterr().err
