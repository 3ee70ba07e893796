"""Where a run comes from and how to have it again: its state, its options beside the recipe's, the commands that repeat it."""

import shlex
from dataclasses import fields
from typing import Any, NamedTuple

from cifar_dist.config import TrainConfig, flag
from cifar_dist.options import to_words
from cifar_dist.recipes import PUBLISHED, own_config
from cifar_dist.record.checkpoint import saved_steps
from cifar_dist.record.folder import CHECKPOINTS
from cifar_dist.record.lines import Start
from cifar_dist.record.reader import RunRecord
from cifar_dist.text import option_text

NOT_REPEATED = (
    "output_dir",
    "resume",
    "max_time",
    "schedule_start",
    *(f.name for f in fields(TrainConfig) if f.name.startswith("wandb")),
)


class Option(NamedTuple):
    """An option of the run."""

    flag: str
    value: str
    recipes: str  # the recipe's own value; empty where it is the same
    help: str


def advice(record: RunRecord) -> tuple[str, str]:
    """Return what a reader should know of the run's state, and the command that helps; each empty where there is nothing."""
    where = shlex.quote(str(record.path))
    resume = f"{shlex.join(launcher(record))} train.py --resume {where}"
    saved = bool(saved_steps(record.path / CHECKPOINTS))
    on = ("To go on from its last checkpoint:", resume) if saved else ("Nothing was saved: it has to start over.", "")
    match record.status:
        case "finished":
            test = f"python eval.py --checkpoint {where}"
            return ("", "") if record.summary.get("test") else ("It was not tested. To do so:", test)
        case "running":
            return (
                "It is running. This page is written anew after each evaluation, and loads itself every 20 seconds.",
                "",
            )
        case "interrupted":
            step, signal = record.summary.get("step"), record.summary.get("signal", "a signal")
            return f"Interrupted by {signal} after step {step}, which is saved. To go on:", resume
        case "failed":
            return f"It failed: {record.problem}. {on[0]}", on[1]
        case "killed":
            return f"It ended without a word: it was killed, or its machine went down. {on[0]}", on[1]
        case "broken":
            return f"Something in the run folder can't be read ({record.problem}); this page shows the rest.", ""


def launcher(record: RunRecord) -> list[str]:
    """Return the words that start as many processes as the run had in the end; one process needs no launcher."""
    start = record.starts[-1] if record.starts else Start()
    processes = start.get("world_size", 1)
    if processes == 1:
        return ["python"]
    config = f"launch/multi_{'cpu' if str(start.get('device')).startswith('cpu') else 'gpu'}.yaml"
    return ["accelerate", "launch", "--config_file", config, "--num_processes", str(processes)]


def published_accuracy(record: RunRecord) -> float | None:
    """Return the test accuracy in [0, 1] that the recipe's text gives; None where it gives none, or the data isn't its own."""
    key = (record.config.get("recipe", ""), record.config.get("model", ""))
    other = record.dataset.get("synthetic") or record.dataset.get("name") == "CIFAR-100"
    return None if other else PUBLISHED.get(key)


def own_options(record: RunRecord) -> dict[str, Any]:
    """Return the options of the run's recipe without any others; empty where this version doesn't know it."""
    own = own_config(record.config.get("recipe", ""), record.config.get("model"))
    return own.to_dict() if own else {}


def options(record: RunRecord) -> list[Option]:
    """Return all options of the run."""
    own = own_options(record)
    helps = {f.name: f.metadata["help"] for f in fields(TrainConfig)}
    found = []
    for name, value in record.config.items():
        differs = name in own and own[name] != value and name not in ("output_dir", "resume")
        found.append(
            Option(flag(name), option_text(value), option_text(own[name]) if differs else "", helps.get(name, ""))
        )
    return found


def commands(record: RunRecord) -> list[str]:
    """Return the commands that repeat the run, into a new folder; as it was typed where this version doesn't know its recipe.

    A run that another was trained further to needs that one: then only its own command is known.
    """
    if not record.starts:
        return []
    start, own = record.starts[-1], own_options(record)
    commit = (start.get("git_commit") or "").rstrip("+")
    checkout = [shlex.join(["git", "checkout", commit])] if commit else []
    if not own or record.config.get("schedule_start"):
        return [*checkout, f"{shlex.join(launcher(record))} {quoted(own_command(record))}"]
    on_cpu = start["device"].startswith("cpu")
    named = {name: record.config.get(name, own[name]) for name in ("model", "recipe")}
    others = {n: v for n, v in record.config.items() if n in own and n not in NOT_REPEATED and v != own[n]}
    threads = {"threads": start["threads_per_process"]} if on_cpu else {}  # sums over other shares round differently
    options = [shlex.join(to_words({name: value})) for name, value in (named | others | threads).items()]
    return [*checkout, " \\\n    ".join([shlex.join([*launcher(record), "train.py"]), *options])]


def own_command(record: RunRecord) -> str:
    """Return the first command that was typed for this run; of one that is a longer copy, not that of the run it was copied from."""
    further = record.config.get("schedule_start") or 0
    return next((start for start in record.starts if start["from_step"] >= further), record.starts[0])["command"]


def quoted(command: str) -> str:
    """Return a command that a run recorded, with nothing in it but words: a foreign run's may hold a second one."""
    try:
        return shlex.join(shlex.split(command))
    except ValueError:  # a quotation mark is missing
        return shlex.quote(command)
