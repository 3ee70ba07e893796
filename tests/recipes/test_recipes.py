import re
from dataclasses import replace

import pytest

from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import MODELS, build_model
from cifar_dist.optim.muon import MOMENTUM
from cifar_dist.optim.optimizer import build_optimizer, set_lr
from cifar_dist.recipes import ATTEMPTS, PUBLISHED, RECIPES, models_of


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_states_its_claim_and_source(name):
    text = RECIPES[name].__doc__
    assert text
    assert len(text.splitlines()[0]) <= 140
    assert "%" in text or "No published number" in text


@pytest.mark.parametrize(("name", "model"), [(name, model) for name in RECIPES for model in models_of(name)])
def test_every_recipe_shares_out_over_1_to_4_processes(name, model):
    config = RECIPES[name](model)
    assert (config.model, config.recipe) == (model, name)
    for world_size in (1, 2, 3, 4):
        plan = BatchPlan.from_config(config, 45_000, world_size)
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


def test_ghasemi2024_is_as_in_the_paper():
    c = RECIPES["ghasemi2024"](None)
    assert (c.model, c.model_options, c.optimizer, c.lr, c.batch_size, c.epochs) == (
        "ghasemi",
        (),
        "adam",
        5e-4,
        60,
        20,
    )
    assert (c.normalize, c.augment, c.val_fraction, c.log_every, c.schedule) == ("half", (), 0, 100, "constant")


def test_ghasemis_table_is_as_in_the_paper():
    rows = {i: RECIPES[f"ghasemi2024/{i}"](None) for i in range(1, 16)}
    assert [c.lr for c in rows.values()] == [1e-3, *[5e-4] * 6, 1e-4, *[5e-4] * 7]
    assert [c.batch_size for c in rows.values()] == [64, 99, 99, 99, *[60] * 11]
    assert [c.epochs for c in rows.values()] == [25, 30, 30, 30, 18, 18, 30, *[20] * 8]
    assert [c.optimizer for c in rows.values()] == ["adam", "adam", "sgd", *["adam"] * 12]
    options = [dict(word.split("=") for word in c.model_options) for c in rows.values()]
    shapes = [f"{o['convolutions']}-{o['linear_layers']}" for o in options]
    assert shapes == [
        "12-4",
        "12-1",
        "12-1",
        "12-3",
        "12-3",
        "7-3",
        "6-3",
        "6-3",
        "6-3",
        "5-3",
        "5-3",
        "7-3",
        "8-3",
        "8-3",
        "8-3",
    ]
    assert [i for i, o in enumerate(options, 1) if float(o["dropout"])] == [11, 12, 13, 14]
    assert [i for i, o in enumerate(options, 1) if o["batch_norm"] == "yes"] == [14, 15]
    assert [i for i, c in rows.items() if c.weight_decay] == [9, 10]
    assert [round(100 * PUBLISHED[f"ghasemi2024/{i}", "ghasemi"]) for i in rows] == [row.percent for row in ATTEMPTS]
    assert [row.percent for row in ATTEMPTS] == [69, 73, 67, 73, 74, 79, 80, 66, 69, 66, 80, 81, 81, 83, 84]


def test_sengar2024_splits_80_10_10_and_augments_as_in_the_paper():
    c = RECIPES["sengar2024"](None)
    assert round(60_000 * (c.test_fraction or 0)) == round(54_000 * c.val_fraction) == 6_000
    assert (set(c.augment), c.normalize) == ({"flip", "crop", "rotate"}, "mean_std")


def test_zhang_is_as_in_the_paper():
    c = RECIPES["zhang"](None)
    assert (c.optimizer, c.lr, c.weight_decay, c.decay_all) == ("adam", 0.01, 0.003, True)
    assert (c.batch_size, c.epochs, c.schedule, c.step_epochs, c.lr_factor) == (64, 70, "step", 15, 0.1)


def test_speed94_is_as_in_the_script_whose_loss_is_a_sum_over_the_batch():
    c = RECIPES["speed94"](None)
    assert (c.model, c.model_options, c.optimizer, c.lr, c.momentum, MOMENTUM) == (
        "speednet",
        (),
        "muon",
        0.24,
        0.85,
        0.6,
    )
    assert (c.bias_lr_per_image, c.head_lr_per_image, c.weight_decay) == (0.053, 0.67, 2e-6 * 2000)
    assert (c.epochs, c.batch_size, c.drop_last, c.val_fraction) == (10, 2000, True, 0)  # the script's epochs are 8
    assert BatchPlan.from_config(c, 50_000, 1).total_steps == 250
    assert (c.label_smoothing, c.schedule, c.warmup, c.tta) == (0.2, "linear", 0, True)
    assert set(c.augment) == {"shift", "alternate"}
    assert (c.early_size, c.mixed_precision) == (24, "auto")  # ours, not the script's


@pytest.mark.parametrize(("batch_size", "rates"), [(2000, [0.24, 106.0, 1340.0]), (500, [0.24, 26.5, 335.0])])
def test_the_rates_of_speed94s_biases_and_head_follow_the_batch(batch_size, rates):
    config = replace(RECIPES["speed94"](None), batch_size=batch_size)
    optimizer = build_optimizer(build_model("speednet"), config)
    set_lr(optimizer, config.lr)
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_every_published_number_belongs_to_a_recipe_and_one_of_its_models():
    for recipe, model in PUBLISHED:
        assert model in models_of(recipe)


@pytest.mark.parametrize(("recipe", "model"), PUBLISHED)
def test_a_recipes_claim_has_the_published_number(recipe, model):
    percent = f"{100 * PUBLISHED[recipe, model]:g}"
    claim = " ".join(RECIPES[recipe].__doc__.split(chr(10) * 2)[0].split())
    assert re.search(rf"\b{re.escape(percent)} %", claim)
