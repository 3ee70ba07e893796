"""Learning rate as a pure function of the step: nothing to wrap, nothing to checkpoint."""

import math
from dataclasses import dataclass

from cifar_dist.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """A configuration's schedule in optimizer steps."""

    kind: str
    peak_lr: float
    start: int  # the step at which it begins; all other steps count from there
    total_steps: int
    warmup_steps: int
    milestones: tuple[int, ...]  # steps from which on the lr is multiplied once more
    factor: float

    @classmethod
    def from_config(cls, config: TrainConfig, total_steps: int, steps_per_epoch: int) -> "Schedule":
        start, total_steps = config.schedule_start, total_steps - config.schedule_start
        milestones = tuple(round(share * total_steps) for share in config.milestones)
        if config.schedule == "step":
            every = config.step_epochs * steps_per_epoch
            milestones = tuple(range(every, total_steps, every))
        return cls(
            *(config.schedule, config.lr, start, total_steps),
            *(round(config.warmup * total_steps), milestones, config.lr_factor),
        )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 0."""
        step -= self.start
        if self.kind == "one_cycle":
            return self._one_cycle(step)
        if step < self.warmup_steps:  # the first step trains at peak / warmup_steps, never at 0
            return self.peak_lr * (step + 1) / self.warmup_steps
        if self.kind == "cosine":  # Loshchilov & Hutter 2016, eq. 5, one period without restart
            progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return self.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "linear":
            return self.peak_lr * (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        if self.kind in ("step", "multistep"):
            return self.peak_lr * self.factor ** sum(step >= milestone for milestone in self.milestones)
        return self.peak_lr

    def _one_cycle(self, step: int) -> float:
        """Cosine from peak / 25 to peak over the warm-up, then to peak / 250,000 (Smith & Topin 2017; torch's defaults)."""
        low, last = self.peak_lr / 25, self.peak_lr / 250_000
        peak_step = max(0, self.warmup_steps - 1)
        if step < peak_step:
            return _cosine(low, self.peak_lr, step / peak_step)
        return _cosine(self.peak_lr, last, (step - peak_step) / max(1, self.total_steps - 1 - peak_step))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
