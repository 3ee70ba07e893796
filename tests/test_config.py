from dataclasses import fields, replace

import pytest

from cifar_dist.config import GROUPS, TrainConfig, changed_fields, default_data_dir, flag
from cifar_dist.errors import UserError

CONFIG = TrainConfig(epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be greater than 0, got 0"),
        ({"lr": -0.1}, "--lr must be greater than 0, got -0.1"),
        ({"lr": float("nan")}, "--lr must be greater than 0, got nan"),
        ({"weight_decay": float("inf")}, "--weight-decay must be 0 or greater, got inf"),
        ({"label_smoothing": 1.0}, r"--label-smoothing must be in \[0, 1\), got 1.0"),
        ({"milestones": (0.7, 0.2)}, r"--milestones must rise within \(0, 1\), got 0.7 0.2"),
        ({"milestones": (0.5, 1.5)}, "--milestones must rise"),
        ({"steps": 5}, "--epochs 1 and --steps 5 both set the length"),
        ({"epochs": None}, "length of the run is not set"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs a --momentum"),
        ({"folds": 5}, "one run holds out one fold, --fold 0 to 4 of --folds 5"),
        ({"fold": 1}, "--folds None --fold 1: one run holds out one fold"),
        ({"folds": 3, "fold": 3}, "--fold 0 to 2 of --folds 3"),
        ({"model": "som", "label_smoothing": 0.1}, "som sees no labels while it trains"),
        ({"model": "som", "augment": ("crop", "mixup")}, "som sees no labels while it trains"),
        ({"exact_shards": 8, "micro_batch_size": 4}, "leave --micro-batch-size out"),
        ({"exact_shards": 8, "batch_size": 4}, "can't be cut into --exact-shards 8"),
        ({"exact_shards": 8, "batch_norm": "sync"}, "each shard is normalised; leave one out"),
    ],
)
def test_a_broken_rule_gives_the_values_and_the_rule(change, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change)


def test_every_option_has_one_line_of_help():
    for f in fields(TrainConfig):
        assert 3 < len(f.metadata["help"]) < 120, f.name
        assert "\n" not in f.metadata["help"]
        assert flag(f.name).startswith("--")


def test_the_help_has_every_option_in_one_group_and_thirteen_everyday_ones_first():
    names = [name for members in GROUPS.values() for name in members]
    assert sorted(names) == sorted(f.name for f in fields(TrainConfig))
    assert len(next(iter(GROUPS.values()))) == 13


def test_an_option_comes_only_where_one_goes():
    """Each option is one more that everybody has to read: what a new one replaces goes, or it isn't worth it."""
    assert len(fields(TrainConfig)) <= 65


def test_a_resume_may_change_speed_but_not_results():
    recorded = CONFIG.to_dict()
    assert changed_fields(recorded, replace(CONFIG, micro_batch_size=7, output_dir="x", threads=3)) == []
    assert changed_fields(recorded, replace(CONFIG, lr=0.2, seed=5)) == ["lr", "seed"]
    del recorded["early_size"]  # of a version that didn't have it
    assert changed_fields(recorded, CONFIG) == []
    assert changed_fields(recorded, replace(CONFIG, early_size=24)) == ["early_size"]


def test_rates_that_were_recorded_for_the_whole_batch_are_read_as_those_of_an_image():
    recorded = {"epochs": 10, "batch_size": 2000, "optimizer": "muon", "bias_lr": 106.0, "head_lr": 1340.0}
    config = TrainConfig.from_dict(recorded)
    assert (config.bias_lr_per_image, config.head_lr_per_image) == (0.053, 0.67)
    assert not changed_fields(recorded, config)


def test_virtual_shards_that_were_recorded_are_read_as_exact_ones():
    recorded = {"epochs": 10, "batch_norm": "virtual", "virtual_shards": 12}
    config = TrainConfig.from_dict(recorded)
    assert (config.batch_norm, config.exact_shards) == ("process", 12)
    assert not changed_fields(recorded, config)
    assert TrainConfig.from_dict({"epochs": 10, "batch_norm": "process", "virtual_shards": 8}).exact_shards is None


@pytest.mark.parametrize(
    ("environment", "there", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, None, "/caches/cifar_dist"),
        ({"XDG_CACHE_HOME": "relative"}, None, "/home/me/.cache/cifar_dist"),
        ({}, None, "/home/me/.cache/cifar_dist"),
        ({"XDG_CACHE_HOME": "/caches"}, "data/cache", "data"),
        ({"XDG_CACHE_HOME": "/caches"}, "data/elsewhere", "/caches/cifar_dist"),
    ],
)
def test_data_have_one_place_per_user_and_stay_where_they_are(tmp_path, monkeypatch, environment, there, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if there:
        (tmp_path / there).mkdir(parents=True)
    assert default_data_dir() == expected
