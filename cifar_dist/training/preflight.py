"""What is checked before anything starts: no process group, no download, no folder."""

from cifar_dist.config import SIDE, TrainConfig
from cifar_dist.data import check_data_name
from cifar_dist.inputs.augment import check_augmentations
from cifar_dist.inputs.plan import check_batch
from cifar_dist.models import check_image_size, check_model
from cifar_dist.runtime import launch
from cifar_dist.training.resume import resume_source
from cifar_dist.training.weights import weights_path


def check_early(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any process group, download or folder."""
    check_augmentations(config.augment)
    check_model(config.model, config.model_options)
    if config.side != SIDE:
        way_out = f"use --image-size {SIDE}, or a model that pools what is left, such as resnet20"
        check_image_size(config.model, config.model_options, config.side, "--image-size", way_out)
    if config.early_size:
        check_image_size(config.model, config.model_options, config.early_size, "--early-size", "leave it out")
    if config.tensorboard:
        from cifar_dist.tracking.tensorboard import check_tensorboard  # for the runs that ask for it

        check_tensorboard()
    check_batch(config, launch.env_int("WORLD_SIZE", 1))
    if launch.one_machine():  # others may not see the same files; then all ranks agree on what is wrong, later
        check_data_name(config.data)
        resume_source(config.resume)
        if config.init_from:
            weights_path(config.init_from)
