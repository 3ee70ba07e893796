"""Where a run goes on: finds or makes its folder, keeps others out, loads the newest whole checkpoint."""

import hashlib
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, SoftFileLock, Timeout

from cifar_dist.config import TrainConfig, changed_fields, flag
from cifar_dist.errors import UserError
from cifar_dist.files import acquire, clear_partials, partial_of, stand_in, sync_folder, sync_tree, write_atomically
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import (
    BEGUN_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    LINK_FILE,
    LOCK_FILE,
    METRICS_FILE,
    PAGE_FILE,
    PLOTS,
    SUMMARY_FILE,
    TENSORBOARD,
    TRAINING_FILE,
    WANDB_LOG,
    WEIGHTS_FILE,
    RunFolder,
    predictions_file,
)
from cifar_dist.record.lines import ConfigRecord, Summary, fixed
from cifar_dist.runtime.launch import env_int, launch_id
from cifar_dist.training.state import Progress, digests_of

# What a copy of a run that is trained further may have otherwise than the run: its length, and what its steps add up to.
FURTHER = (
    "epochs",
    "steps",
    "schedule",
    "lr",
    "warmup",
    "milestones",
    "step_epochs",
    "lr_factor",
    "schedule_start",
    "patience",
)
THIS_START = (
    "output_dir",
    "resume",
    "data_dir",
    "device",
    "threads",
    "wandb",
    "max_time",
)  # never taken from the record

NOT_COPIED = (
    ".*",
    SUMMARY_FILE,
    LINK_FILE,
    PAGE_FILE,
    WANDB_LOG,
    PLOTS,
    TENSORBOARD,
    predictions_file("*"),
)  # another run makes its own


@dataclass
class StartingPoint:
    """What rank 0 found in the run folder; sent to every rank."""

    path: Path
    config: TrainConfig
    recorded: ConfigRecord | None = None  # of the run that goes on
    saved: checkpoint.Checkpoint | None = None
    summary: Summary | None = None  # of a run that is already finished
    notes: list[str] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)  # folders that weren't there before, the innermost first
    forked: bool = False  # the run folder is a copy, made for this start
    further_from: int = 0  # the step from which on this copy is, or was, trained further


