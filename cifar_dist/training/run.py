"""One training run from configuration to result: load the data, train, test, leave a summary."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

from filelock import FileLock

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Splits, choose_data, load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.files import write_atomically
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.record import checkpoint, curves
from cifar_dist.record.environment import environment
from cifar_dist.record.folder import CONFIG_FILE, SUMMARY_FILE, RunFolder
from cifar_dist.runtime.accelerator import accelerate, choose_precision
from cifar_dist.runtime.collectives import check_equal, on_all, on_main, rank, world_size
from cifar_dist.tracking.link import resolve_mode
from cifar_dist.training.engine import Run, keep_predictions, metrics_line, train
from cifar_dist.training.evaluation import evaluate
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.resume import Opening, is_whole, open_folder, take_over
from cifar_dist.training.state import TRAINING_FILE, WEIGHTS_FILE, Progress, build_state, fit_to_images, restore
from cifar_dist.training.views import Views
from cifar_dist.training.weights import unpack_weights


def train_run(config: TrainConfig, given: Mapping[str, Any], signals: StopSignals) -> Signals | None:
    """Train, from the start or from a checkpoint, and test. Returns the signal that interrupted it, or None.

    The process group must have been joined. Raises `UserError` for wrong input, on every rank alike.
    """
    locks: list[FileLock] = []  # rank 0's
    try:
        return train_and_test(config, given, signals, locks)
    finally:
        for held in locks:
            held.release()


def train_and_test(
    config: TrainConfig, given: Mapping[str, Any], signals: StopSignals, locks: list[FileLock]
) -> Signals | None:
    """Do what `train_run` does, in a folder whose lock is added to `locks`."""
    console = Console(speaks=rank() == 0)
    mode = on_main(lambda: resolve_mode(config.wandb))
    opening = on_main(lambda: open_folder(config, given, locks))
    for note in opening.notes:
        console.warn(note)
    if opening.summary:
        show_finished(console, opening.path, opening.summary)
        return None
    try:
        run = start_run(opening, given, signals, console)
    except UserError:
        on_main(lambda: leave_nothing(opening.path))
        raise
    views = Views(run, mode) if run.rank == 0 else None
    try:
        signals.defer_interrupt()
        console.start_progress(run.plan.total_steps, run.state.progress.step)
        stopped = train(run, views.refresh if views else None)
        console.stop_progress()
        if stopped:
            summarise(run, "interrupted", signal=stopped.name)
            console.warn(
                f"interrupted by {stopped.name} after step {run.state.progress.step}, which is saved; "
                f"train.py --resume {opening.path} goes on from there"
            )
        else:
            test(run)
    except BaseException as error:
        console.stop_progress()
        with suppress(OSError):  # a full disk has its own message
            summarise(run, "failed", error=f"{type(error).__name__}: {error}")
        if views:
            views.end("failed")
        raise
    on_main(lambda: views.end("interrupted" if stopped else "finished") if views else None)
    return stopped


def leave_nothing(path: Path) -> None:
    """Remove a run folder that was made for a run that can't start; one with anything in it stays."""
    with suppress(OSError):
        if [p.name for p in path.iterdir()] == [".lock"]:
            (path / ".lock").unlink()
            path.rmdir()


def start_run(opening: Opening, given: Mapping[str, Any], signals: StopSignals, console: Console) -> Run:
    """Load the data, build the state, put a checkpoint into it, and show and record what will be done."""
    config, folder = choose_precision(with_recorded_threads(opening)), RunFolder(opening.path)
    accelerator = accelerate(config)
    device = accelerator.device
    console.say(f"preparing data: {config.data}", "dim")
    if config.data == "auto":
        name, note = on_main(lambda: choose_data(Path(config.data_dir)))
        config = replace(config, data=name)
        if note:
            console.warn(note)
    dataset = on_all(lambda: load_dataset(config.data, Path(config.data_dir)))
    check_equal(dataset.fingerprint, "the data")
    splits = make_splits(dataset, config, device)
    plan = BatchPlan.from_config(config, len(splits.train), accelerator.num_processes)
    if "early_size" in given and config.early_size and plan.epochs < 2:
        raise UserError(
            f"--early-size {config.early_size} is for the first half of the epochs, and a run of {plan.epochs} has none; leave it out"
        )
    halves = (0.5,) * len(dataset.mean)
    mean, std = (halves, halves) if config.normalize == "half" else (dataset.mean, dataset.std)
    state = build_state(config, len(dataset.classes), accelerator)
    if opening.saved:
        check_same_data(opening, dataset)
        restore(state, opening.saved.files[TRAINING_FILE])
    normalize = Normalize(mean, std, device)
    if not opening.saved:
        fit_to_images(state, splits.train, normalize)
    run = Run(config, accelerator, dataset, splits, plan, normalize, state, folder, console, signals)
    here = on_main(lambda: environment(device, accelerator.num_processes))
    console.configuration(config, set(given))
    where = f"{here['device']}, {here['threads_per_process']} threads a process"
    here["num_parameters"] = sum(p.numel() for p in state.bare.parameters())
    console.plan(plan, dataset, splits, where, here["num_parameters"])
    console.synthetic_note(dataset.synthetic)
    console.say(f"run folder   {folder.path}")
    begin_record(run, opening, here)
    return run


