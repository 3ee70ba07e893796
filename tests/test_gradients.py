import itertools

import torch

from cifar_dist.gradients import ShardGradients


def test_the_sum_is_the_same_float32_numbers_in_any_order_of_shards():
    layer = torch.nn.Linear(30, 20)
    shards = [torch.randn(8, 30, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(5)]
    sums = []
    for order in itertools.islice(itertools.permutations(shards), 24):
        gradients = ShardGradients(layer)
        for shard in order:
            layer(shard).pow(2).sum().backward()
            gradients.take()
            assert layer.weight.grad is None
        gradients.give_back()
        sums.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
        layer.zero_grad()
    assert all(torch.equal(a, b) for pair in sums for a, b in zip(pair, sums[0], strict=True))
    layer(torch.cat(shards)).pow(2).sum().backward()
    torch.testing.assert_close(sums[0][0], layer.weight.grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sums[0][1], layer.bias.grad, rtol=1e-5, atol=1e-3)