def open_folder(config: TrainConfig, given: Mapping[str, Any], locks: list[BaseFileLock]) -> StartingPoint:
    """Find or make the run folder, lock it, and load what it goes on from; deletes nothing that is whole. Rank 0 only.

    The lock is added to `locks` and holds for as long as they live. Whatever is refused leaves no folder behind.
    """
    source, step = resume_source(config.resume)
    path = folder_of(config)
    start = StartingPoint(path, config, made=[folder for folder in (path, *path.parents) if not folder.exists()])
    try:
        if source and not (path / CONFIG_FILE).exists():
            if recorded := RunFolder(source).config():
                recorded_config(recorded, config, given, source, FURTHER)
            fork(source, step, path)
            start.forked = True
        elif step is not None and source and path.resolve() == source.resolve():
            raise UserError(
                f"--resume {config.resume}: going back in place would lose what came after; name a new --output-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        locks.append(lock(path))
        if config.resume == "never" and (path / CONFIG_FILE).exists():
            start.notes.append(f"the earlier run in {path} is now {RunFolder(path).move_aside()}")
            path.mkdir()
            locks.append(lock(path))
        if isinstance(locks[-1], SoftFileLock):
            start.notes.append(
                f"the file system of {path} has no locks; {stand_in(path / LOCK_FILE)} keeps other processes out while this one runs"
            )
        load_newest(start)
        if start.recorded:
            further = further_options(start, source, config, given)
            free = further or other_patience(start, config, given)
            start.config = recorded_config(start.recorded, config, given, path, free)
            start.further_from = start.recorded.get("further_from", 0)
            if further:
                go_further(start, given)
            elif start.saved and start.saved.step < start.further_from:
                raise UserError(
                    f"step {start.saved.step} was done by the run that was copied and trained further from step "
                    f"{start.further_from} on; take its checkpoint from there"
                )
        elif config.schedule_start:
            raise UserError(
                f"--schedule-start {config.schedule_start} is for a run that is trained further, "
                "by --resume RUN --output-dir NEW; leave it out"
            )
        elif source:
            raise UserError(f"--resume {config.resume}: there is no checkpoint in {path / CHECKPOINTS}")
    except (OSError, shutil.Error) as error:
        leave_nothing(start)
        raise UserError(f"can't use {path} as the run folder: {error}") from None
    except UserError:
        leave_nothing(start)
        raise
    return start


def leave_nothing(start: StartingPoint) -> None:
    """Remove what was made for a run that can't start: its copy of another run, and folders with nothing in them."""
    if start.forked:
        shutil.rmtree(start.path, ignore_errors=True)
    with suppress(OSError):
        locks = {start.path / LOCK_FILE, stand_in(start.path / LOCK_FILE)}
        if start.path in start.made and locks.issuperset(start.path.iterdir()):
            for path in locks:
                path.unlink(missing_ok=True)
    for folder in start.made:
        with suppress(OSError):
            folder.rmdir()


def resume_source(resume: str) -> tuple[Path | None, int | None]:
    """Return the run folder and the step that `--resume PATH` names; (None, None) for auto and never."""
    if resume in ("auto", "never"):
        return None, None
    path = Path(resume)
    if (path / checkpoint.MANIFEST).is_file():
        path = path.absolute() if path.name else path.resolve()  # of --resume . the folder that it is
        if not path.name.removeprefix("step_").isdecimal() or path.parent.name != CHECKPOINTS:
            raise UserError(
                f"--resume {resume} is a checkpoint under another name; it goes on as RUN/{CHECKPOINTS}/step_NUMBER"
            )
        return path.parent.parent, int(path.name.removeprefix("step_"))
    if (path / CONFIG_FILE).is_file():
        return path, None
    raise UserError(
        f"--resume {resume} is not auto, never, a run folder (with {CONFIG_FILE}) or one of its checkpoints/step_*"
    )


def folder_of(config: TrainConfig) -> Path:
    """Return the run folder: the one that was named, the one that goes on, or a new one."""
    return Path(config.output_dir) if config.output_dir else resume_source(config.resume)[0] or new_folder(config)


def new_folder(config: TrainConfig) -> Path:
    """Return a folder for a new run, or that of the run which torchrun starts again here after a worker has died."""
    launch = launch_id()
    if launch and env_int("TORCHELASTIC_RESTART_COUNT", 0):
        for path in sorted(Path("runs").glob(f"*/{CONFIG_FILE}"), reverse=True):
            with suppress(UserError):
                recorded = RunFolder(path.parent).config()
                if recorded and recorded["starts"] and recorded["starts"][-1].get("launch") == launch:
                    return path.parent
    recipe = config.recipe.replace("/", "-")  # ghasemi2024/3 is not a folder in a folder
    name = f"runs/{config.model}-{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(f"{name}-{number}"), number + 1
    return path


def fork(source: Path, step: int | None, path: Path) -> None:
    """Copy the run in `source`, up to `step`, to the new folder `path`: wholly or not at all."""
    clear_partials(path.parent)
    partial = partial_of(path)
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*NOT_COPIED))
        if step is not None:
            checkpoint.discard_after(partial / CHECKPOINTS, step)
        sync_tree(partial)
        partial.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def lock(path: Path, timeout_s: float = 0.5) -> BaseFileLock:
    """Keep a second process out of the folder for as long as the returned lock lives; raises `UserError` where one is in it.

    Waits for a moment: `record.folder.in_use` holds the lock while it looks.
    """
    try:
        return acquire(path / LOCK_FILE, timeout_s)
    except Timeout:
        left = stand_in(path / LOCK_FILE)
        way_out = f"; if its process is gone, remove {left}" if left.exists() else ""
        raise UserError(
            f"{path} is in use by another process; wait for it, or use another --output-dir{way_out}"
        ) from None


