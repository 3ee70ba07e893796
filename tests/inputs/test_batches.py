from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cifar_dist.config import TrainConfig
from cifar_dist.data import Split
from cifar_dist.errors import UserError
from cifar_dist.inputs import batches
from cifar_dist.inputs.augment import MIXES, Visits, augment, partner_places, shrunk
from cifar_dist.inputs.batches import Batch, Batches
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan, epoch_order

NORMALIZE = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), torch.device("cpu"))
FORMATS = (torch.contiguous_format, torch.channels_last)
AUGMENT = (
    (),
    ("shift", "alternate"),
    ("crop", "flip", "mixup"),
    ("cutout", "alternate", "cutmix"),
    ("jitter", "rotate"),
)


def split(num_images: int) -> Split:
    """Images of noise, of which only some, and not in order, are in the split."""
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randint(0, 256, (2 * num_images, 3, 24, 24), dtype=torch.uint8, generator=generator)
    return Split(
        images, torch.arange(2 * num_images) % 10, torch.randperm(2 * num_images, generator=generator)[:num_images]
    )


def make(
    num_images: int, world_size: int = 1, rank: int = 0, memory_format=torch.contiguous_format, **options
) -> Batches:
    config = TrainConfig(**{"epochs": 2, "augment": ("crop", "flip")} | options)
    plan = BatchPlan.from_config(config, num_images, world_size)
    return Batches(config, split(num_images), plan, NORMALIZE, rank, memory_format)


def assert_same(a: Batch, b: Batch) -> None:
    """Bit for bit, and laid out alike in memory."""
    for ours, theirs in zip((a.images, a.positions, *a.labels), (b.images, b.positions, *b.labels), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
            assert torch.equal(ours, theirs)


@settings(max_examples=64, deadline=None)
@given(data=st.data())
def test_every_micro_batch_is_what_loading_it_alone_gives_and_memory_is_bounded(data):
    """Odd sizes, short last batches, ranks without images, any start; made several steps at a time or one."""
    draw = data.draw
    num_images, world_size = draw(st.integers(8, 60)), draw(st.integers(1, 5))
    batch_size = draw(st.integers(world_size, min(40, num_images)))
    options = {"batch_size": batch_size, "drop_last": draw(st.booleans()), "augment": draw(st.sampled_from(AUGMENT))}
    options |= {"early_size": draw(st.none() | st.just(20))}
    if draw(st.booleans()):
        options["micro_batch_size"] = draw(st.none() | st.integers(1, 9))
    else:
        options |= {"exact_shards": draw(st.integers(world_size, 3 * world_size))}
    rank, memory_format = draw(st.integers(0, world_size - 1)), draw(st.sampled_from(FORMATS))
    at_once = draw(st.sampled_from([1, 13, 64, batches.IMAGES_AT_ONCE]))
    try:
        ahead, alone = (make(num_images, world_size, rank, memory_format, **options) for _ in range(2))
    except UserError:  # the shards don't fit
        assume(False)
    plan, loaded = ahead.plan, []
    load = ahead.load
    ahead.load = lambda epoch, places: (loaded.append(len(places)), load(epoch, places))[1]

    start, yielded, largest = draw(st.integers(0, plan.total_steps - 1)), 0, 0
    with mock.patch.object(batches, "IMAGES_AT_ONCE", at_once):
        for step in range(start, min(start + 9, plan.total_steps)):
            pieces = plan.micro_batches(step, rank)
            for batch, places in zip(ahead.of_step(step), pieces, strict=True):
                assert_same(batch, alone.load(plan.batch(step)[0], torch.arange(places.start, places.stop)))
                assert batch.images.is_contiguous(memory_format=memory_format)
                yielded, largest = yielded + len(places), max(largest, len(places))
            assert sum(loaded) - yielded < at_once  # made ahead
    assert sum(loaded) == yielded or step + 1 < plan.total_steps  # nothing is made twice or in vain
    assert max(loaded, default=0) <= max(at_once, largest)  # of exact shards of short batches a rank may have none


@settings(max_examples=64, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.integers(0, 19), min_size=1, max_size=8, unique=True),
    st.sampled_from(AUGMENT),
    st.integers(0, 2**63 - 1),
    st.sampled_from([None, 20, 21]),
)
def test_an_image_depends_on_its_seed_epoch_and_place_alone(epoch, places, names, seed, early_size):
    """The independent truth: one image at a time."""
    made = make(20, batch_size=5, augment=names, seed=seed, epochs=5, early_size=early_size)
    order, images = epoch_order(seed, epoch, 20), made.split

    def single(place: int) -> tuple[torch.Tensor, int]:
        number = int(order[place])
        visit = Visits(torch.tensor([20 * epoch + place]), torch.tensor([number]), epoch)
        source = int(images.index[number])
        return augment(images.images[source : source + 1], visit, names, seed, NORMALIZE), source % 10

    whole = made.load(epoch, torch.tensor(places))
    assert whole.positions.tolist() == [20 * epoch + place for place in places]
    for i, place in enumerate(places):
        expected, target = single(place)
        assert whole.labels.targets[i] == target
        for name in set(names) & set(MIXES):
            position = torch.tensor([20 * epoch + place])
            partner, other = single(int(partner_places(position, seed, 20)))
            expected, share = MIXES[name](expected, partner, position, seed)
            assert (whole.labels.others[i], whole.labels.share[i]) == (other, share)
        assert torch.equal(
            whole.images[i : i + 1], shrunk(expected, early_size) if early_size and epoch < 2 else expected
        )
    assert set(names) & set(MIXES) or whole.labels.others is None


def test_small_steps_are_made_together_and_large_ones_one_at_a_time():
    for batch_size, expected in ((4, [512, 488]), (200, [400, 400, 200]), (500, [500, 500]), (1000, [1000])):
        made, loaded = make(1000, batch_size=batch_size, epochs=1), []
        load = made.load
        made.load = lambda epoch, places, load=load, loaded=loaded: (loaded.append(len(places)), load(epoch, places))[1]
        for step in range(made.plan.total_steps):
            list(made.of_step(step))
        assert loaded == expected


def test_the_first_half_of_the_epochs_sees_images_of_the_early_size():
    made = make(20, batch_size=5, epochs=5, early_size=21)
    sides = [batch.images.shape[-1] for step in range(20) for batch in made.of_step(step)]
    assert sides == [21] * 8 + [24] * 12
    assert (made.first_steps(0), made.first_steps(7), made.first_steps(8)) == ([0, 8], [0, 8], [8])
    assert make(20, batch_size=5, epochs=1).first_steps(0) == [0]


@pytest.mark.parametrize("again", [0, 3, 7])
def test_going_back_to_an_earlier_step_gives_the_same_images(again):
    made = make(40, batch_size=5)
    first = [list(made.of_step(step)) for step in range(8)]
    for ours, before in zip(made.of_step(again), first[again], strict=True):
        assert_same(ours, before)
