"""All that is measured on a GPU, what matters most first, in a quarter of an hour.

    python benchmarks/gpu.py --minutes 14 --data FOLDER --script airbench94_muon.py     # everything; make gpu does this
    python benchmarks/gpu.py correctness                                                # one part alone
    python benchmarks/gpu.py results --data FOLDER -- --epochs 3                        # words after -- go to train.py

correctness   the tests marked gpu, several to a process, several processes at a time; a failure is printed when it happens
steps         images/s of eight cases: a bare step and its captured graph, and train.py eager, captured and compiled
speed94       whole runs beside the published script, where --script names it (benchmarks/speed94.py)
results       the recipes of docs/RESULTS.md, the cheapest first, as many side by side as give the most images/s in total

Without the name of a part the first three have 3 minutes of 14, 2 and 3, and what one leaves over goes to the next. When
--minutes are over, all that still runs is stopped: a training saves a checkpoint, and the same call goes on with it. Whatever was
measured is in OUT/PART.json as soon as it is known, with hardware, date and commit, and isn't measured again; a test only
while the commit is the same. To go on on another machine, take OUT/*.json along and name their folder with --records.
Each part ends with the rows that belong in docs/, of all there is. A job's output is in OUT/PART/JOB.log.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402

from benchmarks.gpu_correctness import correctness, correctness_rows  # noqa: E402
from benchmarks.gpu_jobs import Ended, Record, Records  # noqa: E402
from benchmarks.gpu_results import results, results_rows  # noqa: E402
from benchmarks.gpu_speed94 import speed94, speed94_rows  # noqa: E402
from benchmarks.gpu_steps import steps, steps_rows  # noqa: E402
from benchmarks.throughput import positive  # noqa: E402
from cifar_dist.errors import UserError  # noqa: E402
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED, WRONG_INPUT  # noqa: E402
from cifar_dist.record.environment import git_commit  # noqa: E402


class Part(NamedTuple):
    """What is measured together."""

    run: Callable[[argparse.Namespace, Record, float], Ended]  # until a time on the monotonic clock
    rows: Callable[[Records], list[str]]
    minutes_of_14: float | None = None  # None: all that is left
    takes_train_words: bool = False


PARTS = {
    "correctness": Part(correctness, correctness_rows, 3),
    "steps": Part(steps, steps_rows, 2),
    "speed94": Part(speed94, speed94_rows, 3, takes_train_words=True),
    "results": Part(results, results_rows, takes_train_words=True),
}
PRINTING_S = 5.0  # that are left at the end, when nothing runs any more
SIDE_BY_SIDE = ("correctness", "results")


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options, with absolute paths; raises `UserError`."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="default: all of them")
    add("--data", default="cifar10", help="cifar10, synthetic or a folder")
    add("--data-dir", default="data", type=absolute, help="where decoded data and compiled code are kept")
    add("--out", default="runs/gpu", type=lambda word: Path(absolute(word)))
    add("--records", type=lambda word: Path(absolute(word)), help="a folder of earlier PART.json, from another machine")
    add("--minutes", default=14.0, type=positive(float), help="in total, after which nothing runs any more")
    add(
        "--parallel",
        type=positive(int),
        help="processes at a time, of tests or results (default: three quarters of the cores; measured)",
    )
    add("--only", nargs="+", default=[""], metavar="WORD", help="what has one of these in its name, of one part")
    add("--seeds", default=3, type=positive(int), help="of results and speed94")
    add("--seconds", default=1.0, type=positive(float), help="that each speed of steps is timed")
    add("--script", type=absolute, help="the published script, for speed94")
    add(
        "--commit", default=git_commit(), help="of the code, where git can't tell; without, all tests are run each time"
    )
    add("--cpu", action="store_true", help="try this out without a GPU; its numbers mean nothing")
    add("--dry-run", action="store_true", help="print what is left, and run nothing")
    given = parser.parse_args(argv[:end])
    given.train_words, given.device = list(argv[end + 1 :]), "cpu" if given.cpu else "gpu"
    if given.train_words and not (given.part and PARTS[given.part].takes_train_words):
        raise UserError(
            f"-- {shlex.join(given.train_words)} is for results or speed94 alone; name one, or leave it out"
        )
    if given.parallel and given.part not in SIDE_BY_SIDE:
        raise UserError(
            f"--parallel {given.parallel} is for one of {', '.join(SIDE_BY_SIDE)}; name it, or leave it out"
        )
    if given.only != [""] and not given.part:
        raise UserError(f"--only {shlex.join(given.only)} is for one part; name it, or leave it out")
    if given.script and not Path(given.script).is_file():
        raise UserError(f"--script {given.script} is not a file; benchmarks/speed94.py says where it comes from")
    if given.records and not given.records.is_dir():
        raise UserError(f"--records {given.records} is not a folder; name the one that holds PART.json")
    if not (torch.cuda.is_available() or given.cpu or given.dry_run):
        raise UserError("torch sees no GPU; check the driver, or try this script out with --cpu")
    if Path(given.data).is_dir():
        given.data = absolute(given.data)
    return given


def absolute(word: str) -> str:
    return str(Path(word).resolve())


def main(argv: Sequence[str]) -> int:
    """Do one part, or all; returns the exit status: 0 well, 75 something of a part is left, 1 something failed, 2 wrong usage."""
    start = time.monotonic() - (time.time() - psutil.Process().create_time())  # importing torch counts
    try:
        given = read_options(argv)
        if given.part:
            return do(given.part, given, start + 60 * given.minutes - PRINTING_S).status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return do_all(given, start)


def do_all(given: argparse.Namespace, start: float) -> int:
    """Do one part after another. What is left for lack of time is no failure."""
    whole_s, spent_s, statuses = 60 * given.minutes - PRINTING_S, 0.0, []
    decoding = decode(given)
    for name, part in PARTS.items():
        spent_s += whole_s if part.minutes_of_14 is None else whole_s * part.minutes_of_14 / 14
        end = start + min(whole_s, spent_s)
        if decoding and name != "correctness" and wait_until(decoding, end):
            print(f"{name} needs data: {given.data} is not decoded, see {given.out / 'data.log'}", flush=True)
            statuses.append(FAILED)
            break
        try:
            done = do(name, given, end)
        except UserError as error:
            print(f"{name} left out: {error}", flush=True)
            continue
        statuses.append(done.status)
        if done.signalled:
            break
    if decoding and decoding.poll() is None:
        decoding.kill()
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; records in {given.out}", flush=True)
    return FAILED if FAILED in statuses else FINISHED


class Done(NamedTuple):
    status: int
    signalled: bool


def do(name: str, given: argparse.Namespace, end: float) -> Done:
    """Do a part until `end`, and print its rows and what failed or is left."""
    part, record = PARTS[name], Record(name, given)
    ended = part.run(given, record, end)
    if given.dry_run:
        return Done(FINISHED, False)
    if record.done:
        print("\n".join(part.rows(record.done)))
    failed = [key for key, status in ended.statuses.items() if status == FAILED]
    left = [key for key, status in ended.statuses.items() if status == INTERRUPTED]
    if failed:
        print(f"failed: {' '.join(failed)}")
    if left:
        print(f"{name}: left for the next call: {len(left)} of {len(ended.statuses)}")
    sys.stdout.flush()
    return Done(FAILED if failed else INTERRUPTED if left else FINISHED, ended.signalled)


def decode(given: argparse.Namespace) -> "subprocess.Popen[bytes] | None":
    """Start to decode the data, once for all that train, while the tests run, which have their own."""
    if given.dry_run:
        return None
    given.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cifar_dist", "prepare", "--data", given.data, "--data-dir", given.data_dir]
    with (given.out / "data.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def wait_until(child: "subprocess.Popen[bytes]", end: float) -> int | None:
    """Return a child's exit status, or None, which is as good as a failure, where it is not there in time."""
    try:
        return child.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