def with_recorded_threads(opening: Opening) -> TrainConfig:
    """Return the configuration with as many threads as the run had: sums over other shares round differently."""
    start = opening.recorded["starts"][-1] if opening.recorded else {}
    if opening.config.threads or start.get("world_size") != world_size():
        return opening.config
    return replace(opening.config, threads=start["threads_per_process"])


def begin_record(run: Run, opening: Opening, here: dict[str, Any]) -> None:
    """Drop what lies after the checkpoint, and add this start to the record. Collective."""
    progress = run.state.progress

    def write() -> Progress:
        if progress.best_step is not None and not is_whole(run.folder, progress.best_step):
            # The checkpoint we go on from takes its place, until a validation is better.
            progress.best_step, progress.best_correct, progress.best_val = progress.step, -1, None
        take_over(run.folder, opening.saved.step if opening.saved else None, progress.best_step)
        starts = opening.recorded["starts"] if opening.recorded else []
        starts = [*starts, {"from_step": progress.step, **here}]
        content = {"config": run.config.to_dict(), "dataset": describe(run.dataset, run.splits), "starts": starts}
        run.folder.write_json(CONFIG_FILE, content)
        run.folder.write_json(SUMMARY_FILE, {"status": "running"})
        return progress

    run.state.progress = on_main(write)


def check_same_data(opening: Opening, dataset: Dataset) -> None:
    recorded = (opening.recorded or {})["dataset"]
    if recorded["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"the run in {opening.path} was trained on {recorded['name']} with fingerprint {recorded['fingerprint'][:12]}, "
            f"but {dataset.name} now has {dataset.fingerprint[:12]}; restore the data, or use another --output-dir"
        )


def describe(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "classes": dataset.classes,
        "train": len(splits.train),
        "val": len(splits.val) if splits.val else 0,
        "test": len(splits.test),
        "mean": dataset.mean,
        "std": dataset.std,
    }


def test(run: Run) -> None:
    """Evaluate the best weights on the test images, once, and write the result; with --no-test only the end. Collective."""
    best_step, config = run.state.progress.best_step, run.config
    assert best_step is not None, "the last step is always evaluated"
    best = on_main(
        lambda: checkpoint.load(checkpoint.folder_for(run.folder.checkpoints, best_step)).files[WEIGHTS_FILE]
    )
    model, classes = run.state.eval_model, run.dataset.classes
    model.load_state_dict(unpack_weights(best))
    result = None
    if config.test:
        result = evaluate(model, run.splits.test, run.normalize, len(classes), run.accelerator, config.tta)
        run.state.progress.seconds += run.stopwatch.elapsed_since_last_read()

    def write() -> None:
        if result:
            run.folder.append_metrics(metrics_line(run, "test", best_step, **result.to_dict(classes)))
            keep_predictions(run, "test", run.splits.test, best_step, result)
        run.folder.sync_metrics()
        write_atomically(run.folder.path / WEIGHTS_FILE, best)
        summarise(run, "finished", test=result.to_dict(classes) | result.counts() if result else None)

    on_main(write)
    if result:
        run.console.result_table(result, classes, f"test on {run.dataset.name}, weights of step {best_step}")
    run.console.synthetic_note(run.dataset.synthetic)
    run.console.say(f"run folder   {run.folder.path}")


def summarise(run: Run, status: str, **more: Any) -> None:
    """Write summary.json. Rank 0 only."""
    if run.rank != 0:
        return
    progress = run.state.progress
    curve = curves.points(run.folder.read_metrics())
    last, opening = curve[-1] if curve else None, curves.gap_opening(curve)
    summary = {
        "status": status,
        "model": run.config.model,
        "recipe": run.config.recipe,
        "dataset": run.dataset.name,
        "synthetic": run.dataset.synthetic,
        "step": progress.step,
        "total_steps": run.plan.total_steps,
        "epoch": progress.step / run.plan.steps_per_epoch,
        "seconds": round(progress.seconds, 3),
        "best_step": progress.best_step,
        "val": progress.best_val,
        "train": last and {"loss": last.train_loss, "accuracy": last.train_accuracy},
        "generalisation_gap": {"accuracy": last and last.gap, "opens_at_epoch": opening and opening.epoch},
    }
    run.folder.write_json(SUMMARY_FILE, summary | more)


def show_finished(console: Console, path: Path, summary: Mapping[str, Any]) -> None:
    """Show the result of a run that has nothing left to do."""
    if test := summary["test"]:
        title = f"test on {summary['dataset']}, weights of step {summary['best_step']}"
        console.result_table(EvalResult.from_record(test), tuple(test["per_class_accuracy"]), title)
    else:
        console.warn(f"it was not tested; accelerate launch eval.py --checkpoint {path} does")
    console.synthetic_note(summary["synthetic"])
    console.say(f"{path} is already finished; --resume never starts over, another --output-dir keeps both")
