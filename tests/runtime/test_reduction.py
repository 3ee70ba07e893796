import copy
import itertools

import torch

from cifar_dist.runtime.reduction import GradientSum


def test_the_sum_is_the_same_float32_numbers_in_any_order_of_shards():
    layer = torch.nn.Linear(30, 20)
    shards = [torch.randn(8, 30, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(5)]
    sums = []
    for order in itertools.islice(itertools.permutations(shards), 24):
        gradients = GradientSum(layer)
        for shard in order:
            layer(shard).pow(2).sum().backward()
            gradients.take()
            assert layer.weight.grad is None
        gradients.put()
        sums.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
        layer.zero_grad()
    assert all(torch.equal(a, b) for pair in sums for a, b in zip(pair, sums[0], strict=True))
    layer(torch.cat(shards)).pow(2).sum().backward()
    torch.testing.assert_close(sums[0][0], layer.weight.grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sums[0][1], layer.bias.grad, rtol=1e-5, atol=1e-3)


def test_the_sum_lies_in_memory_as_their_parameters_do():
    """Fused optimizers take it for granted: they walk through both without looking at strides."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 4, 5))
    model.to(memory_format=torch.channels_last)
    alone, images = copy.deepcopy(model), torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    gradients = GradientSum(model)
    model(images).square().sum().backward()
    gradients.take()
    gradients.put()
    alone(images).square().sum().backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert ours.grad.stride() == ours.stride()
        assert torch.equal(ours.grad, theirs.grad)
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True).step()
    torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9, foreach=False).step()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
