import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_dist.config import TrainConfig
from cifar_dist.data.splits import stratified
from cifar_dist.errors import UserError
from cifar_dist.inputs.plan import BatchPlan, check_batch, cut, epoch_order

WORLD_SIZES = (1, 2, 3, 4, 7)


def plan(num_images: int, world_size: int, **options) -> BatchPlan:
    return BatchPlan.from_config(TrainConfig(**{"epochs": 2, **options}), num_images, world_size)


@settings(max_examples=100)
@given(
    num_images=st.integers(8, 300),
    batch_size=st.integers(7, 64),
    micro=st.none() | st.integers(1, 9),
    drop_last=st.booleans(),
)
def test_every_step_holds_the_same_places_on_every_world_size(num_images, batch_size, micro, drop_last):
    options = {"batch_size": min(batch_size, num_images), "micro_batch_size": micro, "drop_last": drop_last}
    for world_size in WORLD_SIZES:
        p = plan(num_images, world_size, **options)
        seen = 0
        for step in range(p.total_steps):
            epoch, batch = p.batch(step)
            ranks = [p.micro_batches(step, rank) for rank in range(world_size)]
            assert [place for rank in ranks for piece in rank for place in piece] == list(batch)  # in order, once each
            assert len({len(rank) for rank in ranks}) == 1  # as many backward passes on every rank
            assert all(len(piece) <= (micro or num_images) for rank in ranks for piece in rank)
            assert p.samples_before(step) == seen
            seen += len(batch)
        assert p.samples_before(p.total_steps) == seen
        assert seen == 2 * (num_images - (num_images % options["batch_size"] if drop_last else 0))
        assert epoch == 1


def test_an_epochs_order_is_a_permutation_and_a_new_one_each_epoch_and_seed():
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_the_order_never_changes_between_versions():
    assert epoch_order(0, 0, 10).tolist() == [5, 9, 1, 0, 6, 2, 7, 3, 4, 8]
    assert epoch_order(7, 3, 10).tolist() == [9, 0, 7, 2, 4, 3, 1, 8, 6, 5]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 12])
def test_exact_shards_are_the_same_on_every_world_size(world_size):
    p = plan(103, world_size, batch_size=25, exact_shards=12)
    for step in range(p.total_steps):
        shards = [shard for rank in range(world_size) for shard in p.micro_batches(step, rank)]
        _, batch = p.batch(step)
        assert shards == cut(batch.start, batch.stop, 12 if len(batch) == 25 else 2)  # the last one has 3 images
        assert all(len(shard) in (2, 3) for shard in shards) or len(batch) == 3
        held = [p.shards_of(step, rank) for rank in range(world_size)]
        assert [i for shards in held for i in shards] == list(range(len(shards)))
        assert max(map(len, held)) - min(map(len, held)) <= 1


def test_a_batch_smaller_than_the_world_is_refused():
    with pytest.raises(UserError, match="--batch-size 4 is smaller than the 7 processes; use 7 or more"):
        check_batch(TrainConfig(epochs=1, batch_size=4), 7)


def test_there_are_as_many_exact_shards_as_processes_at_least():
    with pytest.raises(UserError, match="--exact-shards 8 are fewer than the 9 processes; use 9 or more"):
        check_batch(TrainConfig(epochs=1, exact_shards=8), 9)


def test_arithmetic_multiplies_out():
    assert plan(500, 2, batch_size=128, micro_batch_size=32).arithmetic() == "128 = 2 processes x 32 x 2 accumulated"
    assert plan(500, 3, batch_size=128).arithmetic() == "128 = 3 processes x 42-43 x 1 accumulated"


@settings(max_examples=100)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.floats(0, 1), st.integers(0, 9))
def test_a_stratified_draw_keeps_the_classes_in_proportion(classes, share, seed):
    targets = torch.tensor(classes)
    count = round(share * len(classes))
    places = stratified(targets, count, seed)
    assert len(places) == count == len(set(places.tolist()))
    sizes, drawn = torch.bincount(targets, minlength=5), torch.bincount(targets[places], minlength=5)
    assert ((drawn - sizes * count / len(classes)).abs() < 1).all()


def test_a_stratified_draw_depends_on_its_seed():
    targets = torch.arange(1000) % 10
    assert stratified(targets, 100, 0).tolist() != stratified(targets, 100, 1).tolist()
    assert torch.bincount(targets[stratified(targets, 100, 0)]).tolist() == [10] * 10


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        (3, None, [1, 2, 3]),
        (99, None, range(1, 100)),
        (5, 2, [2, 4, 5]),
        (100, 1, range(1, 101)),
        (100, None, range(2, 101, 2)),
        (164, None, [*range(3, 163, 3), 164]),
        (200, None, range(4, 201, 4)),
    ],
)
def test_validations_are_after_every_epoch_or_some_50_in_a_run_of_100_epochs_or_more(epochs, every, expected):
    plan = BatchPlan.from_config(TrainConfig(epochs=epochs, batch_size=10), num_images=25, world_size=1)
    ends = [step for step in range(1, plan.total_steps + 1) if plan.is_epoch_end(step, every)]
    assert ends == [3 * epoch for epoch in expected]