def load_newest(start: StartingPoint) -> None:
    """Load the newest whole checkpoint of the folder, where there is one, or the summary of a run that is finished."""
    folder = RunFolder(start.path)
    for place in (folder.path, folder.checkpoints):
        clear_partials(place)
    summary = folder.summary()
    if summary and summary.get("status") == "finished":
        start.summary = summary
    else:
        start.saved, problems = checkpoint.load_newest(folder.checkpoints, has_a_snapshot)
        if problems and not start.saved:
            raise UserError(
                f"no checkpoint in {folder.checkpoints} is whole ({problems[0]}); "
                "restore one, or use --resume never to start over"
            )
        start.notes += [f"skipped a broken checkpoint: {problem}" for problem in problems]
        if not start.saved and (start.path / CONFIG_FILE).exists() and not (folder.checkpoints / BEGUN_FILE).exists():
            raise UserError(
                f"{folder.checkpoints} is gone or empty, though a run began in {start.path}; mount or restore it, "
                "or use --resume never to start over"
            )
        if start.saved:
            start.notes.append(f"going on from step {start.saved.step} of {start.path}")
    if start.saved or start.summary:
        start.recorded = folder.config()


def has_a_snapshot(saved: checkpoint.Checkpoint) -> None:
    """Raise `BrokenCheckpointError` unless the checkpoint holds a state to go on from, and the weights for others."""
    if missing := {TRAINING_FILE, WEIGHTS_FILE} - saved.files.keys():
        raise checkpoint.BrokenCheckpointError(f"step_{saved.step:08d} has no {', '.join(sorted(missing))}")
    digests_of(saved.files[TRAINING_FILE])


