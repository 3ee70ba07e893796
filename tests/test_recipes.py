from contextlib import suppress

import pytest

from cifar_dist.errors import UserError
from cifar_dist.models import MODELS
from cifar_dist.recipes import RECIPES
from cifar_dist.sampling import BatchPlan


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_states_its_claim_and_source(name):
    text = RECIPES[name].__doc__
    assert text
    assert "%" in text or "No published number" in text


def models_of(name: str) -> list[str]:
    """The models a recipe is for: those it doesn't refuse."""
    accepted = []
    for model in MODELS:
        with suppress(UserError):
            accepted.append(RECIPES[name](model).model)
    return accepted


@pytest.mark.parametrize(("name", "model"), [(name, model) for name in RECIPES for model in models_of(name)])
def test_every_recipe_shares_out_over_1_to_4_processes(name, model):
    config = RECIPES[name](model)
    assert (config.model, config.recipe) == (model, name)
    for world_size in (1, 2, 3, 4):
        plan = BatchPlan.from_config(config, 50_000 - round(50_000 * config.val_fraction), world_size)
        assert sum(len(m) for rank in range(world_size) for m in plan.micro_batches(0, rank)) == config.batch_size


def test_every_model_has_a_default_recipe():
    assert models_of("default") == list(MODELS)


def test_li2024_is_as_in_the_paper():
    c = RECIPES["li2024"](None)
    assert (c.model, c.optimizer, c.lr, c.momentum, c.nesterov) == ("lenet", "sgd", 0.001, 0.9, False)
    assert (c.batch_size, c.epochs, c.normalize, c.augment, c.log_every) == (4, 20, "half", (), 2000)
    assert (c.schedule, c.weight_decay, c.label_smoothing, c.val_fraction) == ("constant", 0, 0, 0)


def test_he2016_is_as_in_the_paper():
    c = RECIPES["he2016"]("resnet")
    assert (c.model, c.optimizer, c.lr, c.momentum, c.nesterov) == ("resnet20", "sgd", 0.1, 0.9, False)
    assert (c.weight_decay, c.decay_all, c.batch_size, c.steps) == (1e-4, True, 128, 64_000)
    assert (c.schedule, c.milestones, c.lr_factor, c.warmup) == ("multistep", (0.5, 0.75), 0.1, 0)
    assert (c.augment, c.normalize, c.val_fraction) == (("crop", "flip"), "mean_std", 0.1)
    assert RECIPES["he2016"]("resnet110").warmup * 64_000 == 400
