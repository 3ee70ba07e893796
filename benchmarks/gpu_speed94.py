"""`speed94` beside the published script: whole runs, each a process of its own, with compiled code kept from one to the next.

The script compiles with `max-autotune`. Where that takes more than a minute, it is compiled without, and its row says so.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from benchmarks.gpu_jobs import (  # noqa: E402
    PRECISION,
    Ended,
    Job,
    Record,
    Records,
    Result,
    about,
    percent,
    run_jobs,
    spread,
    table,
)
from cifar_dist.exits import FINISHED  # noqa: E402

AUTOTUNE, PLAIN = "max-autotune", "default"  # modes of torch.compile
AUTOTUNE_S = 60.0  # that it may take
PREPARED = "prepared"
SIDES = ("ours", "published", "ours compiled")


def speed94(given: argparse.Namespace, record: Record, end: float) -> Ended:
    """Compile the script once, then do one run of each side for each seed."""
    names = [f"{side}-{seed}" for seed in range(given.seeds) for side in SIDES if given.script or side != "published"]
    todo = [name for name in names if name not in record.done and any(word in name for word in given.only)]
    print(f"speed94: {len(todo)} of {len(names)} runs are to be done", flush=True)
    if not given.script:
        print("speed94: no --script, so without the published one (benchmarks/speed94.py says which)", flush=True)
    folder = given.out / "speed94"
    shared = [sys.executable, str(ROOT / "benchmarks/speed94.py"), "--data", given.data, "--data-dir", given.data_dir]
    shared += ["--script", given.script or "none", "--cache", str(folder / "compiled"), "--full", "--rounds", "1"]
    if given.dry_run:
        print("\n".join(todo))
        return Ended({})
    prepared = Ended({})
    if given.script and PREPARED not in record.done and any("published" in name for name in todo):
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps([*shared, "--only", "published"])]
        job = Job(PREPARED, command, partial(read_last_line, folder / f"{PREPARED}.log"))
        prepared = run_jobs([job], record, folder, end)
        if prepared.statuses[PREPARED] != FINISHED:
            todo = [name for name in todo if "published" not in name]
    mode = record.done.get(PREPARED, {}).get("result", {}).get("mode", PLAIN)
    jobs = []
    for name in todo:
        side, _, seed = name.rpartition("-")
        words = [*shared, "--seed", seed, "--only", "published" if side == "published" else "ours"]
        if side == "published":
            words += ["--mode", mode]
        else:
            own = [f"--mixed-precision={PRECISION}", f"--device={given.device}", *given.train_words]
            words += [f"--ours={word}" for word in (*own, *["--compile"] * (side == "ours compiled"))]
        jobs.append(Job(name, words, partial(read_side, folder / f"{name}.log", mode if side == "published" else "")))
    ended = run_jobs(jobs, record, folder, end)
    return Ended({**prepared.statuses, **ended.statuses}, prepared.signalled or ended.signalled)


def read_side(log: Path, mode: str) -> Result | None:
    """Return what the newest run in the log printed."""
    found: Result | None = None
    for line in log.read_text().splitlines():
        side, _, measured = line.partition(" ")
        if side in ("published", "ours") and measured.startswith("{"):
            found = json.loads(measured)
    return {**found, "mode": mode} if found else None


def read_last_line(log: Path) -> Result:
    result: Result = json.loads(log.read_text().splitlines()[-1])
    return result


def speed94_rows(records: Records) -> list[str]:
    rows, medians = [], {}
    for side in SIDES:
        runs = [record["result"] for name, record in records.items() if name.rpartition("-")[0] == side]
        if not runs:
            continue
        plain = side == "published" and any(run["mode"] != AUTOTUNE for run in runs)
        label = f"{side}, without {AUTOTUNE}, which took more than {AUTOTUNE_S:.0f} s" if plain else side
        seconds = medians[side] = [run["seconds"] for run in runs]
        rows.append([label, percent([run["tta_accuracy"] for run in runs]), spread(seconds), str(len(runs))])
    note = f"Seconds: median (least to greatest), without imports, data and compiling. {about(records)}"
    return [*table(("", "test accuracy, six views", "seconds", "n"), rows), note]


def prepare(command: list[str]) -> dict[str, Any]:
    """Compile the script as it is; returns the mode to run it in, and how long that took."""
    start = time.monotonic()
    child = psutil.Popen([*command, "--prepare", "--mode", AUTOTUNE])
    mode = AUTOTUNE
    try:
        if child.wait(AUTOTUNE_S):
            sys.exit("error: the published script failed; see above")
    except psutil.TimeoutExpired:
        mode = PLAIN
        for process in [*child.children(recursive=True), child]:
            process.kill()
    return {"mode": mode, "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    print(json.dumps(prepare(json.loads(sys.argv[1]))))
