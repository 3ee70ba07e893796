"""What can be known to be wrong with a submission before a node is spent on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifar_dist.config import NOT_NEGATIVE, POSITIVE, TrainConfig, check_bounds, flag, option
from cifar_dist.data import cache_folder
from cifar_dist.data.cifar import OFFICIAL
from cifar_dist.errors import UserError
from cifar_dist.inputs.plan import check_batch
from cifar_dist.options import resolve_train_config
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.repeats import without
from cifar_dist.slurm import sbatch
from cifar_dist.sweep.prepare import SweepOptions, find_file, prepare
from cifar_dist.sweep.study import check_record
from cifar_dist.training.preflight import check_early
from cifar_dist.training.resume import recorded_config

OF_SWEEP = ("count", "sweep_seed")
JOB_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """The options that `train.py` doesn't have."""

    nodes: int = option(1, "nodes of each run", must_be=POSITIVE)
    gpus_per_node: int | None = option(
        None,
        "GPUs on each node, which others may share; 0 trains on the CPUs (default: whole nodes; one GPU for each run of an array)",
        must_be=NOT_NEGATIVE,
    )
    time: str | None = option(
        None, "time limit of one attempt: 30m, 2h, 1d12h, or as Slurm has it (default: the template's)"
    )
    partition: str | None = option(None, "partition (default: that of slurm/site.sh)")
    account: str | None = option(None, "account (default: that of slurm/site.sh)")
    job_name: str | None = option(None, "name of the job, its log and its run folder (default: MODEL-RECIPE, or FILE)")
    preemptible: bool = option(
        True, "go on after the time limit or a more important job: checkpoint, requeue, until the run is finished"
    )
    array_seeds: int | None = option(
        None, "a job array of this many runs that differ in --seed, from 0", must_be=POSITIVE
    )
    sweep: str | None = option(
        None, "a job array of the runs of this sweep file, as python -m cifar_dist sweep takes it"
    )
    throttle: int | None = option(None, "runs of the array at a time (default: as many as fit)", must_be=POSITIVE)
    data_on_nodes: bool = option(False, "--data is a folder that only the nodes have; it is not looked for here")
    dry_run: bool = option(False, "show the command, and submit nothing")

    def __post_init__(self) -> None:
        check_bounds(self)


def clashes(options: SubmitOptions, given: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return what can't be together: (whether it is so, what to say then)."""
    seeds, sweep = options.array_seeds is not None, options.sweep is not None
    stray = next((name for name in OF_SWEEP if name in given), "")
    return [
        (seeds and sweep, "--array-seeds and --sweep don't go together; name seed in the sweep file"),
        (options.throttle is not None and not (seeds or sweep), "--throttle needs --array-seeds or --sweep"),
        (bool(stray) and not sweep, f"{flag(stray)} needs --sweep"),
        (seeds and "seed" in given, "--seed and --array-seeds don't go together; leave one out"),
        (
            seeds and "output_dir" in given,
            "--output-dir is one folder, and each seed needs its own; leave it out, --job-name names them all",
        ),
        (
            (seeds or sweep) and not options.preemptible,
            "--no-preemptible has no effect on a job array, whose runs always go on; leave it out",
        ),
        (
            sweep and (options.nodes > 1 or (options.gpus_per_node or 0) > 1),
            "a run of a sweep is one process on one node; leave --nodes and --gpus-per-node out",
        ),
        (sweep and "resume" in given, "--resume has no effect: a sweep always goes on; leave it out"),
        (
            given.get("resume") == "never",
            "--resume never would start over whenever the job is requeued; leave it out, each job has a folder of its own",
        ),
        (
            options.job_name is not None and not JOB_NAME.fullmatch(options.job_name),
            f"--job-name {options.job_name} would be a file's name; use letters, digits, . _ + and - only",
        ),
    ]


def check_place() -> None:
    """Raise `UserError` unless we are where the templates expect to be submitted."""
    root = sbatch.TEMPLATES.parent
    if not sbatch.TEMPLATES.is_dir():
        raise UserError(f"the package in {root} has no slurm/ beside it, whose templates run; submit from a checkout")
    if Path.cwd() != root:
        raise UserError(f"the templates, and relative paths in a job, start from {root}; cd there first")


def check_run(options: SubmitOptions, given: dict[str, Any]) -> tuple[str, TrainConfig]:
    """Check a run as train.py will; return a name for it, and what it resolves to. Raises `UserError`."""
    config = resolve_train_config(given)
    if config.output_dir:
        path = Path(config.output_dir)
        if (RunFolder(path).summary() or {}).get("status") == "finished":
            raise UserError(f"the run in {path} is finished, so nothing is left to do; use another --output-dir")
        if recorded := RunFolder(path).config():
            config = recorded_config(recorded, config, given, path)
    if "/" in config.data and not Path(config.data).is_dir() and not options.data_on_nodes:
        raise UserError(
            f"--data {config.data} is not a folder here; give one that is, or add --data-on-nodes where only the nodes have it"
        )
    check_early(replace(config, data="synthetic") if options.data_on_nodes else config)
    if options.gpus_per_node:
        check_batch(config, options.nodes * options.gpus_per_node)
    return f"{config.model}-{config.recipe.replace('/', '-')}", config


def check_sweep(options: SubmitOptions, given: dict[str, Any]) -> tuple[int, str, TrainConfig]:
    """Check every run of a sweep; return their number, a name, and what the first resolves to. Raises `UserError`."""
    path = find_file(str(options.sweep))
    own = {name: given[name] for name in (*OF_SWEEP, "output_dir") if name in given}
    fixed = without(given, own) | ({"data": "synthetic"} if options.data_on_nodes else {})
    study = prepare(path, SweepOptions(**own), fixed)
    if not options.data_on_nodes:
        check_record(study)
    first = {name: tuple(value) if isinstance(value, list) else value for name, value in study.runs[0].items()}
    return len(study.runs), re.sub(r"[^\w.+-]", "_", path.stem), resolve_train_config(first)


def data_notes(config: TrainConfig) -> list[str]:
    """Return what to do about a data set that the nodes would have to download."""
    data_dir, key = Path(config.data_dir), "cifar10" if config.data == "auto" else config.data
    caches = [cache_folder(key, data_dir, size) for size in (None, config.image_size)] if key in OFFICIAL else []
    if key not in OFFICIAL or OFFICIAL[key].is_in(data_dir) or any(folder.exists() for folder in caches):
        return []
    prepare = "python -m cifar_dist prepare" + f" --data {key}" * (key != "cifar10")
    return [f"{OFFICIAL[key].name} is not in {data_dir} yet, and nodes may have no network; {prepare} gets it here"]
