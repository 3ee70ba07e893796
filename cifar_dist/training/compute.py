"""How much a run computes."""

from cifar_dist.config import TrainConfig
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import forward_macs

FORWARD_AND_BACKWARD = 3  # a backward pass multiplies twice as often as a forward pass


def macs_per_sample(config: TrainConfig, plan: BatchPlan, num_classes: int) -> int:
    """Return the multiply-accumulates to train on one image, the mean over the whole run, without validations."""
    macs = forward_macs(config.model, config.model_options, num_classes, config.side)
    if config.early_size:
        small = plan.samples_before(plan.early_steps)
        less = macs - forward_macs(config.model, config.model_options, num_classes, config.early_size)
        macs -= round(less * small / plan.samples_before(plan.total_steps))
    return FORWARD_AND_BACKWARD * macs
