import pytest
import torch
from torch import nn

from cifar_dist.models import build_model
from cifar_dist.runtime.batchnorm import RunningStatistics, SyncBatchNorm2d


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("weights", [(3, 3, 2), (1, 1, 1, 1), (5,), (7, 0, 1)])
def test_a_step_of_several_micro_batches_updates_once_by_their_weighted_mean(weights, compiled):
    layer = nn.BatchNorm2d(4, momentum=0.3)
    layer.running_mean.normal_()
    before = layer.running_mean.clone(), layer.running_var.clone()
    statistics, momenta = RunningStatistics(layer), set()
    if compiled:
        layer.compile(backend="eager")
    means, variances = torch.zeros(4), torch.zeros(4)
    for i, weight in enumerate(weights):
        x = torch.randn(8, 4, 5, 5) * (i + 1) + i
        with statistics.weighed(weights, i):
            layer(x)
            momenta.add(layer.momentum)
        means += weight / sum(weights) * x.mean(dim=(0, 2, 3))
        variances += weight / sum(weights) * x.transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(layer.running_mean, 0.7 * before[0] + 0.3 * means)
    torch.testing.assert_close(layer.running_var, 0.7 * before[1] + 0.3 * variances)
    assert layer.num_batches_tracked == len(weights)
    assert not compiled or len(momenta) == 1  # each would be compiled anew
    with statistics.weighed((4,), 0):
        assert layer.momentum == pytest.approx(0.3)  # a step of one micro-batch, like a short last batch, is as ever


def test_statistics_go_into_a_vector_and_back():
    model = build_model("resnet20")
    statistics = RunningStatistics(model)
    vector = torch.randn(len(statistics.vector()))
    statistics.load(vector)
    assert torch.equal(statistics.vector(), vector)
    assert len(vector) == 2 * sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not RunningStatistics(build_model("lenet")).layers


def test_our_synchronised_batch_norm_on_one_process_equals_torchs():
    x = torch.randn(6, 5, 4, 4) * 3 + 100  # a mean far above the deviation: E[x^2] - E[x]^2 would fail here
    ours, theirs = SyncBatchNorm2d(5), nn.BatchNorm2d(5)
    for layer in (ours, theirs):
        nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(i) for layer, i in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.pow(3).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
