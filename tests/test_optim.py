import copy

import pytest
import torch

from cifar_dist.config import TrainConfig
from cifar_dist.models import build_model
from cifar_dist.optim import Ema, build_optimizer

CONFIG = TrainConfig(epochs=1, weight_decay=0.1)


def test_weight_decay_spares_biases_and_norms_unless_told():
    model = build_model("resnet20")
    decayed, exempt = build_optimizer(model, CONFIG).param_groups
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in exempt["params"])
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    (everything,) = build_optimizer(model, TrainConfig(epochs=1, weight_decay=0.1, decay_all=True)).param_groups
    assert len(everything["params"]) == len(list(model.parameters())) == len(decayed["params"]) + len(exempt["params"])


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_every_optimizer_can_be_asked_for(name, kind):
    optimizer = build_optimizer(build_model("lenet"), TrainConfig(epochs=1, optimizer=name, lr=0.3))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_the_moving_average_equals_the_sum_written_out():
    model = build_model("resnet20")
    ema = Ema(model, decay=0.9)
    expected = copy.deepcopy(model.state_dict())
    for step in range(100):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(1 if tensor.dtype == torch.int64 else 0.01)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in ema.module.parameters())
