"""How training scales: measured on CPU processes of one thread each, fitted, checked, and predicted for many GPUs.

    python -m cifar_dist prepare                                        # the images that the steps are made on
    python -m benchmarks.scaling measure lenet.json --model lenet --processes 4
    python -m benchmarks.scaling show lenet.json                        # what was measured, again
    python -m benchmarks.scaling fit lenet.json
    python -m benchmarks.scaling check lenet.json                       # predicted / measured steps
    python -m benchmarks.scaling predict --measured lenet.json --interconnect infiniband
    python -m benchmarks.scaling predict --model resnet18 --overhead-s 0.01 --seconds-per-image 1e-4 \\
        --latency-us 5 --bandwidth-gbs 25                               # computing measured elsewhere, another network

`measure` keeps worlds of 1, 2, ... processes alive side by side and lets one of them work at a time, so that all that is
compared takes turns within a round; a ratio is of the same round. A step is the trainer's own (`step.train_step`).
The formulas are in `scaling_model.py`.

What --gradient-compression bf16 does to accuracy shows with the trainer itself:

    for seed in 0 1 2; do for compression in no bf16; do
        accelerate launch --config_file launch/multi_cpu.yaml train.py --model lenet --epochs 3 --threads 1 --seed $seed \\
            --gradient-compression $compression --output-dir runs/compression/$compression-$seed
    done; done; python -m cifar_dist compare runs/compression
"""

import argparse
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DDPCommunicationHookType
from torch.distributed.elastic.utils.distributed import get_free_port

from benchmarks.scaling_model import (
    BACKWARD_SHARE,
    INTERCONNECTS,
    Compute,
    Link,
    efficiency,
    fit_compute,
    fit_link,
    smallest_batch,
    step_s,
)
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.doctor.dry_run import tensor_bytes
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED, finish, guarded
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import MODELS, build_model
from cifar_dist.runtime import accelerator, collectives
from cifar_dist.training.build import build
from cifar_dist.training.state import TrainState, build_state
from cifar_dist.training.step import train_step
from cifar_dist.training.warmup import settle_gradient_buckets

MESSAGE_BYTES = [4 * 8**i for i in range(9)]  # 4 B to 64 MiB
GPUS = [2**i for i in range(11)]  # 1 to 1,024
VARIANTS = ("one bucket", "quarters", "bf16")  # of how DDP adds gradients up, besides "ddp", its default
MOST_REPEATS = 5000  # of a task within a round


@dataclass(frozen=True)
class Task:
    """What is timed: a step, or where `num_bytes` is given an all-reduce of so many."""

    processes: int
    batch: int = 0  # global
    micro_batches: int = 1
    reduction: str = "none"  # ddp or one of VARIANTS; none: each process computes for itself
    num_bytes: int = 0

    @property
    def share(self) -> int:
        """The most images a process holds."""
        return math.ceil(self.batch / self.processes)


def step(processes: int, batch: int, micro_batches: int = 1, reduction: str = "ddp") -> Task:
    """Return the task of a real step; a single process has nobody to add gradients up with."""
    return Task(processes, batch, micro_batches, reduction if processes > 1 else "none")