def further_options(
    start: StartingPoint, source: Path | None, config: TrainConfig, given: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the options that the run may change because it is a copy of `source`, still unchanged, that is to be longer."""
    recorded, original = start.recorded, RunFolder(source).config() if source else None
    if not recorded or not original or start.path.resolve() == (source or start.path).resolve():
        return ()
    asked = any(name in given and getattr(config, name) != recorded["config"].get(name) for name in ("epochs", "steps"))
    return FURTHER if asked and len(recorded["starts"]) == len(original["starts"]) else ()


def other_patience(start: StartingPoint, config: TrainConfig, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `patience` where an unfinished run may have another: with it from the beginning, it would have come as far.

    Raises `UserError` where it would have ended before.
    """
    if not start.saved or "patience" not in given:
        return ()
    assert start.recorded is not None
    waits = [0]  # validations without a better one, in stretches
    best = -1.0
    for line in RunFolder(start.path).read_metrics_until(start.saved.step):
        if line["kind"] != "val":
            continue
        better, best = line["accuracy"] > best, max(line["accuracy"], best)
        if better or line["step"] <= start.recorded.get("further_from", 0):
            waits.append(0)
        else:
            waits[-1] += 1
    longest = max(waits[:-1], default=0)
    if config.patience and config.patience <= longest:
        raise UserError(
            f"with --patience {config.patience} the run in {start.path} would have ended before step {start.saved.step}, "
            f"and missed its best validation: one was better after {longest} that weren't; give {longest + 1} or more"
        )
    return ("patience",)


def go_further(start: StartingPoint, given: Mapping[str, Any]) -> None:
    """Begin the schedule anew where the run goes on, unless the command says where; say so."""
    assert start.saved, "a copy has no summary, so that its newest checkpoint was loaded"
    step, config = start.saved.step, start.config
    start.further_from = step
    if "schedule_start" not in given:
        start.config = config = replace(config, schedule_start=step)
    if config.schedule_start not in (0, step):
        raise UserError(
            f"--schedule-start {config.schedule_start} is neither 0 nor {step}, where the run goes on; leave it out"
        )
    begins = (
        f"begins anew at step {step} (0 would have one for all steps)" if config.schedule_start else "is over all steps"
    )
    start.notes.append(
        f"trained further: schedule {config.schedule} {begins}: --schedule-start {config.schedule_start}"
    )


def recorded_config(
    recorded: ConfigRecord, config: TrainConfig, given: Mapping[str, Any], path: Path, further: Collection[str] = ()
) -> TrainConfig:
    """Return the configuration the run was started with, under the options given now, where those may change, or are `further`."""
    old = {name: value for name, value in recorded["config"].items() if name not in THIS_START}
    # auto: whatever was taken then.
    chosen_then = {name for name in ("data", "mixed_precision", "micro_batch_size") if getattr(config, name) == "auto"}
    now = {*THIS_START, *given} - chosen_then
    if now & {"epochs", "steps"}:
        now |= {"epochs", "steps"}  # one is None where the other is given
    merged = replace(TrainConfig.from_dict(old), **{name: getattr(config, name) for name in now})
    # Whether data in another place are the same is known when they are read (`run.check_same_data`).
    if changed := [name for name in changed_fields(recorded["config"], merged) if name not in ("data", *further)]:
        name = next((name for name in changed if getattr(merged, name) is not None), changed[0])
        length = {"epochs": merged.epochs, "steps": merged.steps}.get(name)
        way_on = f"--resume {path} --output-dir NEW {flag(name)} {length} trains a copy further"
        raise UserError(
            f"the run in {path} has {flag(name)} {recorded['config'].get(name)}, not {getattr(merged, name)}; "
            + (way_on if length else f"leave {flag(name)} out to go on, or use another --output-dir")
            + ", or --resume never to start over"
        )
    return merged


def check_lines(folder: RunFolder, progress: Progress) -> None:
    """Raise `UserError` unless metrics.jsonl holds what the checkpoint follows: later lines may be missing, these not."""
    if progress.num_lines is None:
        return
    number, sha256 = fixed(folder.read_metrics_until(progress.step))
    if (number, sha256) != (progress.num_lines, progress.lines_sha256):
        found = f"has {number} lines" if number != progress.num_lines else "has other lines"
        raise UserError(
            f"{folder.path / METRICS_FILE} {found} up to step {progress.step}, where the checkpoint follows {progress.num_lines}; "
            "restore it, or use --resume never to start over"
        )


def best_weights(folder: RunFolder, progress: Progress) -> tuple[bytes, str]:
    """Return the weights file of the best step so far, and what was wrong with its checkpoint.

    The run folder's own holds the same bytes, and stands in for it. Raises `BrokenCheckpointError` where neither has them.
    """
    assert progress.best_step is not None
    try:
        return checkpoint.load(checkpoint.folder_for(folder.checkpoints, progress.best_step)).files[WEIGHTS_FILE], ""
    except (checkpoint.BrokenCheckpointError, KeyError) as error:
        weights = folder.path / WEIGHTS_FILE
        data = weights.read_bytes() if weights.is_file() else b""
        if hashlib.sha256(data).hexdigest() != progress.best_sha256:
            raise checkpoint.BrokenCheckpointError(f"{error}; {weights} has others") from None
        return data, f"{error}; {weights} holds the same bytes and stands in for it"


def take_over(folder: RunFolder, step: int | None, best: bytes | None) -> None:
    """Make the folder's record end at `step`, its newest whole checkpoint, or begin. After all checks; rank 0 only."""
    folder.checkpoints.mkdir(exist_ok=True)
    (folder.checkpoints / BEGUN_FILE).touch()
    sync_folder(folder.checkpoints)
    checkpoint.discard_after(folder.checkpoints, step or 0)
    folder.truncate_metrics(-1 if step is None else step)
    folder.drop_predictions(-1 if step is None else step)
    weights = folder.path / WEIGHTS_FILE
    if best is None:
        weights.unlink(missing_ok=True)
    else:
        write_atomically(weights, best)
