"""The tests marked gpu, several to a process, since starting torch and CUDA takes longer than most of them."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_jobs import (  # noqa: E402
    Ended,
    Job,
    Lines,
    Record,
    Records,
    add_line,
    commits,
    cores,
    dates,
    machine,
    run_jobs,
    table,
)
from cifar_dist.errors import UserError  # noqa: E402
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED  # noqa: E402

AT_ONCE = 10  # tests of a process; a slow one has its own
OPTIONS = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "--tb=short"]


def correctness(given: argparse.Namespace, record: Record, end: float) -> Ended:
    """Run what has not passed at this commit, slow tests first and those that failed before last."""
    tests = listed(given)
    todo = [test for test in tests if not stands(record.done.get(test), given.commit)]
    failed_before = [test for test in todo if test in record.done]
    slow = [test for test in todo if tests[test] and test not in failed_before]
    quick = [test for test in todo if not tests[test] and test not in failed_before]
    groups = [[test] for test in slow]
    groups += [quick[i : i + AT_ONCE] for i in range(0, len(quick), AT_ONCE)]
    groups += [[test] for test in failed_before]
    print(f"correctness: {len(todo)} of {len(tests)} tests are to be run", flush=True)
    folder = given.out / "correctness"
    files = [Lines(folder / f"tests-{i}.jsonl") for i in range(len(groups))]
    jobs = []
    for i, group in enumerate(groups):
        command = [sys.executable, str(Path(__file__).resolve()), "--run", str(ROOT), str(files[i].path), *group]
        jobs.append(Job(f"tests-{i}", command))
    if given.dry_run:
        print("\n".join(todo))
        return Ended({})
    ran: dict[str, str] = {}

    def look() -> None:
        for file in files:
            for line in file.new():
                ran[line["test"]] = line["outcome"]
                if line["outcome"] == "failed":
                    print(f"FAILED {line['test']}\n{line['text']}", flush=True)
                if line["outcome"] != "started":
                    record.add(line["test"], {"outcome": line["outcome"]}, seconds=line["seconds"])

    ended = run_jobs(jobs, record, folder, end, given.parallel or max(2, 3 * cores() // 4), look)
    statuses = {test: status_of(test, ran) for test in todo}
    for group, status in zip(groups, ended.statuses.values(), strict=True):
        if status == FAILED:  # the process ended in the middle of a test
            for test in group:
                if ran.get(test) == "started":
                    statuses[test] = FAILED
                    print(f"FAILED {test}: its process ended", flush=True)
    return Ended(statuses, ended.signalled)


def status_of(test: str, ran: dict[str, str]) -> int:
    outcome = ran.get(test, "started")
    return INTERRUPTED if outcome == "started" else FAILED if outcome == "failed" else FINISHED


def stands(record: Any, commit: str | None) -> bool:
    """Whether a test need not run again: it passed, or had a reason not to run on a GPU, at this very commit."""
    if not record or not commit or commit.endswith("+") or record["commit"] != commit:
        return False
    outcome = record["result"]["outcome"]
    return outcome == "passed" or (outcome == "skipped" and record["hardware"]["gpu"] is not None)


def listed(given: argparse.Namespace) -> dict[str, bool]:
    """Return the names of tests, and whether each is slow. Without a GPU, of the tests beside them that need none."""
    if not importlib.util.find_spec("pytest"):
        raise UserError("correctness needs pytest, which requirements-dev.txt names: pip install pytest")
    which = "not gpu and not slow" if given.cpu else "gpu"
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [ROOT / "tests/gpu/test_gpu.py"] if given.cpu else [f for f in files if "mark.gpu" in f.read_text()]
    command = [sys.executable, str(Path(__file__).resolve()), "--list", str(ROOT), which, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pytest can't list the tests: {(done.stdout + done.stderr).strip()[-2000:]}")
    tests: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return {test: slow for test, slow in tests.items() if any(word in test for word in given.only)}


def correctness_rows(records: Records) -> list[str]:
    counts = [sum(r["result"]["outcome"] == o for r in records.values()) for o in ("passed", "failed", "skipped")]
    cells = [*map(str, counts), machine(records), commits(records), dates(records)]
    failed = [name for name, record in records.items() if record["result"]["outcome"] == "failed"]
    rows = table(("tests passed", "failed", "skipped", "hardware", "commit", "date"), [cells])
    return rows + [f"failed: {name}" for name in failed]


# In a child


class Names:
    """A plugin of pytest that keeps the tests it collected: {name: whether it is slow}."""

    def __init__(self) -> None:
        self.found: dict[str, bool] = {}

    def pytest_collection_finish(self, session: Any) -> None:
        self.found = {item.nodeid: item.get_closest_marker("slow") is not None for item in session.items}


class Reporter:
    """A plugin of pytest that adds a line to a file when a test starts and when it has ended."""

    def __init__(self, path: Path) -> None:
        self.path, self.ended = path, {"outcome": "started"}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.ended = {"outcome": "passed", "text": "", "seconds": 0.0}
        add_line(self.path, test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ended["seconds"] = round(self.ended["seconds"] + report.duration, 1)
        if report.failed:
            self.ended |= {"outcome": "failed", "text": self.ended["text"] + report.longreprtext}
        elif report.skipped:
            self.ended |= {"outcome": "skipped", "text": str(report.longrepr)}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        add_line(self.path, test=nodeid, **self.ended)


def main(argv: list[str]) -> int:
    import pytest

    task, root, first, *others = argv
    os.chdir(root)  # which names of tests are relative to
    options = ["--rootdir", root, *OPTIONS]
    if task == "--list":
        names = Names()
        status = pytest.main([*options, "--collect-only", "-m", first, *others], plugins=[names])
        print(json.dumps(names.found))
        return status
    status = pytest.main([*options, *others], plugins=[Reporter(Path(first))])
    return FINISHED if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