@dataclass(frozen=True)
class Record:
    """What `measure` found, and where."""

    model: str
    gradient_bytes: int
    batch_size: int  # global, of strong scaling
    shares: list[int]  # images a process, of weak scaling
    bucket_bytes: dict[str, list[int]]  # by reduction, as DDP made them
    cores: int
    torch: str
    date: str
    times: dict[Task, list[float]]  # seconds, one a round

    def write(self, path: Path) -> None:
        times = [{**asdict(task), "seconds": seconds} for task, seconds in self.times.items()]
        path.write_text(json.dumps({**vars(self), "times": times}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Record":
        content = json.loads(path.read_text())
        times = {Task(**{k: v for k, v in row.items() if k != "seconds"}): row["seconds"] for row in content["times"]}
        return cls(**{**content, "times": times})

    @property
    def worlds(self) -> range:
        return range(1, max(task.processes for task in self.times) + 1)

    def median(self, task: Task) -> float:
        return median(self.times[task])

    def ratio(self, a: Task, b: Task, factor: float = 1.0) -> str:
        """Say what `a`'s time is to `b`'s, round by round."""
        return spread(factor * x / y for x, y in zip(self.times[a], self.times[b], strict=True))

    def steps(self, processes: int, reduction: str) -> list[Task]:
        """Return the steps in one micro-batch."""
        found = (t for t in self.times if (t.processes, t.reduction, t.micro_batches) == (processes, reduction, 1))
        return [task for task in found if task.batch]

    def all_reduces(self, worlds: Sequence[int]) -> list[Task]:
        return [task for task in self.times if task.num_bytes and task.processes in worlds]

    def compute(self, processes: int) -> Compute:
        """Fit what computing takes when so many processes are busy at once."""
        return fit_compute([(task.share, self.median(task)) for task in self.steps(processes, "none")])

    def link(self, worlds: Sequence[int]) -> Link:
        return fit_link([(t.processes, t.num_bytes, self.median(t)) for t in self.all_reduces(worlds)])


class Worker:
    """One process of a world: the model, once for each way in which its gradients are added up."""

    def __init__(self, config: TrainConfig) -> None:
        self.trainer = build(config, Console(speaks=False))
        settle_gradient_buckets(self.trainer)
        self.states: dict[str, TrainState] = {"ddp": self.trainer.state}
        self.actions: dict[Task, Callable[[], Any]] = {}

    def state(self, reduction: str) -> TrainState:
        """Return the model as it is where gradients are added up like this; made when first asked for. Collective."""
        ddp = self.states["ddp"]
        if reduction == "none":
            return replace(ddp, wrapped=ddp.model)
        if reduction not in self.states:
            config, accelerator = self.trainer.config, self.trainer.accelerator
            size = self.gradient_bytes() / 2**20
            handler = accelerator.ddp_handler
            handler.bucket_cap_mb = {"one bucket": 2 * size, "quarters": size / 4}.get(reduction, 25)  # 25: torch's own
            handler.comm_hook = DDPCommunicationHookType("bf16" if reduction == "bf16" else "no")
            self.states[reduction] = build_state(config, len(self.trainer.dataset.classes), accelerator)
            settle_gradient_buckets(replace(self.trainer, state=self.states[reduction]))
        return self.states[reduction]

    def seconds(self, task: Task, count: int) -> float:
        """Return the mean time of the task, done `count` times, on the slowest process. Collective."""
        if task.num_bytes:
            message = torch.zeros(task.num_bytes // 4)
            return mean_s(lambda: dist.all_reduce(message), count)
        if task not in self.actions:
            self.actions[task] = self.step_of(task)
        return mean_s(self.actions[task], count, together=task.reduction == "none")

    def step_of(self, task: Task) -> Callable[[], Any]:
        """Return a function that does the next step of a run like the task."""
        most = math.ceil(task.share / task.micro_batches)
        config = replace(self.trainer.config, batch_size=task.batch, micro_batch_size=most)
        plan = BatchPlan.from_config(config, len(self.trainer.splits.train), task.processes)
        trainer = replace(self.trainer, config=config, plan=plan, state=self.state(task.reduction))
        numbers = itertools.cycle(range(plan.steps_per_epoch))
        # A learning rate of 0: where nothing is added up, processes would train apart.
        return lambda: train_step(trainer, next(numbers), 0.0, False)

    def gradient_bytes(self) -> int:
        return tensor_bytes(self.states["ddp"].model.parameters())

    def bucket_bytes(self, reduction: str) -> list[int]:
        ddp: Any = self.states[reduction].wrapped
        return [int(size) for size in ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")]


def mean_s(action: Callable[[], Any], count: int, together: bool = False) -> float:
    """Return the mean seconds of `count` actions on the slowest process. Collective.

    `together`: all processes start each action at once, and it lasts until the slowest is done, as within a step.
    """
    blocks = count if together else 1
    seconds = torch.zeros(blocks, dtype=torch.float64)
    for i in range(blocks):
        if collectives.world_size() > 1:
            dist.barrier()
        start = time.perf_counter()
        for _ in range(count // blocks):
            action()
        seconds[i] = time.perf_counter() - start
    return collectives.max_across_ranks(seconds).sum().item() / count


def serve(rank: int, size: int, port: int, config: TrainConfig, pipe: Connection) -> None:
    """Be one process of a world: answer requests, a method of Worker and its arguments, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}", "LOCAL_WORLD_SIZE": f"{size}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    finish(guarded(lambda: answer(config, pipe)))


def answer(config: TrainConfig, pipe: Connection) -> int:
    accelerator.join(config)
    worker = Worker(config)
    with suppress(EOFError):
        while True:
            method, *arguments = pipe.recv()
            pipe.send(getattr(worker, method)(*arguments))
    return FINISHED


class World:
    """Some processes that work together when asked."""

    def __init__(self, size: int, config: TrainConfig) -> None:
        context, port = get_context("spawn"), get_free_port()
        self.pipes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(rank, size, port, config, theirs), daemon=True).start()
            theirs.close()  # so that we notice when the process ends
            self.pipes.append(ours)

    def ask(self, *request: Any) -> Any:
        """Return rank 0's answer, once all have answered."""
        try:
            for pipe in self.pipes:
                pipe.send(request)
            answers = [pipe.recv() for pipe in self.pipes]
        except (EOFError, OSError):
            raise UserError("a process has ended; what it said stands above") from None
        return answers[0]

    def repeats(self, task: Task, seconds: float) -> int:
        """Return how often the task can be done in so many seconds, after a first time that warms up."""
        self.ask("seconds", task, 1)
        return min(MOST_REPEATS, max(2, round(seconds / self.ask("seconds", task, 2))))


def tasks(processes: int, batch_size: int, shares: Sequence[int], gradient_bytes: int) -> list[Task]:
    """Return all that is timed on so many processes."""
    batches = sorted({batch_size, *(processes * share for share in shares)})
    found = [Task(processes, batch) for batch in batches]
    if processes <= 2:
        found += [step(processes, batch_size, micro_batches) for micro_batches in (2, 4)]
    if processes > 1:
        found += [step(processes, batch) for batch in batches]
        found += [step(processes, batch_size, reduction=variant) for variant in VARIANTS]
        found += [Task(processes, num_bytes=size) for size in sorted({*MESSAGE_BYTES, gradient_bytes})]
    return found


def measure(given: argparse.Namespace) -> Record:
    """Time every task once a round."""
    options = {"model": given.model, "data": given.data, "data_dir": given.data_dir, "batch_size": given.batch_size}
    config = TrainConfig(**options, epochs=1, drop_last=True, device="cpu", threads=1)
    worlds = {size: World(size, config) for size in range(1, given.processes + 1)}
    gradient_bytes = worlds[1].ask("gradient_bytes")
    times: dict[Task, list[float]] = {
        task: [] for size in worlds for task in tasks(size, given.batch_size, given.shares, gradient_bytes)
    }
    repeats = {task: worlds[task.processes].repeats(task, given.seconds) for task in times}
    # What is compared comes close together: the same global batch, then as many images a process.
    order = sorted(times, key=lambda task: (task.num_bytes, task.batch != given.batch_size, task.share))
    for number in range(given.rounds):
        for task in order[:: 1 if number % 2 == 0 else -1]:  # so that a drift within a round favours nobody
            times[task].append(worlds[task.processes].ask("seconds", task, repeats[task]))
        print(f"round {number + 1} of {given.rounds}", flush=True)
    buckets = {name: worlds[2].ask("bucket_bytes", name) for name in ("ddp", *VARIANTS)} if len(worlds) > 1 else {}
    return Record(
        model=given.model,
        gradient_bytes=gradient_bytes,
        batch_size=given.batch_size,
        shares=given.shares,
        bucket_bytes=buckets,
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        date=date.today().isoformat(),
        times=times,
    )


Row = Sequence[Any]


def spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    lines = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def say_where(record: Record) -> None:
    print(f"{record.model} on {record.cores} cores, one thread a process; torch {record.torch}, {record.date}")
    if record.worlds[-1] > record.cores:
        print(
            f"More than {record.cores} processes share the cores: p of them can reach an efficiency of {record.cores}/p."
        )


def show(record: Record) -> None:
    """Print what was measured: times are medians of the rounds; ratios are medians, and the range over the rounds."""
    say_where(record)
    print(f"{len(next(iter(record.times.values())))} rounds")
    show_steps(record)
    if len(record.worlds) > 1:
        show_scaling(record)
        show_network(record)


def show_steps(record: Record) -> None:
    """Print computing alone, and accumulation."""
    rows: list[Row] = []
    for task in (task for p in record.worlds for task in record.steps(p, "none")):
        alone = Task(1, task.share)
        slower = record.ratio(task, alone) if alone in record.times else "-"
        rows.append((task.processes, task.share, ms(record.median(task)), slower))
    table("Computing alone, p processes at once", ("p", "images each", "ms", "time / that of one process"), rows)
    rows = []
    for task in (task for task in record.times if task.micro_batches > 1):
        whole = replace(task, micro_batches=1)
        rows.append((task.processes, task.micro_batches, ms(record.median(task)), record.ratio(whole, task)))
    title = f"Batch {record.batch_size} in k micro-batches; efficiency = time in one / time in k"
    table(title, ("p", "k", "ms", "efficiency"), rows)


def show_scaling(record: Record) -> None:
    """Print strong and weak scaling."""
    rows: list[Row] = []
    for p in record.worlds[1:]:
        task = step(p, record.batch_size)
        images_per_s = f"{task.batch / record.median(task):,.0f}"
        rows.append((p, ms(record.median(task)), images_per_s, record.ratio(step(1, task.batch), task, 1 / p)))
    title = f"Strong scaling: batch {record.batch_size} shared out; efficiency = time on one / (p x time on p)"
    table(title, ("p", "ms", "images/s", "efficiency"), rows)
    rows = []
    for p, share in itertools.product(record.worlds[1:], record.shares):
        task = step(p, p * share)
        images_per_s = f"{task.batch / record.median(task):,.0f}"
        rows.append((p, share, ms(record.median(task)), images_per_s, record.ratio(step(1, share), task)))
    title = "Weak scaling: as many images on each process; efficiency = time on one / time on p"
    table(title, ("p", "images each", "ms", "images/s", "efficiency"), rows)


def show_network(record: Record) -> None:
    """Print what adding up costs: alone, within a step, in other buckets, in bf16."""
    worlds, batch = record.worlds[1:], record.batch_size
    header = [f"p = {p}" for p in worlds]
    sizes = sorted({task.num_bytes for task in record.all_reduces(worlds)})
    rows: list[Row] = [(f"{size:,}", *(ms(record.median(Task(p, num_bytes=size))) for p in worlds)) for size in sizes]
    table(f"All-reduce alone, ms ({record.gradient_bytes:,} are the gradients)", ("bytes", *header), rows)
    rows = []
    for p in worlds:
        parts = [record.times[t] for t in (step(p, batch), Task(p, batch), Task(p, num_bytes=record.gradient_bytes))]
        rows.append((p, spread((whole - own) / sending for whole, own, sending in zip(*parts, strict=True))))
    title = f"Batch {batch}: (step - computing) / all-reduce of the gradients; 0 if all of it hides behind computing"
    table(title, ("p", "what shows"), rows)
    rows = []
    for name, sizes in record.bucket_bytes.items():
        times = (record.ratio(step(p, batch, reduction=name), step(p, batch)) for p in worlds)
        rows.append((name, " + ".join(f"{size:,}" for size in sizes), *times))
    title = f"Batch {batch}: time / that of DDP's default buckets in float32 (bf16 sends half of the bytes)"
    table(title, ("", "bytes of the buckets", *header), rows)


def fit(record: Record) -> None:
    """Print the fits, and how near they come to what they were fitted to."""
    say_where(record)
    rows: list[Row] = []
    for p in record.worlds:
        compute, measured = record.compute(p), record.steps(p, "none")
        ratios = spread(compute.step_s(task.share) / record.median(task) for task in measured)
        rows.append((p, ms(compute.overhead_s), ms(compute.image_s), ratios))
    table("Computing, p processes at once", ("p", "ms a step", "ms an image", "fitted / measured"), rows)
    rows = []
    several = record.worlds[1:]
    for worlds in [*([p] for p in several), *([several] if len(several) > 1 else [])]:
        link, measured = record.link(worlds), record.all_reduces(worlds)
        ratios = spread(link.all_reduce_s(t.num_bytes, t.processes) / record.median(t) for t in measured)
        name = f"{worlds[0]}" if len(worlds) == 1 else f"{worlds[0]} to {worlds[-1]}"
        rows.append((name, ms(link.latency_s), f"{link.bandwidth / 1e9:.3f}", ratios))
    table("All-reduce as a ring", ("p", "latency, ms", "bandwidth, GB/s", "fitted / measured"), rows)


def check(record: Record) -> None:
    """Print predicted / measured steps. Computing and all-reduce are fitted to each alone, steps measured as a whole."""
    say_where(record)
    print("Computing is fitted for each p, with p processes busy at once; one latency and bandwidth for all p.")
    rows: list[Row] = []
    link = record.link(record.worlds[1:])
    for p in record.worlds:
        compute, sending_s = record.compute(p), link.all_reduce_s(record.gradient_bytes, p)
        for task in record.steps(p, "ddp" if p > 1 else "none"):
            predicted = (step_s(compute, sending_s, task.share, hidden) for hidden in (0.0, BACKWARD_SHARE))
            ratios = (spread(seconds / measured for measured in record.times[task]) for seconds in predicted)
            rows.append((p, task.share, ms(record.median(task)), *ratios))
    table("Predicted / measured", ("p", "images each", "ms", "nothing hides", "2/3 of computing hides"), rows)


def predict(compute: Compute, link: Link, gradient_bytes: int, given: argparse.Namespace) -> None:
    """Print what the model says of 1 to 1,024 GPUs."""
    rows: list[Row] = []
    for p in GPUS:
        sending_s = link.all_reduce_s(gradient_bytes, p, given.algorithm)
        share = math.ceil(given.batch_size / p)
        fixed = step_s(compute, sending_s, share, given.hidden)
        best = smallest_batch(compute, sending_s, given.goal, given.hidden)
        images_per_s = p * best / step_s(compute, sending_s, best, given.hidden)
        strong = f"{given.batch_size / fixed:,.0f}", f"{efficiency(compute, sending_s, share, given.hidden):.1%}"
        shown = strong if p <= given.batch_size else ("-", "-")
        rows.append((p, ms(sending_s), *shown, f"{best:,}", f"{p * best:,}", f"{images_per_s:,.0f}"))
    header = ("GPUs", "all-reduce ms", f"images/s at batch {given.batch_size:,}", "efficiency")
    best_of = ("smallest share", f"batch for {given.goal:.0%}", "images/s")
    table("PREDICTED, none of it measured", (*header, *best_of), rows)


def predict_command(given: argparse.Namespace) -> None:
    """Gather what `predict` needs, and say where each part comes from."""
    if given.measured:
        record = Record.read(given.measured)
        model, gradient_bytes, compute = record.model, record.gradient_bytes, record.compute(1)
        source = f"measured on {record.date}, one thread of a CPU"
    elif given.model and given.seconds_per_image:
        model, gradient_bytes = given.model, tensor_bytes(build_model(given.model).parameters())
        compute, source = Compute(given.overhead_s, given.seconds_per_image), "as given"
    else:
        raise UserError("computing is unknown; give --measured FILE, or --model and --seconds-per-image")
    if given.interconnect:
        known = INTERCONNECTS[given.interconnect]
        link, network = known.link, f"{given.interconnect}, nominal: {known.source}"
        network += f". It joins {known.most_gpus} GPUs: rows of more are hypothetical" * (known.most_gpus is not None)
    elif given.latency_us is not None and given.bandwidth_gbs:
        link, network = Link(given.latency_us / 1e6, given.bandwidth_gbs * 1e9), "as given"
    else:
        raise UserError("the network is unknown; give --interconnect, or --latency-us and --bandwidth-gbs")
    gradient_bytes //= {"no": 1, "bf16": 2}[given.gradient_compression]
    print(f"{model}: {gradient_bytes:,} bytes of gradients")
    print(f"computing {ms(compute.overhead_s)} ms + {ms(compute.image_s)} ms an image: {source}")
    print(f"network   {1e6 * link.latency_s:g} us, {link.bandwidth / 1e9:g} GB/s, {given.algorithm}: {network}")
    print(f"up to {given.hidden:.0%} of computing hides the all-reduce")
    predict(compute, link, gradient_bytes, given)
    print("CIFAR-10 has 50,000 training images: a larger batch is more than there is.")


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or greater, got {number}")
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="time steps and all-reduces, and write them to a file")
    measuring.add_argument("record", type=Path, help="the file to write")
    measuring.add_argument("--model", default="lenet", choices=MODELS)
    measuring.add_argument("--data", default="cifar10")
    measuring.add_argument("--data-dir", default="data")
    measuring.add_argument("--processes", type=positive, default=2, help="worlds of 1 to so many")
    measuring.add_argument("--batch-size", type=positive, default=128, help="global batch of strong scaling")
    measuring.add_argument(
        "--shares", type=positive, nargs="+", default=[8, 32, 128], help="images a process, weak scaling"
    )
    measuring.add_argument("--rounds", type=positive, default=5)
    measuring.add_argument("--seconds", type=float, default=0.5, help="about so long for each task in each round")
    for name, text in (("show", "what was measured"), ("fit", "the fits"), ("check", "predicted / measured steps")):
        commands.add_parser(name, help=text).add_argument("record", type=Path, help="what `measure` wrote")
    predicting = commands.add_parser("predict", help="what the model says of 1 to 1,024 GPUs")
    predicting.add_argument("--measured", type=Path, metavar="FILE", help="take model and computing from this record")
    predicting.add_argument("--model", choices=MODELS)
    predicting.add_argument("--seconds-per-image", type=float)
    predicting.add_argument("--overhead-s", type=float, default=0.0, help="seconds a step costs besides its images")
    predicting.add_argument("--interconnect", choices=INTERCONNECTS)
    predicting.add_argument("--latency-us", type=float)
    predicting.add_argument("--bandwidth-gbs", type=float, help="gigabytes per second, one way")
    predicting.add_argument("--algorithm", choices=("ring", "halving"), default="ring", help="see scaling_model.py")
    predicting.add_argument("--gradient-compression", choices=("no", "bf16"), default="no")
    predicting.add_argument("--hidden", type=float, default=BACKWARD_SHARE, help="share of computing that can hide it")
    predicting.add_argument("--batch-size", type=positive, default=1024, help="global batch of the first columns")
    predicting.add_argument("--goal", type=float, default=0.9, help="efficiency that the smallest batch must reach")
    return parser.parse_args()


def run(given: argparse.Namespace) -> int:
    if given.command == "measure":
        record = measure(given)
        record.write(given.record)
        show(record)
    elif given.command == "predict":
        predict_command(given)
    else:
        {"show": show, "fit": fit, "check": check}[given.command](Record.read(given.record))
    return FINISHED


if __name__ == "__main__":
    given = parse()
    sys.exit(guarded(lambda: run(given)))
