"""`python -m cifar_dist explain RUN`: where a run's time goes, how near that is to the machine's limit, and one thing to try."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_dist.cli import command_parser
from cifar_dist.config import POSITIVE, TrainConfig, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED
from cifar_dist.explain.suggestions import WORTH_SAYING, Suggestion, candidates
from cifar_dist.files import read_json, write_json
from cifar_dist.options import add_flags, check_output
from cifar_dist.record.lines import Line
from cifar_dist.record.reader import RunRecord, is_run, not_a_run, read_run
from cifar_dist.runtime.workers import WorkerError, run_worker
from cifar_dist.text import clock, count, duration, percent

ROUNDS = 2  # in which a suggestion takes turns with the step as it is
NAMES = {
    "batches": "making batches",
    "passes": "forward and backward passes",
    "exchange": "exchange of gradients, waiting for others included",
    "optimizer": "optimizer",
    "average": "moving average",
}


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """The options of `explain`."""

    data_dir: str | None = option(None, "where the decoded data is kept (default: where the run had it)")
    seconds: float = option(2.0, "how long each thing is measured, after a warm-up", must_be=POSITIVE)
    output: str = option("", "where to write the JSON (default: explain.json in the run folder)")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_output(self.output)


def main(argv: Sequence[str]) -> int:
    """Measure, print and write; raises `UserError`."""
    parser = command_parser("explain", usage="%(prog)s RUN [options]")
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder; its steps are done on this machine")
    add_flags(parser, ExplainOptions)
    given = parser.parse(argv)
    folder, options = given.pop("run", None), ExplainOptions(**given)
    if not folder:
        raise UserError("which run? Give its folder: python -m cifar_dist explain runs/NAME")
    if not is_run(Path(folder)):
        raise not_a_run(Path(folder))
    run, console = read_run(Path(folder)), Console(speaks=True)
    if not run.starts:
        raise UserError(f"{folder} has no start on record: {run.problem or 'it has not begun'}")
    config, world_size = as_it_ran(run, options.data_dir)
    content: dict[str, Any] = {"run": folder, "record": shares_of_record(run)}
    for line in record_lines(content["record"]):
        console.say(line)
    console.say(f"measuring its steps here, with {count(world_size, 'process')}", "dim")
    content["step"] = found = measure(config, world_size, options.seconds, closely=True)
    for line in step_lines(found):
        console.say(line)
    suggestions = list(candidates(config, found["threads"], world_size))
    if suggestions:
        console.say(f"trying {', '.join(one.option for one in suggestions)}, in turns with the step as it is", "dim")
    content["suggestions"] = tried = compare(config, suggestions, world_size, options.seconds)
    for one in tried:
        if one["problem"]:
            console.say(f"{one['option']} can't be tried: {one['problem']}", "dim")
    console.say(suggestion_line(tried))
    output = Path(options.output) if options.output else Path(folder) / "explain.json"
    write_json(output, content)
    console.say(f"written to {output}")
    return FINISHED


def as_it_ran(run: RunRecord, data_dir: str | None) -> tuple[TrainConfig, int]:
    """Return the run's configuration with the threads it had, and its number of processes."""
    last = run.starts[-1]
    options = {**run.config, "threads": last.get("threads_per_process"), "wandb": "disabled", "init_from": None}
    options |= {"data_dir": data_dir} if data_dir else {}
    return TrainConfig.from_dict(options), last.get("world_size", 1)


def measure(config: TrainConfig, world_size: int, seconds: float, closely: bool = False) -> dict[str, Any]:
    """Return what `explain.worker` finds; raises `WorkerError`, and `UserError` of the steps as they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        job = {"config": config.to_dict(), "seconds": seconds, "closely": closely, "found": str(path)}
        try:
            run_worker("cifar_dist.explain.worker", job, config, world_size)
        except WorkerError as error:
            if closely:
                raise UserError(f"its steps can't be done here: {error}") from None
            raise
        found: dict[str, Any] = read_json(path)
        return found


def compare(
    config: TrainConfig, suggestions: Sequence[Suggestion], world_size: int, seconds: float
) -> list[dict[str, Any]]:
    """Return how many times as fast each suggestion's steps are, in rounds in which all take turns with the step as it is."""
    tried: list[dict[str, Any]] = [
        {"option": one.option, "note": one.note, "times_as_fast": [], "problem": ""} for one in suggestions
    ]
    for _ in range(ROUNDS if suggestions else 0):
        ours = measure(config, world_size, seconds)["step_s"]
        for one, suggestion in zip(tried, suggestions, strict=True):
            if one["problem"]:
                continue
            try:
                one["times_as_fast"].append(ours / measure(suggestion.config, world_size, seconds)["step_s"])
            except WorkerError as error:
                one["problem"] = str(error)
    return tried


