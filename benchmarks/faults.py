"""What is left of a run when a file operation fails, or its process is killed there? What docs/RELIABILITY.md promises.

    python benchmarks/faults.py                          # 1,000 tries, an hour or so
    python benchmarks/faults.py --tries 100 run read     # a hundred of two scenarios, drawn from all there are
    python benchmarks/faults.py --soak 50                # random faults, one after the other, in the recoveries too
    python benchmarks/faults.py --ranks 8                # two processes, one of them killed, stopped for good or for a while

A try: a short run whose k-th file operation under its folder (open, write, fsync, rename, mkdir, unlink ...) fails, or at which
the process is killed; then the same command again without a fault, until it ends with status 0, twice at most; then its folder
is compared with that of an uninterrupted run: weights and predictions byte for byte, training state but for its seconds,
metrics and summary but for times, and nothing left over but a checkpoint that was said to be irremovable. Whatever was said must
be lines, no traceback.

Faults: an errno (this operation fails), with + at its end (all after it, too: a full disk); short, a write does half and fails;
kill-before and kill-after the operation; torn, half a write and killed; cut, killed, and what no fsync covered is gone (a
pulled plug). Needs gcc and Linux. Each try is a fork of a process that has imported everything. One line of JSON each in --work.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

SMALL = ["--model", "lenet", "--epochs", "2", "--batch-size", "40", "--log-every", "1", "--checkpoint-minutes", "0"]
SMALL += ["--threads", "1", "--wandb", "disabled"]
KILLS = ("kill-before", "kill-after", "torn", "cut")
WRITES = (*KILLS, "ENOSPC", "ENOSPC+", "EIO", "EDQUOT", "EACCES", "ESTALE", "EMFILE", "short")
READS = ("EIO", "ESTALE", "EACCES", "EMFILE", "EIO+", "kill-before")
TIMEOUT_S = 60.0
TIMES = ("seconds", "images_per_second")


@dataclass(frozen=True)
class Scenario:
    """What a try is of."""

    begins: str  # with: nothing, a run that was killed half-way, a finished one
    under: str  # where operations are counted, in the folder of the try
    operations: str  # their class, as faults.c has it
    faults: Sequence[str]
    more: Sequence[str] = ()  # options of the command


SCENARIOS = {
    "run": Scenario("nothing", "run", "w", WRITES),
    "resume": Scenario("half", "run", "w", WRITES),
    "read": Scenario("half", "", "r", READS),
    "fork": Scenario("whole", "", "w", WRITES, ("--resume", "{work}/whole/checkpoints/step_{middle:08d}")),
    "data": Scenario("no data", "data", "w", WRITES),
    "locks": Scenario("half", "", "l", ("EIO", "EACCES", "kill-before")),
}


def main(argv: Sequence[str]) -> int:
    """Try, print a table, and return 1 if anything ended otherwise than it should."""
    options = read_options(argv)
    preload()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        work = Path(options.work or folder).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if options.ranks:
            outcomes = [("two processes", kind, entry) for kind, entry in try_ranks(work, options.ranks, options.seed)]
        else:
            outcomes = Tries(work).all(options)
        return report(outcomes)


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--soak", type=int, default=0, help="so many soaks instead")
    parser.add_argument("--ranks", type=int, default=0, help="so many tries of two processes instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end before, with what there is")
    parser.add_argument("--work", default="", help="where everything is kept (default: a temporary folder)")
    return parser.parse_args(argv)


def preload() -> None:
    """Start this process again with faults.c in front of the C library."""
    library = Path(tempfile.gettempdir()) / f"faults-{os.getuid()}.so"
    if str(library) in os.environ.get("LD_PRELOAD", ""):
        return
    source = HERE / "faults.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "Agg"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})


class Tries:
    """Imports the project once, and has everything that a try begins with."""

    def __init__(self, work: Path) -> None:
        import cifar_dist.cli.train
        import cifar_dist.report.page  # noqa: F401 (imported late by runs, and so by none of them)
        from cifar_dist.training.views import Views

        Views._draw = lambda _: None  # pictures take ten times as long as all the rest
        self.shim = ctypes.CDLL(None)
        self.work, self.place = work, work / "try"
        self.images = draw_images(work / "images")
        self.references: dict[str, Path] = {}
        self.counts: dict[str, list[tuple[str, str]]] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Make a whole run, and one that was killed in the middle."""
        shutil.rmtree(self.place, ignore_errors=True)
        words = self.words(self.place / "run")
        status, said = self.fork(words)
        assert status == 0, said
        shutil.copytree(self.place / "run", self.work / "whole")
        shutil.move(self.place / "data", self.work / "decoded")
        steps = sorted(int(p.name[5:]) for p in (self.work / "whole/checkpoints").glob("step_*"))
        self.middle = steps[0]
        self.begin("nothing")
        operations = self.count(Scenario("nothing", "run", "w", ()), words)
        renamed = [k for k, (op, path) in enumerate(operations) if op == "rename" and "/step_" in path.split(" -> ")[1]]
        self.begin("nothing")
        status, said = self.fork(words, "run", renamed[len(renamed) // 2], "kill-after", "w")
        assert status == -signal.SIGKILL, said
        shutil.copytree(self.place / "run", self.work / "half")

    def words(self, run: Path, more: Sequence[str] = ()) -> list[str]:
        places = [word.format(work=self.work, middle=getattr(self, "middle", 0)) for word in more]
        return [
            *SMALL,
            "--data",
            str(self.images),
            "--data-dir",
            str(self.place / "data"),
            "--output-dir",
            str(run),
            *places,
        ]

    def begin(self, what: str) -> None:
        """Make the folder of a try."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        if what != "no data":
            shutil.copytree(self.work / "decoded", self.place / "data")
        if what == "half":
            shutil.copytree(self.work / "half", self.place / "run")

    def fork(
        self,
        words: Sequence[str],
        under: str = "",
        k: int = -1,
        fault: str = "count",
        operations: str = "",
        log: int = -1,
    ) -> tuple[int, str]:
        """Train in a fork of this process; return its status, -N for signal N, and what it said."""
        output = self.work / "said"
        if not (child := os.fork()):
            status = 99
            try:
                said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                sys.argv = ["train.py", *words]
                if operations:
                    prefix = str(self.place / under).encode()
                    self.shim.fault_arm(prefix, ctypes.c_long(k), fault.encode(), operations.encode(), log)
                from cifar_dist.cli.train import main as train

                status = train(words)
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        end = time.monotonic() + TIMEOUT_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 98, f"hung\n{output.read_text(errors='replace')}"
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1]), output.read_text(errors="replace")

    def count(self, scenario: Scenario, words: Sequence[str]) -> list[tuple[str, str]]:
        """Return the operations and paths of an undisturbed run, in order."""
        path = self.work / "operations"
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        status, said = self.fork(words, scenario.under, -1, "count", scenario.operations, log)
        os.close(log)
        assert status == 0, said
        return [tuple(line.split("\t")[1:]) for line in path.read_text().splitlines()]

    def all(self, options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
        """Do the tries that were asked for."""
        end, outcomes = time.monotonic() + 60 * options.minutes, []
        names = options.scenarios or list(SCENARIOS)
        for name in names:
            scenario = SCENARIOS[name]
            self.begin(scenario.begins)
            words = self.words(self.place / "run", scenario.more)
            self.counts[name] = self.count(scenario, words)
            self.references[name] = self.work / f"reference-{name}"
            shutil.copytree(self.place / "run", self.references[name])
            print(f"{name}: {len(self.counts[name])} operations", flush=True)
        if options.soak:
            rng = random.Random(options.seed)
            tries = [lambda i=i: ("soak", "several", self.soak(rng, i)) for i in range(options.soak)]
        else:
            possible = [
                (name, k, fault)
                for name in names
                for k, (operation, _) in enumerate(self.counts[name])
                for fault in SCENARIOS[name].faults
                if operation == "write" or fault not in ("torn", "short")
            ]
            chosen = random.Random(options.seed).sample(possible, min(options.tries, len(possible)))
            tries = [lambda one=one: (one[0], one[2], self.once(*one)) for one in chosen]
        with (self.work / "tries.jsonl").open("w") as file:
            for number, one in enumerate(tries, start=1):
                if time.monotonic() > end:
                    break
                outcome = one()
                outcomes.append(outcome)
                file.write(json.dumps(outcome) + "\n")
                file.flush()
                if outcome[2]["wrong"]:
                    print(f"{outcome}", flush=True)
                elif number % 100 == 0:
                    print(f"{number} of {len(tries)}", flush=True)
        return outcomes

    def once(self, name: str, k: int, fault: str) -> dict[str, Any]:
        """Let one operation fail, go on, and compare."""
        scenario = SCENARIOS[name]
        self.begin(scenario.begins)
        words = self.words(self.place / "run", scenario.more)
        entry: dict[str, Any] = {"k": k, "operation": self.counts[name][k], "wrong": []}
        self.disturb(scenario, words, k, fault, entry)
        self.settle(words, self.references[name], entry)
        return entry

    def soak(self, rng: random.Random, number: int) -> dict[str, Any]:
        """Let one fault follow the other, until a run comes through or a dozen are over."""
        scenario = SCENARIOS["run"]
        self.begin("nothing")
        words, entry = self.words(self.place / "run"), {"number": number, "wrong": []}
        for _ in range(rng.randint(2, 12)):
            k = rng.randrange(len(self.counts["run"]))
            if self.disturb(scenario, words, k, rng.choice(WRITES), entry) == 0:
                break
        self.settle(words, self.references["run"], entry)
        return entry

    def disturb(self, scenario: Scenario, words: Sequence[str], k: int, fault: str, entry: dict[str, Any]) -> int:
        path = self.work / "operations"
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        shown = "kill-before" if fault == "cut" else fault
        status, said = self.fork(words, scenario.under, k, shown, scenario.operations, log)
        os.close(log)
        if fault == "cut" and status == -signal.SIGKILL:
            cut_power(path)
        self.look(status, said, entry)
        return status

    def settle(self, words: Sequence[str], reference: Path, entry: dict[str, Any]) -> None:
        for _ in range(2):
            status, said = self.fork(words)
            self.look(status, said, entry)
            if status == 0:
                break
        found = differences(reference, self.place / "run") if status == 0 else [f"ended with {status}"]
        # It was said, and does no harm.
        stays = "left over checkpoints/step_" if entry["kept"] else "\0"
        entry["wrong"] += [line for line in found if not line.startswith(stays)]

    def look(self, status: int, said: str, entry: dict[str, Any]) -> None:
        entry["kept"] = entry.get("kept", False) or "can't be removed" in " ".join(said.split())
        lines = [line for line in said.splitlines() if line.startswith(("failed", "error", "no "))]
        entry.setdefault("said", []).append([status, *lines[-1:]])
        if "Traceback" in said or status in (98, 99):
            entry["wrong"].append(f"status {status}: {said[-1500:]}")


def cut_power(operations: Path) -> None:
    """Take away what was written and no fsync covered; of metrics.jsonl, which is appended to, its last lines."""
    dirty: Counter[str] = Counter()
    for line in operations.read_text().splitlines()[:-1]:  # the last was never done
        _, operation, path = line.split("\t")
        if operation in ("write", "truncate"):
            dirty[path] += 1
        elif operation == "open" and not path.endswith("/metrics.jsonl"):
            dirty[path] += 0
        elif operation in ("fsync", "unlink", "rmdir"):
            dirty.pop(path, None)
        elif operation == "rename":
            old, new = path.split(" -> ")
            for name in [p for p in dirty if p == old or p.startswith(f"{old}/")]:
                dirty[new + name[len(old) :]] = dirty.pop(name)
    for name, writes in dirty.items():
        path = Path(name)
        if path.is_file() and path.stat().st_size:
            lines = path.read_bytes().splitlines(keepends=True) if path.name == "metrics.jsonl" else []
            path.write_bytes(b"".join(lines[: len(lines) - writes]))


def differences(expected: Path, found: Path) -> list[str]:
    """Return what is missing, left over, or has other content than times."""
    names = [
        {
            str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != "changes.diff"
        }  # the checkout's, not the run's
        for folder in (expected, found)
    ]
    wrong = [f"missing {name}" for name in sorted(names[0] - names[1])]
    wrong += [f"left over {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if (expected / name).is_file():
            try:
                same = content(expected / name) == content(found / name)
            except Exception as error:  # it can't be read
                same, name = False, f"{name}: {error}"
            wrong += [] if same else [f"other {name}"]
    return wrong


def content(path: Path) -> Any:
    """Return what of a file must be the same each time."""
    import numpy as np
    import torch

    if path.name == "report.html":
        return path.stat().st_size > 1000
    if path.suffix == ".jsonl":
        return [untimed(json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if path.name == "config.json":
        return {k: v for k, v in untimed(json.loads(path.read_text())).items() if k not in ("starts", "sha256")}
    if path.suffix == ".json" and path.name != "manifest.json":
        return untimed(json.loads(path.read_text()))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays}
    if path.suffix == ".pt":
        return untimed(torch.load(path, weights_only=True))
    return path.name == "manifest.json" or path.read_bytes()


def untimed(value: Any) -> Any:
    """Return a nested value without what a clock says, and with bytes in place of tensors."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in (*TIMES, "output_dir", "resume")}
    if isinstance(value, list | tuple):
        return [untimed(v) for v in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def draw_images(folder: Path) -> Path:
    """Write class folders of a few images of noise."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 10)):
        for name in ("cat", "dog", "ship"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def try_ranks(work: Path, number: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Train on two processes, do something to one of them at some time, start again, and compare."""
    rng, images = random.Random(seed), draw_images(work / "images")
    words = [*SMALL[:2], "--epochs", "60", *SMALL[4:], "--data", str(images), "--data-dir", str(work / "data")]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *words]

    def start(folder: Path) -> "subprocess.Popen[str]":
        command = [*launch, "--output-dir", str(folder)]
        output = (work / "said").open("w")
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )

    assert start(work / "reference").wait(600) == 0, (work / "said").read_text()
    outcomes = []
    for i in range(number):
        kind, rank = ("killed", "stopped", "slowed")[i % 3], i // 3 % 2
        folder, entry = work / f"try-{i}", {"rank": rank, "wrong": []}
        process = start(folder)
        target = worker(process.pid, rank)
        wait_for(lambda folder=folder: len(list((folder / "checkpoints").glob("step_*"))) > 0)
        time.sleep(rng.uniform(0, 3))
        disturb_rank(kind, target, process)
        said = (work / "said").read_text()
        second = start(folder)
        entry["said"] = [process.wait(60), second.wait(600)]
        for text in (said, (work / "said").read_text()):
            ours = [line for line in text.splitlines() if "Traceback" in line and "elastic" not in text]
            entry["wrong"] += ours
        entry["wrong"] += differences(work / "reference", folder) if second.returncode == 0 else [said[-1500:]]
        outcomes.append((kind, entry))
        print(kind, entry, flush=True)
    return outcomes


def processes_below(launcher: int) -> list[int]:
    """Return a launcher's ranks, and what they have started."""
    import psutil

    return [child.pid for child in psutil.Process(launcher).children(recursive=True)]


def worker(launcher: int, rank: int) -> int:
    """Return the process of a rank, once it is there."""
    import psutil

    found: list[int] = []

    def look() -> bool:
        with suppress(psutil.Error):
            for child in psutil.Process(launcher).children(recursive=True):
                if child.environ().get("RANK") == str(rank):
                    found.append(child.pid)
        return bool(found)

    wait_for(look)
    return found[0]


def wait_for(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def disturb_rank(kind: str, target: int, process: "subprocess.Popen[str]") -> None:
    """Kill a rank; or stop it for good, and end what waits for it; or stop it again and again for a moment."""
    with suppress(ProcessLookupError):
        if kind == "killed":
            os.kill(target, signal.SIGKILL)
            process.wait(60)
        for _ in range(1 if kind == "stopped" else 5 if kind == "slowed" else 0):
            os.kill(target, signal.SIGSTOP)
            time.sleep(1.0)
            if kind == "slowed":
                os.kill(target, signal.SIGCONT)
                time.sleep(0.3)
        if kind == "stopped":
            for one in (process.pid, *processes_below(process.pid)):
                os.kill(one, signal.SIGKILL)
    if kind == "slowed":
        process.wait(600)


def report(outcomes: Sequence[tuple[str, str, dict[str, Any]]]) -> int:
    """Print a line for each scenario and fault: tries, and how many of them ended otherwise than they should."""
    tries, wrong = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for scenario, fault, entry in outcomes:
        tries[scenario, fault] += 1
        wrong[scenario, fault] += bool(entry["wrong"])
    print("| scenario | fault | tries | another result, or a traceback |\n|---|---|---|---|")
    for (scenario, fault), number in sorted(tries.items()):
        print(f"| {scenario} | {fault} | {number} | {wrong[scenario, fault]} |")
    print(f"| all | | {tries.total()} | {wrong.total()} |")
    return 1 if wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
