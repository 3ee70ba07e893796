"""One training run from configuration to result: load the data, train, test, leave a summary."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock

from cifar_dist import checkpoint
from cifar_dist.augment import Normalize
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Splits, load_dataset, make_splits
from cifar_dist.distributed import check_equal, on_all, on_main
from cifar_dist.engine import Run, evaluate, train
from cifar_dist.errors import UserError
from cifar_dist.metrics import EvalResult
from cifar_dist.preemption import StopSignals
from cifar_dist.resume import Opening, open_folder
from cifar_dist.runlog import CONFIG_FILE, SUMMARY_FILE, RunFolder, environment
from cifar_dist.sampling import BatchPlan
from cifar_dist.state import TRAINING_FILE, WEIGHTS_FILE, build_state, restore
from cifar_dist.weights import unpack_weights


def train_run(
    config: TrainConfig, given: Mapping[str, Any], accelerator: Accelerator, signals: StopSignals
) -> Signals | None:
    """Train, from the start or from a checkpoint, and test. Returns the signal that interrupted it, or None.

    Raises `UserError` for wrong input, on every rank alike.
    """
    console = Console(speaks=accelerator.is_main_process)
    lock: list[FileLock] = []  # rank 0's, held until the process ends
    opening = on_main(lambda: open_folder(config, given, lock))
    config, folder = opening.config, RunFolder(opening.path)
    for note in opening.notes:
        console.warn(note)
    if opening.summary:
        show_finished(console, folder, opening.summary)
        return None
    if accelerator.is_main_process:
        folder.write_json(SUMMARY_FILE, {"status": "running"})
    run = None
    try:
        run = start_run(opening, given, accelerator, signals, console)
        signals.defer_interrupt()
        console.start_progress(run.plan.total_steps, run.state.progress.step)
        stopped = train(run)
        console.stop_progress()
        if stopped:
            summarise(run, "interrupted", signal=stopped.name)
            console.warn(
                f"interrupted by {stopped.name} after step {run.state.progress.step}, which is saved; "
                f"train.py --resume {folder.path} goes on from there"
            )
        else:
            test(run)
        return stopped
    except BaseException as error:
        console.stop_progress()
        if accelerator.is_main_process:
            step = run.state.progress.step if run else None
            folder.write_json(
                SUMMARY_FILE, {"status": "failed", "error": f"{type(error).__name__}: {error}", "step": step}
            )
        raise


def start_run(
    opening: Opening, given: Mapping[str, Any], accelerator: Accelerator, signals: StopSignals, console: Console
) -> Run:
    """Load the data, build the state, put a checkpoint into it, and show and record what will be done."""
    config, device = opening.config, accelerator.device
    console.say(f"preparing data: {config.data}", "dim")
    dataset = on_all(lambda: load_dataset(config.data, Path(config.data_dir)))
    check_equal(dataset.fingerprint, "the data")
    if config.data == "auto":
        config = replace(config, data="synthetic" if dataset.synthetic else "cifar10")
    splits = make_splits(dataset, config, device)
    plan = BatchPlan.from_config(config, len(splits.train), accelerator.num_processes)
    halves = (0.5,) * len(dataset.mean)
    mean, std = (halves, halves) if config.normalize == "half" else (dataset.mean, dataset.std)
    folder = RunFolder(opening.path)
    state = build_state(config, len(dataset.classes), accelerator)
    if opening.saved:
        check_same_data(opening, dataset)
        restore(state, opening.saved.files[TRAINING_FILE])
    run = Run(config, accelerator, dataset, splits, plan, Normalize(mean, std, device), state, folder, console, signals)
    here = environment(device, accelerator.num_processes)
    console.configuration(config, set(given))
    console.plan(
        plan,
        dataset,
        splits,
        f"{here['device']}, {here['threads_per_process']} threads a process",
        sum(p.numel() for p in state.bare.parameters()),
    )
    console.synthetic_note(dataset)
    console.say(f"run folder   {folder.path}")
    if accelerator.is_main_process:
        starts = opening.recorded["starts"] if opening.recorded and opening.saved else []
        starts = [*starts, {"from_step": state.progress.step, **here}]
        folder.write_json(
            CONFIG_FILE, {"config": config.to_dict(), "dataset": describe(dataset, splits), "starts": starts}
        )
    return run


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


def test(run: Run) -> EvalResult:
    """Evaluate the best weights on the test images, once, and write the result. Collective."""
    best_step = run.state.progress.best_step
    assert best_step is not None, "the last step is always evaluated"
    best = on_main(
        lambda: checkpoint.load(checkpoint.folder_for(run.folder.checkpoints, best_step)).files[WEIGHTS_FILE]
    )
    model, classes = run.state.eval_model, run.dataset.classes
    model.load_state_dict(unpack_weights(best))
    result = evaluate(model, run.splits.test, run.normalize, len(classes), run.accelerator)
    progress = run.state.progress
    line = {"kind": "test", "step": best_step, "epoch": best_step / run.plan.steps_per_epoch, **result.to_dict(classes)}
    if run.rank == 0:
        run.folder.append_metrics(
            {**line, "samples": run.plan.samples_before(best_step), "seconds": round(progress.seconds, 3)}
        )
        run.folder.sync_metrics()
        checkpoint.write_atomically(run.folder.path / WEIGHTS_FILE, best)
    summarise(run, "finished", test=result.to_dict(classes) | {"confusion_matrix": result.confusion.tolist()})
    run.console.result_table(result, classes, f"test on {run.dataset.name}, weights of step {best_step}")
    run.console.synthetic_note(run.dataset)
    run.console.say(f"run folder   {run.folder.path}")
    return result


def summarise(run: Run, status: str, **more: Any) -> None:
    """Write summary.json. Rank 0 only."""
    if run.rank != 0:
        return
    progress = run.state.progress
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
    }
    run.folder.write_json(SUMMARY_FILE, summary | more)


def show_finished(console: Console, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Show the result of a run that has nothing left to do."""
    test = summary["test"]
    result = EvalResult(torch.tensor(test["confusion_matrix"]), test["loss"] * test["num_images"])
    console.result_table(
        result,
        tuple(test["per_class_accuracy"]),
        f"test on {summary['dataset']}, weights of step {summary['best_step']}",
    )
    if summary["synthetic"]:
        console.warn("*** SYNTHETIC DATA, not CIFAR-10 ***")
    console.say(f"{folder.path} is already finished; --resume never starts over, another --output-dir keeps both")