def shares_of_record(run: RunRecord) -> dict[str, float] | None:
    """Return the seconds that the run took and those of them in steps, as its training lines say; None without lines."""
    lines: list[Line] = [line for line in run.lines if line["kind"] == "train"]
    if not lines:
        return None
    in_steps, samples = 0.0, 0
    for line in lines:
        in_steps += (line["samples"] - samples) / line["images_per_second"]  # type: ignore[typeddict-item]
        samples = line["samples"]
    total = max(run.lines[-1]["seconds"], in_steps)
    return {"seconds": total, "in_steps": in_steps, "lines": len(lines)}


def record_lines(record: dict[str, float] | None) -> list[str]:
    if record is None:
        return ["the record has no training line yet"]
    share = record["in_steps"] / record["seconds"]
    return [
        f"by its record the run took {clock(record['seconds'])}: {percent(share, 1)} in steps, "
        f"{percent(1 - share, 1)} in validations, checkpoints, the test, the page and Weights & Biases"
    ]


def step_lines(found: dict[str, Any]) -> list[str]:
    """Return what a step is made of."""
    step_s, parts = found["step_s"], found["parts"]
    speed = found["batch_size"] / step_s
    how = "captured" if found["captured"] else "eager"
    lines = [f"a step of {found['batch_size']} images takes {duration(step_s)}, {how}: {speed:,.0f} images/s"]
    total = sum(parts.values())
    if found["captured"] and total > 1.2 * step_s:
        lines.append(f"done eagerly, part by part, it takes {duration(total)}:")
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        lines.append(f"  {percent(seconds / total, 1):>7}  {duration(seconds):>8}  {NAMES[name]}")
    lines.append(
        f"it is {found['operations']:,.0f} operations; {percent(found['inside'], 0)} of its time is inside them, "
        f"{percent(1 - found['inside'], 0)} is Python, autograd and launching"
    )
    achieved = found["macs"] * speed
    lines.append(
        f"it multiplies {2 * achieved / 1e9:,.3g} of at most {2 * found['ceiling'] / 1e9:,.3g} GFLOP/s, "
        f"{percent(achieved / found['ceiling'], 1)} of what products of large matrices reach here"
    )
    pauses = ", ".join(f"a {name} {duration(seconds)}" for name, seconds in found["pauses"].items() if seconds)
    lines.append(f"beside steps: {pauses}")
    between, validation = found["steps_between"], found["pauses"]["validation"]
    if between and validation / (validation + between * step_s) > WORTH_SAYING - 1:
        now, fewer = (percent(validation / (validation + times * between * step_s), 0) for times in (1, 2))
        lines.append(
            f"with one every {count(between, 'step')} validations take {now} of the time; "
            f"with --eval-every {2 * found['eval_every']} {fewer}, and fewer weights to choose from"
        )
    return lines


def suggestion_line(tried: Sequence[dict[str, Any]]) -> str:
    """Return the best of what was tried, as far as it was faster each time."""
    tried = [one for one in tried if not one["problem"]]
    best = max(tried, key=lambda one: min(one["times_as_fast"]), default=None)
    if not best or min(best["times_as_fast"]) < WORTH_SAYING:
        names = "; ".join(f"{one['option']}: {times(one)} times as fast" for one in tried)
        return f"nothing that was tried is faster each time{f' ({names})' if names else ''}"
    note = f" ({best['note']})" if best["note"] else ""
    return f"try {best['option']}{note}: {times(best)} times as fast, in turns with the step as it is"


def times(one: dict[str, Any]) -> str:
    return " and ".join(f"{ratio:.2f}" for ratio in one["times_as_fast"])
