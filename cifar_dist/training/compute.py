"""How much a run computes."""

from cifar_dist.config import TrainConfig
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import forward_macs

FORWARD_AND_BACKWARD = 3  # a backward pass multiplies twice as often as a forward pass


def macs_per_sample(
    config: TrainConfig, plan: BatchPlan, num_classes: int, further_from: int = 0, early_before: int = 0
) -> int:
    """Return the multiply-accumulates to train on one image, the mean over the whole run, without validations.

    Of a copy that is trained further from step `further_from` on, the run that was copied saw `early_before` images of the
    early size.
    """
    macs = forward_macs(config.model, config.model_options, num_classes, config.side)
    if config.early_size:
        small = early_images(plan, plan.total_steps, further_from, early_before)
        less = macs - forward_macs(config.model, config.model_options, num_classes, config.early_size)
        macs -= round(less * small / plan.samples_before(plan.total_steps))
    return FORWARD_AND_BACKWARD * macs


def early_images(plan: BatchPlan, step: int, further_from: int = 0, early_before: int = 0) -> int:
    """Return how many images before `step` are in the first half of the epochs; see `macs_per_sample`."""
    own = plan.samples_before(min(step, plan.early_steps)) - plan.samples_before(further_from)
    return early_before + max(0, own)
