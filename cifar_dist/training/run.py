"""One training run from configuration to result: load the data, train, test, leave a summary."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any, Unpack

from filelock import BaseFileLock

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Splits
from cifar_dist.errors import UserError
from cifar_dist.files import write_atomically
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.recipes import own_config
from cifar_dist.record import checkpoint, curves
from cifar_dist.record.environment import changes, environment
from cifar_dist.record.folder import CHANGES_FILE, SUMMARY_FILE, TRAINING_FILE, WEIGHTS_FILE, RunFolder
from cifar_dist.record.lines import ConfigRecord, DatasetRecord, Start, Summary
from cifar_dist.runtime.collectives import on_main, rank, world_size
from cifar_dist.runtime.launch import start_again
from cifar_dist.runtime.watch import Watch
from cifar_dist.text import count, reason
from cifar_dist.tracking.link import resolve_mode
from cifar_dist.training.build import Trainer, build, initialise
from cifar_dist.training.compute import early_images, macs_per_sample
from cifar_dist.training.engine import train
from cifar_dist.training.evaluation import evaluate
from cifar_dist.training.memory import fit_micro_batch
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.recording import Run, keep_predictions, prune_checkpoints, result_line
from cifar_dist.training.resume import StartingPoint, best_weights, check_lines, leave_nothing, open_folder, take_over
from cifar_dist.training.state import Progress, restore
from cifar_dist.training.views import Views
from cifar_dist.training.weights import unpack_weights

STOP_BUTTON = "the stop button of Weights & Biases"  # slurm/job.sh doesn't requeue what it stopped


def train_run(config: TrainConfig, given: Mapping[str, Any], signals: StopSignals) -> Signals | None:
    """Train, from the start or from a checkpoint, and test. Returns the signal that interrupted it, or None.

    SIGALRM where nobody sent one: time was up, or somebody pressed a button.

    The process group must have been joined. Raises `UserError` for wrong input, on every rank alike.
    """
    locks: list[BaseFileLock] = []  # rank 0's
    try:
        with Watch() as watch:
            return train_and_test(config, given, signals, locks, watch)
    finally:
        for held in locks:
            held.release()


def train_and_test(
    config: TrainConfig, given: Mapping[str, Any], signals: StopSignals, locks: list[BaseFileLock], watch: Watch
) -> Signals | None:
    """Do what `train_run` does, in a folder whose lock is added to `locks`, watched over."""
    console = Console(speaks=rank() == 0)
    mode = on_main(lambda: resolve_mode(config.wandb))
    start = on_main(lambda: open_folder(config, given, locks))
    for note in start.notes:
        console.warn(note)
    if start.summary:
        show_finished(console, start.path, start.summary)
        return None
    try:
        run = start_run(start, given, signals, console)
    except (UserError, OSError):
        on_main(lambda: leave_nothing(start))
        raise
    watch.progress = run.trainer.state.progress
    views = Views(run, mode) if run.trainer.rank == 0 else None
    try:
        signals.defer_interrupt()
        console.start_progress(run.trainer.plan, run.trainer.state.progress.step)
        stopped = train(run, views.refresh if views else None)
        console.stop_progress()
        if stopped:
            cause = f"--max-time {config.max_time}" if stopped == Signals.SIGALRM else stopped.name
            if on_main(lambda: stopped == Signals.SIGUSR2 and bool(views and views.tracker.stop_was_asked())):
                stopped, cause = Signals.SIGALRM, STOP_BUTTON
            summarise(run, status="interrupted", signal=cause)
            console.warn(
                f"interrupted by {cause} after step {run.trainer.state.progress.step}, which is saved; "
                f"{start_again('train.py', ['--resume', str(start.path)])} goes on from there"
            )
        else:
            test(run)
    except BaseException as error:
        console.stop_progress()
        with suppress(OSError):  # a full disk has its own message
            summarise(run, status="failed", error=reason(error))
        if views:
            views.end("failed")
        raise
    on_main(lambda: views.end("interrupted" if stopped else "finished") if views else None)
    return stopped


def start_run(start: StartingPoint, given: Mapping[str, Any], signals: StopSignals, console: Console) -> Run:
    """Build what trains, put a checkpoint into it, and show and record what will be done."""
    trainer = fit_micro_batch(build(with_recorded_threads(start), console, given), console)
    if start.saved:
        check_same_data(start, trainer.dataset)
        if start.saved.step > trainer.plan.total_steps:
            raise UserError(
                f"the run has done {start.saved.step:,} steps, which is more than all {trainer.plan.total_steps:,} it is to have; "
                "give more --epochs or --steps"
            )
        restore(trainer.state, start.saved.files[TRAINING_FILE])
        if start.further_from == start.saved.step:
            trainer.state.progress.validations_since_best = 0
    elif note := initialise(trainer):
        console.say(note)
    run = Run(trainer, RunFolder(start.path), console, signals)
    here = on_main(lambda: environment(trainer.device, trainer.plan.world_size))
    console.configuration(trainer.config, own_config(trainer.config.recipe, trainer.config.model))
    where = f"{here['device']}, {count(here['threads_per_process'], 'thread')} a process"
    here["num_parameters"] = sum(p.numel() for p in trainer.state.model.parameters())
    console.plan(trainer.plan, trainer.dataset, trainer.splits, where, here["num_parameters"])
    console.synthetic_note(trainer.dataset.synthetic)
    console.say(f"run folder   {start.path}")
    begin_record(run, start, here)
    return run


def with_recorded_threads(start: StartingPoint) -> TrainConfig:
    """Return the configuration with as many threads as the run had: sums over other shares round differently."""
    before = (start.recorded["starts"] or [Start()])[-1] if start.recorded else Start()
    same_share = start.config.exact_shards or before.get("world_size") == world_size()
    threads = before.get("threads_per_process")
    if start.config.threads or not isinstance(threads, int) or not same_share:
        return start.config
    return replace(start.config, threads=threads)


def begin_record(run: Run, start: StartingPoint, here: Start) -> None:
    """Drop what lies after the checkpoint, and add this start to the record. Collective."""
    trainer, progress = run.trainer, run.trainer.state.progress

    def write() -> Progress:
        best, problem = None, ""
        if start.saved:
            check_lines(run.folder, progress)
        if start.saved and progress.best_step is not None:
            try:
                best, problem = best_weights(run.folder, progress)
            except checkpoint.BrokenCheckpointError as error:
                problem = f"the best weights so far, of step {progress.best_step}, are gone: {error}; until a validation is better, "
                problem += f"those of step {progress.step} take their place"
                best = start.saved.files[WEIGHTS_FILE]
                progress.best_step, progress.best_correct, progress.best_val = progress.step, -1, None
                progress.best_sha256 = hashlib.sha256(best).hexdigest()
        if problem:
            run.console.warn(problem)
        take_over(run.folder, start.saved.step if start.saved else None, best)
        for problem in prune_checkpoints(run):  # what the last start would have dropped, had it lived
            run.console.warn(problem)
        starts = start.recorded["starts"] if start.recorded else []
        content: ConfigRecord = {
            "config": trainer.config.to_dict(),
            "dataset": describe(trainer.dataset, trainer.splits),
            "starts": [*starts, {"from_step": progress.step, **here}],
        }
        if start.further_from:
            content |= {"further_from": start.further_from, "early_before": early_before(start, trainer)}
        run.folder.write_config(content)
        if (here.get("git_commit") or "").endswith("+"):
            write_atomically(run.folder.path / CHANGES_FILE, changes())
        run.folder.write_json(SUMMARY_FILE, {"status": "running", **size_of(run)})
        return progress

    trainer.state.progress = on_main(write)


def check_same_data(start: StartingPoint, dataset: Dataset) -> None:
    recorded = (start.recorded or {})["dataset"]
    fingerprint = str(recorded.get("fingerprint"))
    if fingerprint != dataset.fingerprint:
        raise UserError(
            f"the run in {start.path} was trained on {recorded.get('name')} with fingerprint {fingerprint[:12]}, "
            f"but {dataset.name} now has {dataset.fingerprint[:12]}; restore the data, or use another --output-dir"
        )


def describe(dataset: Dataset, splits: Splits) -> DatasetRecord:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "classes": list(dataset.classes),
        "train": len(splits.train),
        "val": len(splits.val) if splits.val else 0,
        "test": len(splits.test),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }


def test(run: Run) -> None:
    """Evaluate the best weights on the test images, once, and write the result; with --no-test only the end. Collective."""
    trainer, best_step = run.trainer, run.trainer.state.progress.best_step
    assert best_step is not None, "the last step is always evaluated"
    best, problem = on_main(lambda: best_weights(run.folder, trainer.state.progress))
    if problem:
        run.console.warn(problem)
    model, classes = trainer.state.eval_model, trainer.dataset.classes
    model.load_state_dict(unpack_weights(best))
    result = None
    if trainer.config.test:
        split, tta = trainer.splits.test, trainer.config.tta
        with run.console.bar("test", "images") as progress:
            result = evaluate(model, split, trainer.normalize, len(classes), trainer.accelerator, tta, progress)
        trainer.state.progress.seconds += run.stopwatch.elapsed_since_last_read()

    def write() -> None:
        if result:
            run.folder.append_metrics(result_line(trainer, "test", best_step, result))
            keep_predictions(run, "test", trainer.splits.test, best_step, result)
        run.folder.sync_metrics()
        write_atomically(run.folder.path / WEIGHTS_FILE, best)
        summarise(run, status="finished", test=result.counted(classes) if result else None)

    on_main(write)
    if result:
        run.console.result_table(
            classes, result.confusion, result.second, f"test on {trainer.dataset.name}, weights of step {best_step}"
        )
    run.console.synthetic_note(trainer.dataset.synthetic)
    run.console.say(f"run folder   {run.folder.path}")


def summarise(run: Run, **more: Unpack[Summary]) -> None:
    """Write summary.json. Rank 0 only."""
    trainer, progress = run.trainer, run.trainer.state.progress
    if trainer.rank != 0:
        return
    curve = curves.points(run.folder.read_metrics())
    last, opens = curve[-1] if curve else None, curves.gap_opening(curve)
    summary: Summary = {
        "model": trainer.config.model,
        "recipe": trainer.config.recipe,
        "dataset": trainer.dataset.name,
        "synthetic": trainer.dataset.synthetic,
        "step": progress.step,
        **size_of(run),
        "epoch": progress.step / trainer.plan.steps_per_epoch,
        "seconds": round(progress.seconds, 3),
        "best_step": progress.best_step,
        "val": progress.best_val,
        "train": last and {"loss": last.train_loss, "accuracy": last.train_accuracy},
        "generalisation_gap": {"accuracy": last and last.gap, "opens_at_epoch": opens and opens.epoch},
    }
    run.folder.write_json(SUMMARY_FILE, {"status": more["status"], **summary, **more})


def early_before(start: StartingPoint, trainer: Trainer) -> int:
    """Return how many images of the first half of its epochs the run saw that this one is a longer copy of."""
    assert start.recorded is not None
    begun, known = start.recorded.get("further_from", 0), start.recorded.get("early_before", 0)
    if begun == start.further_from:
        return known
    config = TrainConfig.from_dict(start.recorded["config"])
    copied = BatchPlan.from_config(config, trainer.plan.num_images, trainer.plan.world_size)
    return early_images(copied, start.further_from, begun, known)


def size_of(run: Run) -> Summary:
    """Return how much the whole run is, which whoever compares runs needs before its end."""
    trainer, record = run.trainer, run.folder.config() or ConfigRecord()
    before = record.get("further_from", 0), record.get("early_before", 0)
    macs = macs_per_sample(trainer.config, trainer.plan, len(trainer.dataset.classes), *before)
    return {"total_steps": trainer.plan.total_steps, "macs_per_sample": macs}


def show_finished(console: Console, path: Path, summary: Summary) -> None:
    """Show the result of a run that has nothing left to do."""
    if test := summary.get("test"):
        title = f"test on {summary.get('dataset')}, weights of step {summary.get('best_step')}"
        try:
            result = EvalResult.from_record(test)
            console.result_table(tuple(test["per_class_accuracy"]), result.confusion, result.second, title)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise RunFolder(path).damaged(SUMMARY_FILE, f"its test: {error}") from None
    else:
        console.warn(f"it was not tested; python eval.py --checkpoint {path} does")
    console.synthetic_note(bool(summary.get("synthetic")))
    console.say(f"{path} is already finished; to start over: --resume never, or another --output-dir, which keeps both")
