import copy

import torch
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.config import TrainConfig
from cifar_dist.inputs.plan import BatchPlan, cut
from cifar_dist.runtime.batchnorm import RunningStatistics
from cifar_dist.runtime.reduction import Subtree, SumOverShards, grow


def joined(left: str, right: str) -> str:
    return f"({left}{right})"


def grown(parts: list[Subtree[str]], leaves: int) -> list[Subtree[str]]:
    subtrees: list[Subtree[str]] = []
    for part in parts:
        grow(subtrees, part, leaves, joined)
    return subtrees


def test_the_order_of_a_sum():
    names = "abcdefg"
    assert [tree.sum for tree in grown([Subtree(0, i, name) for i, name in enumerate(names)], 7)] == [
        "(((ab)(cd))((ef)g))"
    ]
    assert [tree.sum for tree in grown([Subtree(0, 0, "a")], 1)] == ["a"]


@given(st.integers(1, 70), st.integers(1, 40))
def test_the_order_of_a_sum_is_the_same_whoever_holds_which_leaves(leaves, world_size):
    whole = grown([Subtree(0, i, chr(200 + i)) for i in range(leaves)], leaves)
    held = [grown([Subtree(0, i, chr(200 + i)) for i in own], leaves) for own in cut(0, leaves, world_size)]
    assert grown([tree for trees in held for tree in trees], leaves) == whole
    assert len(whole) == 1
    assert max(map(len, held)) <= 2 * leaves.bit_length()


def test_the_sum_over_shards_is_the_gradient_of_the_batch_and_lies_in_memory_as_its_parameters_do():
    """Fused optimizers take it for granted: they walk through both without looking at strides."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 4, 5))
    model.to(memory_format=torch.channels_last)
    alone, images = copy.deepcopy(model), torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plan = BatchPlan.from_config(TrainConfig(epochs=1, batch_size=7, exact_shards=3), 7, 1)
    reduction = SumOverShards(model, model, plan, RunningStatistics(model), rank=0)
    for i, places in enumerate(plan.micro_batches(0, 0)):
        with reduction.micro_batch(0, i):
            model(images[list(places)]).square().sum().backward()
    reduction.finish(0)
    alone(images).square().sum().backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert ours.grad.stride() == ours.stride()
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True).step()
    torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9, foreach=False).step()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_running_statistics_are_updated_once_a_step_by_the_mean_over_shards():
    model = torch.nn.BatchNorm2d(3)
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plan = BatchPlan.from_config(TrainConfig(epochs=1, batch_size=8, exact_shards=2), 8, 1)
    reduction = SumOverShards(model, model, plan, RunningStatistics(model), rank=0)
    for i, places in enumerate(plan.micro_batches(0, 0)):
        with reduction.micro_batch(0, i):
            model(images[list(places)]).sum().backward()
    reduction.finish(0)
    halves = images.view(2, 4, 3, 4, 4).transpose(1, 2).flatten(2)  # (shard, channel, pixel)
    torch.testing.assert_close(model.running_mean, 0.1 * halves.mean(2).mean(0))
    torch.testing.assert_close(model.running_var, 0.9 + 0.1 * halves.var(2).mean(0))
    assert model.num_batches_tracked == 1
