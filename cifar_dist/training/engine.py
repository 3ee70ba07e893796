"""The training loop. Read this file first, then step.py."""

from collections.abc import Callable
from signal import Signals

from cifar_dist.errors import DivergedError
from cifar_dist.optim.schedule import Schedule
from cifar_dist.training.captured import capture_steps
from cifar_dist.training.preemption import Ballot
from cifar_dist.training.recording import Run, label, log_training, save_checkpoint, validate
from cifar_dist.training.step import train_step
from cifar_dist.training.warmup import compile_first, settle_gradient_buckets


def train(run: Run, after_evaluation: Callable[[], None] | None = None) -> Signals | None:
    """Do the steps that are left. Returns the signal that stopped it, after a checkpoint, or None when all are done.

    SIGALRM where it was --max-time.
    """
    trainer, config, plan, progress = run.trainer, run.trainer.config, run.trainer.plan, run.trainer.state.progress
    schedule = Schedule.from_config(config, plan.total_steps, plan.steps_per_epoch)
    ballot = Ballot(run.signals, config.checkpoint_minutes * 60, progress.step, config.max_time)
    settle_gradient_buckets(trainer)
    compile_first(trainer, run.console)
    capture_steps(trainer, run.console)
    run.stopwatch.start(plan.samples_before(progress.step))

    while progress.step < plan.total_steps and not out_of_patience(run):
        evaluation_due = plan.is_epoch_end(progress.step + 1, config.eval_every)
        log_due = evaluation_due or plan.is_log_step(progress.step + 1, config.log_every)
        lr = schedule.lr_at(progress.step)
        gradient_norm = train_step(trainer, progress.step, lr, log_due)
        progress.step += 1
        run.console.advance(progress.step)

        if not (log_due or ballot.due(progress.step)):
            continue
        decision = ballot.vote(progress.step, trainer.state.sums.vector[0])
        if decision.diverged:
            raise DivergedError(f"the loss became nan or infinite at or shortly before step {progress.step}")
        if log_due:
            log_training(run, lr, gradient_norm)
        save_due = evaluation_due or decision.checkpoint or decision.stop
        if save_due:
            with run.stopwatch.paused():
                label(trainer)
        if evaluation_due:
            validate(run)
        if save_due:
            save_checkpoint(run)
            ballot.checkpoint_saved()
        if evaluation_due and after_evaluation:
            with run.stopwatch.paused():
                after_evaluation()
        if decision.stop and progress.step < plan.total_steps:
            return decision.stop
    return None


def out_of_patience(run: Run) -> bool:
    """Whether --patience ends the run: a function of its validations, so that a restart decides alike."""
    patience, progress = run.trainer.config.patience, run.trainer.state.progress
    if patience is None or progress.validations_since_best < patience:
        return False
    run.console.say(
        f"no better validation in {patience}: training ends at step {progress.step:,} of {run.trainer.plan.total_steps:,}"
    )
    return True
