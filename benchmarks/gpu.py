"""All that is measured on a GPU, in calls of less than ten minutes: correctness, throughput, `speed94` beside its script, results.

    python benchmarks/gpu.py correctness                                              # the tests marked gpu
    python benchmarks/gpu.py throughput --data FOLDER                                 # images/s beside the bare loop
    python benchmarks/gpu.py speed94 --data FOLDER --script airbench94_muon.py        # see benchmarks/speed94.py
    python benchmarks/gpu.py results --data FOLDER --parallel 6                       # the recipes of docs/RESULTS.md

A part is a list of jobs, each a process of its own. After --minutes none is started any more, and a SIGTERM stops those that run: a
training saves a checkpoint and the same call goes on with it, any other job begins again. OUT/PART.json keeps what each job gave,
with hardware, date and commit, and what is there isn't run again; a test only while the commit is the same. Repeat a call until
nothing is left; to go on on another machine, take OUT/*.json along. Each call ends with the rows that belong in docs/, of all there
is. A job's output is in OUT/PART/JOB.log; one that failed is tried again by the next call.

`results` trains with one seed after another, the cheapest first, a few side by side, since small models leave most of a GPU idle:
recipes of a text in float32 (convolutions as torch comes: TF32), `default` in bf16. Words after -- go to train.py. `throughput`
compares, in bf16, in rounds that begin with another loop each time: `bare` and `best` of benchmarks/loops.py, and train.py as
benchmarks/throughput.py measures it.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.throughput import NEVER, Case, positive, speeds_of_run  # noqa: E402
from cifar_dist.config import TrainConfig  # noqa: E402
from cifar_dist.errors import UserError  # noqa: E402
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED, WRONG_INPUT  # noqa: E402
from cifar_dist.files import write_atomically  # noqa: E402
from cifar_dist.models import build_model  # noqa: E402
from cifar_dist.processes import Children  # noqa: E402
from cifar_dist.recipes import PUBLISHED, RECIPES, models_of  # noqa: E402
from cifar_dist.record.environment import git_commit  # noqa: E402

PRECISION = "bf16"  # of what is ours; what a text published is trained in float32
OURS = ("mlp", "resnet20", "resnet18", "resnet34", "resnet50")  # models trained with recipe default
CASES = [Case.parse(word) for word in ("resnet20@128", "resnet20@512", "resnet18@128", "resnet18@512")]
WARM_UP = 50  # steps that aren't timed

Result = dict[str, Any]
Records = Mapping[str, Any]  # by the names of jobs


class Job(NamedTuple):
    """One process."""

    name: str
    command: list[str]
    read: Callable[[], Result | None]  # what it left, if it ended well; None where something is missing


class Part(NamedTuple):
    """What one call does."""

    jobs: Callable[[argparse.Namespace], list[Job]]
    rows: Callable[[Records], list[str]]
    side_by_side: bool = False  # else it is timed, and nothing else may run
    of_one_commit: bool = False


# Running jobs


class Record:
    """OUT/PART.json: {job: {result, hardware, date, commit, ...}}."""

    def __init__(self, path: Path, given: argparse.Namespace) -> None:
        self.path, self.given = path, given
        self.jobs: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        self._about = {"date": time.strftime("%Y-%m-%d"), "commit": given.commit, "parallel": given.parallel}
        self._about["hardware"], self._lock = hardware(), threading.Lock()

    def has(self, name: str) -> bool:
        """Whether the job's result still stands."""
        commit = self.given.commit
        current = bool(commit) and not commit.endswith("+") and self.jobs.get(name, {}).get("commit") == commit
        return current if PARTS[self.given.part].of_one_commit else name in self.jobs

    def add(self, job: Job, result: Result, seconds: float) -> None:
        with self._lock:
            own = {"result": result, "seconds": round(seconds, 1), "command": shlex.join(job.command)}
            self.jobs[job.name] = {**own, **self._about}
            write_atomically(self.path, json.dumps(self.jobs, indent=1).encode() + b"\n")


