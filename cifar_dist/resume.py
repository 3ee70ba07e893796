"""Where a run goes on: finds or makes its folder, keeps others out, loads the newest whole checkpoint."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_dist import checkpoint
from cifar_dist.config import TrainConfig, changed_fields, flag
from cifar_dist.errors import UserError
from cifar_dist.runlog import CONFIG_FILE, SUMMARY_FILE, RunFolder


@dataclass
class Opening:
    """What rank 0 found in the run folder; sent to every rank."""

    path: Path
    config: TrainConfig
    recorded: dict[str, Any] | None = None  # config.json of an earlier start
    saved: checkpoint.Checkpoint | None = None
    summary: dict[str, Any] | None = None  # of a run that is already finished
    notes: list[str] = field(default_factory=list)


def open_folder(config: TrainConfig, given: Mapping[str, Any], lock: list[FileLock]) -> Opening:
    """Find or make the run folder, lock it, and load what it goes on from. Rank 0 only."""
    source, step = resume_source(config.resume)
    path = Path(config.output_dir) if config.output_dir else source or new_folder(config)
    try:
        if source and path.resolve() != source.resolve():
            if path.exists():
                raise UserError(
                    f"--resume {config.resume} into --output-dir {path}: it exists already; "
                    "use a new one, or leave --output-dir out to go on in place"
                )
            shutil.copytree(source, path)
        notes = []
        if config.resume == "never" and (path / CONFIG_FILE).exists():
            notes.append(f"the earlier run in {path} is now {RunFolder(path).move_aside()}")
        path.mkdir(parents=True, exist_ok=True)
        take_lock(path, lock)
        opening = read_folder(path, config, step)
    except (OSError, shutil.Error) as error:
        raise UserError(f"can't use {path} as the run folder: {error}") from None
    opening.notes = notes + opening.notes
    if opening.recorded and (opening.saved or opening.summary):
        opening.config = recorded_config(opening.recorded, config, given, path)
    elif source:
        raise UserError(f"--resume {config.resume}: there is no whole checkpoint in {path / 'checkpoints'}")
    return opening


def resume_source(resume: str) -> tuple[Path | None, int | None]:
    """Return the run folder and the step that `--resume PATH` names; (None, None) for auto and never."""
    if resume in ("auto", "never"):
        return None, None
    path = Path(resume)
    if (path / checkpoint.MANIFEST).is_file():
        return path.parent.parent, int(path.name[5:])
    if (path / CONFIG_FILE).is_file():
        return path, None
    raise UserError(
        f"--resume {resume} is not auto, never, a run folder (with {CONFIG_FILE}) or one of its checkpoints/step_*"
    )


def new_folder(config: TrainConfig) -> Path:
    name = f"runs/{config.model}-{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(f"{name}-{number}"), number + 1
    return path


def take_lock(path: Path, lock: list[FileLock]) -> None:
    """Keep a second process out of the folder for as long as this one lives."""
    lock.append(FileLock(path / ".lock"))
    try:
        lock[0].acquire(timeout=0)
    except Timeout:
        raise UserError(f"{path} is in use by another process; wait for it, or use another --output-dir") from None
    except NotImplementedError:  # a file system without locks; go on without
        pass


def read_folder(path: Path, config: TrainConfig, step: int | None) -> Opening:
    """Load the checkpoint of `step`, or the newest whole one, and make the record end where it does."""
    folder = RunFolder(path)
    opening = Opening(path, config, recorded=folder.read_json(CONFIG_FILE))
    summary = folder.read_json(SUMMARY_FILE)
    if summary and summary.get("status") == "finished" and step is None:
        opening.summary = summary
        return opening
    if step is not None:
        opening.saved = checkpoint.load(checkpoint.folder_for(folder.checkpoints, step))
    else:
        opening.saved, problems = checkpoint.load_newest(folder.checkpoints)
        opening.notes = [f"skipped a broken checkpoint: {problem}" for problem in problems]
    if opening.saved:
        opening.notes.append(f"going on from step {opening.saved.step} of {path}")
    checkpoint.discard_after(folder.checkpoints, opening.saved.step if opening.saved else 0)
    folder.truncate_metrics(opening.saved.step if opening.saved else -1)
    return opening


def recorded_config(
    recorded: Mapping[str, Any], config: TrainConfig, given: Mapping[str, Any], path: Path
) -> TrainConfig:
    """Return the configuration the run was started with, under the options given now, where those may change."""
    names = {f.name for f in fields(TrainConfig)}
    old: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in recorded["config"].items() if k in names
    }
    new = {name: getattr(config, name) for name in given if not (name == "data" and config.data == "auto")}
    merged = replace(TrainConfig(**old), **{**{n: getattr(config, n) for n in ("output_dir", "resume")}, **new})
    if changed := changed_fields(recorded["config"], merged):
        name = changed[0]
        raise UserError(
            f"the run in {path} has {flag(name)} {recorded['config'][name]}, not {getattr(merged, name)}; leave {flag(name)} out to go on, "
            "or use another --output-dir, or --resume never to start over"
        )
    return merged