def hardware() -> dict[str, Any]:
    """Return what numbers depend on besides the code; None of a GPU where there is none."""
    smi, found = None, torch.cuda.is_available()
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "gpu": torch.cuda.get_device_name() if found else None,
        "nvidia_smi": smi,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if found else None,
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def run_jobs(jobs: Sequence[Job], record: Record, folder: Path, seconds: float) -> dict[str, int]:
    """Run jobs for so many seconds; returns the exit status of each, INTERRUPTED also if it was never started."""
    folder.mkdir(parents=True, exist_ok=True)
    with Children() as children, ThreadPoolExecutor(record.given.parallel) as threads:
        stop = threading.Timer(max(0.0, seconds), os.kill, (os.getpid(), signal.SIGTERM))
        stop.start()
        try:
            statuses = list(threads.map(lambda job: run_job(job, record, folder, children), jobs))
        finally:
            stop.cancel()
    return {job.name: status for job, status in zip(jobs, statuses, strict=True)}


def run_job(job: Job, record: Record, folder: Path, children: Children) -> int:
    """Run one to its end and record what it gave; once there was a signal, start nothing."""
    if children.received:
        return INTERRUPTED
    start, log = time.monotonic(), folder / f"{job.name}.log"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status = children.run(job.command, log, {"PYTHONPATH": paths, "WANDB_MODE": "disabled"})
    seconds = time.monotonic() - start
    result = job.read() if status == FINISHED else None
    if result is not None:
        record.add(job, result, seconds)
        outcome = "done"
    elif children.received:
        status, outcome = INTERRUPTED, "stopped"
    else:
        status, outcome = FAILED, f"failed with status {status}, see {log},"
    print(f"{job.name} {outcome} after {seconds:.0f} s", flush=True)
    return status


# Correctness


def correctness(given: argparse.Namespace) -> list[Job]:
    """One job for each function of tests that has a test marked gpu."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "-m", "gpu"]
    listed = subprocess.run([*pytest, "--collect-only", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"pytest can't list the tests: {(listed.stdout + listed.stderr).strip()[-2000:]}")
    names = dict.fromkeys(line.partition("[")[0] for line in listed.stdout.splitlines() if line.startswith("tests/"))
    jobs = []
    for name in names:
        file, _, function = name.partition("::")
        label = f"{Path(file).stem}.{function}"
        report = given.out / "correctness" / f"{label}.xml"
        command = [*pytest, "-rs", "--tb=short", f"--junitxml={report}", str(ROOT / name)]
        jobs.append(Job(label, command, partial(read_tests, report)))
    return jobs


def read_tests(report: Path) -> Result | None:
    """Return how many tests passed and were skipped, as pytest's XML says."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        return None
    skipped = int(suite.attrib["skipped"])
    return {"passed": int(suite.attrib["tests"]) - skipped, "skipped": skipped}


def correctness_rows(records: Records) -> list[str]:
    passed, skipped = (sum(r["result"][key] for r in records.values()) for key in ("passed", "skipped"))
    cells = [str(passed), str(skipped), machine(records), commits(records), dates(records)]
    return table(("tests passed", "skipped", "hardware", "commit", "date"), [cells])


# Throughput


def throughput(given: argparse.Namespace) -> list[Job]:
    """One job for each round of each case, compiled and not."""
    jobs = []
    for number in range(given.rounds):
        for case, compiled in ((case, compiled) for case in given.cases for compiled in (False, True)):
            label = f"{case}{'-compiled' * compiled}-{number}"
            what = {"case": str(case), "compile": compiled, "number": number, "seconds": given.seconds}
            what |= {"data": given.data, "data_dir": given.data_dir, "device": given.device}
            command = [sys.executable, str(Path(__file__).resolve()), "--round", json.dumps(what)]
            jobs.append(Job(label, command, partial(read_round, given.out / "throughput" / f"{label}.log")))
    return jobs


def read_round(log: Path) -> Result:
    return json.loads(log.read_text().splitlines()[-1])


def measure_round(what: Mapping[str, Any]) -> Result:
    """Return the images/s of `bare`, `best`, train.py all in (`ours`) and `without_pauses`."""
    from benchmarks.loops import configure

    case = Case.parse(what["case"])
    where = {"data": what["data"], "data_dir": what["data_dir"], "device": what["device"]}
    how = {"batch_size": case.batch_size, "mixed_precision": PRECISION, "compile": what["compile"]}
    config = configure(case.model, **how, **where)
    bare = bare_step(config)
    steps = max(2 * WARM_UP, round(what["seconds"] * images_per_s(bare, config, WARM_UP) / config.batch_size))
    loops: list[Callable[[], Result]] = [
        lambda: {"bare": images_per_s(bare, config, steps)},
        lambda: {"best": images_per_s(best_step(config), config, steps)},
        lambda: measure_ours(config, steps),
    ]
    speeds = {"recipe": config.recipe, "precision": PRECISION, "steps": steps}
    for place in range(len(loops)):
        speeds |= loops[(place + what["number"]) % len(loops)]()
    return speeds


def bare_step(config: TrainConfig) -> Callable[[], None]:
    """Return a step on one batch in memory, with torch as it comes."""
    from benchmarks.loops import plain_model, plain_optimizer

    device = torch.device("cuda" if config.device == "gpu" else "cpu")
    model = plain_model(config, 10).to(device)
    optimizer = plain_optimizer(model, config)
    if config.compile:
        model.compile(dynamic=False)
    images, targets = one_batch(config, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(images)
        torch.nn.functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def best_step(config: TrainConfig) -> Callable[[], None]:
    """Return the same with the model and the optimizer as our runs set them up."""
    from cifar_dist.models import memory_format
    from cifar_dist.runtime.accelerator import accelerate
    from cifar_dist.training.state import build_state

    accelerator = accelerate(config)
    state = build_state(config, 10, accelerator)
    images, targets = one_batch(config, accelerator.device)
    images = images.contiguous(memory_format=memory_format(state.model))
    state.masks.draw(torch.arange(config.batch_size, device=accelerator.device))

    def step() -> None:
        torch.nn.functional.cross_entropy(state.wrapped(images), targets).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    return step


def one_batch(config: TrainConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    size = config.batch_size
    return torch.randn(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device)


def images_per_s(step: Callable[[], None], config: TrainConfig, steps: int) -> float:
    """Return the speed of `steps` steps after a warm-up, until the GPU has done the last of them."""
    wait = torch.cuda.synchronize if config.device == "gpu" else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return config.batch_size * steps / (time.perf_counter() - start)


def measure_ours(config: TrainConfig, steps: int) -> Result:
    """Return the speeds of train.py over as many steps."""
    with tempfile.TemporaryDirectory() as name:
        options = {key: getattr(config, key) for key in ("model", "recipe", "batch_size", "mixed_precision", "device")}
        options |= {"data": config.data, "data_dir": config.data_dir, "output_dir": name, "threads": 1}
        options |= {"steps": WARM_UP + steps, "log_every": WARM_UP, "val_fraction": 0}
        # No pauses but checkpoints, each right after a line.
        options |= {"eval_every": NEVER, "checkpoint_minutes": 0, "keep_checkpoints": NEVER}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        words += ["--compile"] * config.compile
        subprocess.run([sys.executable, str(ROOT / "train.py"), "--no-test", *words], check=True, stdout=sys.stderr)
        lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        saved = [int(path.name.removeprefix("step_")) for path in Path(name, "checkpoints").glob("step_*")]
        epoch_images = json.loads(Path(name, "config.json").read_bytes())["dataset"]["train"]
    speeds = speeds_of_run(lines, WARM_UP, saved, epoch_images)
    return {"ours": speeds["images_per_s"], "without_pauses": speeds["without_pauses"]}


def throughput_rows(records: Records) -> list[str]:
    groups: dict[str, list[Result]] = {}
    for name, record in records.items():
        groups.setdefault(name.rpartition("-")[0], []).append(record["result"])
    rows = []
    for name, rounds in groups.items():
        speeds = [f"{median(r[key] for r in rounds):,.0f}" for key in ("bare", "best", "ours", "without_pauses")]
        ratios = [spread([r["ours"] / r[key] for r in rounds]) for key in ("bare", "best")]
        rows.append([f"{name}, {rounds[0]['precision']}", *speeds, *ratios, str(len(rounds))])
    titles = ("case", "bare", "best", "ours, all in", "without pauses", "ours / bare", "ours / best", "n")
    note = f"Images/s, medians; ratios within a round: median (least to greatest). {about(records)}"
    return [*table(titles, rows), note]


# speed94


def speed94(given: argparse.Namespace) -> list[Job]:
    """One job for each seed: the published script and ours, whole runs."""
    if not given.script:
        raise UserError("speed94 needs --script PATH/airbench94_muon.py, see benchmarks/speed94.py")
    words = ["--script", given.script, "--data", given.data, "--data-dir", given.data_dir, "--full", "--rounds", "1"]
    words += [f"--ours={word}" for word in (f"--mixed-precision={PRECISION}", "--compile", *given.train_words)]
    program = [sys.executable, str(ROOT / "benchmarks/speed94.py")]
    jobs = []
    for seed in range(given.seeds):
        log = given.out / "speed94" / f"seed-{seed}.log"
        jobs.append(Job(log.stem, [*program, *words, "--seed", str(seed)], partial(read_speed94, log)))
    return jobs


def read_speed94(log: Path) -> Result | None:
    """Return what the newest round in the log printed of each side."""
    sides: Result = {}
    for line in log.read_text().splitlines():
        side, _, measured = line.partition(" ")
        if side in ("published", "ours") and measured.startswith("{"):
            sides[side] = json.loads(measured)
    return sides if len(sides) == 2 else None


def speed94_rows(records: Records) -> list[str]:
    runs, rows = [record["result"] for record in records.values()], []
    for side in ("published", "ours"):
        seconds = spread([run[side]["seconds"] for run in runs])
        rows.append([side, percent([run[side]["tta_accuracy"] for run in runs]), seconds, str(len(runs))])
    ratio = spread([run["published"]["seconds"] / run["ours"]["seconds"] for run in runs])
    note = f"Seconds: median (least to greatest); published / ours within a round: {ratio}. {about(records)}"
    return [*table(("", "test accuracy, six views", "seconds", "n"), rows), note]


# Results


def results(given: argparse.Namespace) -> list[Job]:
    """One job for each run of docs/RESULTS.md: one seed after another, and of a seed the cheapest first."""
    recipes = [name for name in RECIPES if name not in ("default", "speed94")]
    pairs = [(recipe, model) for recipe in recipes for model in models_of(recipe)]
    pairs += [("default", model) for model in OURS]
    pairs.sort(key=lambda pair: expected_cost(RECIPES[pair[0]](pair[1])))
    return [training(recipe, model, seed, given) for seed in range(given.seeds) for recipe, model in pairs]


def expected_cost(config: TrainConfig) -> int:
    """Return how many layers all steps go through: to start one costs a GPU more than most of these layers take."""
    with torch.device("meta"):
        model = build_model(config.model, options=config.model_options)
    layers = sum(not list(module.children()) for module in model.modules())
    images = 50_000 * (1 - config.val_fraction)
    return layers * (config.steps or round((config.epochs or 0) * images / config.batch_size))


def training(recipe: str, model: str, seed: int, given: argparse.Namespace) -> Job:
    label = f"{recipe.replace('/', '.')}-{model}-{seed}"
    folder = given.out / "results" / label
    precision = PRECISION if recipe == "default" else "no"
    words = ["--recipe", recipe, "--model", model, "--seed", str(seed), "--mixed-precision", precision]
    words += ["--data", given.data, "--data-dir", given.data_dir, "--output-dir", str(folder)]
    words += ["--device", given.device, "--threads", "1", *given.train_words]
    kept = {"recipe": recipe, "model": model, "seed": seed, "precision": precision, "words": given.train_words}
    return Job(label, [sys.executable, str(ROOT / "train.py"), *words], partial(read_run, folder, kept))


def read_run(folder: Path, kept: Mapping[str, Any]) -> Result | None:
    """Return what a finished run says of itself."""
    summary = json.loads((folder / "summary.json").read_bytes())
    if summary["status"] != "finished":
        return None
    dataset = json.loads((folder / "config.json").read_bytes())["dataset"]
    of_run = {key: summary[key] for key in ("seconds", "step", "best_step", "train", "val", "test")}
    sizes = {key: dataset[key] for key in ("name", "fingerprint", "synthetic", "train", "val", "test")}
    return {**kept, **of_run, "dataset": sizes}


def results_rows(records: Records) -> list[str]:
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, record in records.items():
        groups.setdefault((record["result"]["recipe"], record["result"]["model"]), {})[name] = record
    titles = (
        "recipe",
        "model",
        "paper",
        "ours, test",
        "top-2",
        "n",
        "data: train / val / test",
        "wall time",
        "commit",
        "date",
    )
    return [*table(titles, [results_row(*key, group) for key, group in groups.items()]), about(records)]


def results_row(recipe: str, model: str, group: Records) -> list[str]:
    """Return the cells of one recipe and model, over its seeds."""
    runs = [record["result"] for record in group.values()]
    details = [
        *filter(None, [shlex.join(runs[0]["words"])]),
        *([PRECISION] if runs[0]["precision"] == PRECISION else []),
    ]
    published, data = PUBLISHED.get((recipe, model)), runs[0]["dataset"]
    times = sorted({round(run["seconds"]) for run in runs})
    wall = " to ".join(f"{seconds:,}" for seconds in dict.fromkeys((times[0], times[-1]))) + " s"
    beside = max(record["parallel"] for record in group.values())
    return [
        ", ".join([f"`{recipe}`", *details]),
        model,
        "–" if published is None else f"{100 * published:g} %",
        *(percent([run["test"][key] for run in runs]) for key in ("accuracy", "top2_accuracy")),
        str(len(runs)),
        f"{data['name']}, {data['train']:,} / {data['val']:,} / {data['test']:,}",
        wall + (f", {beside} at a time" if beside > 1 else ""),
        commits(group),
        dates(group),
    ]


# What goes into docs/


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def percent(shares: Sequence[float]) -> str:
    """[0.5, 0.52] -> 51.00 ± 1.41 %: the mean and the sample standard deviation."""
    return f"{100 * mean(shares):.2f}" + (f" ± {100 * stdev(shares):.2f}" if len(shares) > 1 else "") + " %"


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def machine(records: Records) -> str:
    found = [record["hardware"] for record in records.values()]
    return "; ".join(
        dict.fromkeys(f"{m['nvidia_smi'] or 'no GPU'}, torch {m['torch']}, CUDA {m['cuda']}" for m in found)
    )


def commits(records: Records) -> str:
    return ", ".join(dict.fromkeys((record["commit"] or "unknown")[:7] for record in records.values()))


def dates(records: Records) -> str:
    return ", ".join(sorted({record["date"] for record in records.values()}))


def about(records: Records) -> str:
    return f"{machine(records)}; {commits(records)}; {dates(records)}"


# The command

PARTS = {
    "correctness": Part(correctness, correctness_rows, side_by_side=True, of_one_commit=True),
    "throughput": Part(throughput, throughput_rows),
    "speed94": Part(speed94, speed94_rows),
    "results": Part(results, results_rows, side_by_side=True),
}


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options, with absolute paths; raises `UserError`."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("part", choices=PARTS)
    add("--data", default="cifar10", help="cifar10, synthetic or a folder")
    add("--data-dir", default="data", type=lambda word: str(Path(word).resolve()))
    add("--out", default="runs/gpu", type=lambda word: Path(word).resolve())
    add("--minutes", default=9.0, type=positive(float), help="after which nothing is started")
    add("--parallel", type=positive(int), help="jobs at a time, where nothing is timed (default: 4)")
    add("--only", nargs="+", default=[""], metavar="WORD", help="jobs whose names contain one of these")
    add("--seeds", default=3, type=positive(int), help="of results and speed94")
    add("--cases", nargs="+", default=CASES, type=Case.parse, metavar="MODEL@BATCH_SIZE", help="of throughput")
    add("--rounds", default=3, type=positive(int), help="of throughput")
    add("--seconds", default=5.0, type=positive(float), help="that each loop of throughput is timed")
    add("--script", type=lambda word: str(Path(word).resolve()), help="the published script, for speed94")
    add(
        "--commit", default=git_commit(), help="of the code, where git can't tell; without, all tests are run each time"
    )
    add("--cpu", action="store_true", help="try this out without a GPU; its numbers mean nothing")
    add("--dry-run", action="store_true", help="print the commands of what is left, and run nothing")
    given = parser.parse_args(argv[:end])
    given.train_words, given.device = list(argv[end + 1 :]), "cpu" if given.cpu else "gpu"
    part = PARTS[given.part]
    if given.train_words and given.part not in ("results", "speed94"):
        raise UserError(f"-- {shlex.join(given.train_words)} has no effect on {given.part}; leave it out")
    if given.parallel and not part.side_by_side:
        raise UserError(f"{given.part} is timed, one job after another; leave --parallel {given.parallel} out")
    if not (torch.cuda.is_available() or given.cpu or given.dry_run):
        raise UserError("torch sees no GPU; check the driver, or try this script out with --cpu")
    given.parallel = given.parallel or (4 if part.side_by_side else 1)
    if Path(given.data).is_dir():
        given.data = str(Path(given.data).resolve())
    return given


def main(argv: Sequence[str]) -> int:
    """Run one part and return the exit status: 0 all is done, 75 something is left, 1 something failed, 2 wrong usage."""
    start = time.monotonic()
    try:
        given = read_options(argv)
        part = PARTS[given.part]
        jobs = [job for job in part.jobs(given) if any(word in job.name for word in given.only)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    record = Record(given.out / f"{given.part}.json", given)
    todo = [job for job in jobs if not record.has(job.name)]
    if given.dry_run:
        print("\n".join(shlex.join(job.command) for job in todo))
        return FINISHED
    print(f"{given.part}: {len(todo)} of {len(jobs)} jobs are to be done", flush=True)
    statuses = run_jobs(todo, record, given.out / given.part, 60 * given.minutes - (time.monotonic() - start))
    ended = {name: [key for key in statuses if statuses[key] == name] for name in (FINISHED, FAILED, INTERRUPTED)}
    if done := {job.name: record.jobs[job.name] for job in jobs if job.name in ended[FINISHED] or record.has(job.name)}:
        print("\n".join(part.rows(done)))
    if ended[FAILED]:
        print(f"failed: {' '.join(ended[FAILED])}; the reasons are in {given.out / given.part}")
    if ended[INTERRUPTED]:
        print(f"left for the next call: {len(ended[INTERRUPTED])} of {len(jobs)} jobs")
    return FAILED if ended[FAILED] else INTERRUPTED if ended[INTERRUPTED] else FINISHED


if __name__ == "__main__":
    if sys.argv[1:2] == ["--round"]:  # a child of throughput
        print(json.dumps(measure_round(json.loads(sys.argv[2]))))
    else:
        sys.exit(main(sys.argv[1:]))
