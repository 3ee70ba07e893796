import copy

import pytest
import torch

from cifar_dist.config import TrainConfig
from cifar_dist.models import MODELS, build_model
from cifar_dist.optim.average import Ema
from cifar_dist.optim.muon import Muon
from cifar_dist.optim.optimizer import build_optimizer, match_layout, set_lr

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
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("muon", Muon)],
)
def test_every_optimizer_can_be_asked_for(name, kind):
    optimizer = build_optimizer(build_model("lenet"), TrainConfig(epochs=1, optimizer=name, lr=0.3))
    assert isinstance(optimizer, kind) and type(optimizer).__name__ == kind.__name__
    assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_an_optimizers_hooks_fire(name):
    model, called = build_model("lenet"), []
    optimizer = build_optimizer(model, TrainConfig(epochs=1, optimizer=name))
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert called == ["before", "after"]


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_an_optimizer_takes_bit_for_bit_the_steps_of_torchs_own(name, kind):
    """Also after its state went through a checkpoint, and with no gradient of its own steps."""
    torch.manual_seed(0)
    models = [build_model("lenet") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    config = TrainConfig(epochs=1, optimizer=name, lr=0.01, weight_decay=0.1, decay_all=True)
    momentum = {"momentum": config.momentum} if name == "sgd" else {}
    theirs = kind(models[1].parameters(), lr=0.01, weight_decay=0.1, fused=True, **momentum)
    optimizers = [build_optimizer(models[0], config), theirs]
    images = torch.randn(8, 3, 32, 32)
    for step in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(images).logsumexp(dim=1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(map(torch.equal, *(model.parameters() for model in models)))
        if step == 2:
            saved = copy.deepcopy(optimizers[0].state_dict())
            optimizers[0] = build_optimizer(models[0], config)
            optimizers[0].load_state_dict(saved)
    assert all(p.grad is None and p.is_leaf for p in models[0].parameters())


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


MUON = TrainConfig(
    epochs=1,
    batch_size=100,
    optimizer="muon",
    lr=0.24,
    momentum=0.85,
    bias_lr_per_image=0.12,
    head_lr_per_image=0.6,
    weight_decay=0.02,
)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_is_trained_is_in_exactly_one_group(name, optimizer):
    model = build_model(name)
    config = TrainConfig(epochs=1, optimizer=optimizer, weight_decay=0.1)
    grouped = [id(p) for group in build_optimizer(model, config).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_muon_has_filters_vectors_and_matrices_each_with_a_fixed_multiple_of_the_schedules_lr():
    model = build_model("lenet")
    optimizer = build_optimizer(model, MUON)
    filters, vectors, matrices = optimizer.param_groups
    assert [{p.ndim for p in group["params"]} for group in (filters, vectors, matrices)] == [{4}, {1}, {2}]
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False, False]
    for share in (1.0, 0.5, 0.125):
        set_lr(optimizer, 0.24 * share)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.24 * share, 12.0 * share, 60.0 * share])


def test_muons_weight_decay_is_a_share_of_a_weight_at_the_peak_and_filters_have_none():
    """By hand: a first step without a gradient, whose momentum is the decay itself, which Nesterov counts 1 + 0.85 times."""
    model = build_model("lenet")
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, MUON)
    set_lr(optimizer, 0.5 * MUON.lr)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, value in model.state_dict().items():
        if value.ndim == 4:
            direction = before[name] / before[name].norm()
            torch.testing.assert_close(value, direction * len(value) ** 0.5)
        else:
            torch.testing.assert_close(value, before[name] * (1 - 0.5 * 0.02 * 1.85))


@pytest.mark.parametrize(
    ("options", "make"),
    [
        (
            {"optimizer": "sgd", "nesterov": True},
            lambda p, wd: torch.optim.SGD(p, 0.1, 0.9, weight_decay=wd, nesterov=True, foreach=False),
        ),
        ({"optimizer": "adam"}, lambda p, wd: torch.optim.Adam(p, 0.1, weight_decay=wd, foreach=False)),
        ({"optimizer": "adamw"}, lambda p, wd: torch.optim.AdamW(p, 0.1, weight_decay=wd, foreach=False)),
    ],
)
def test_a_state_saved_with_another_layout_in_memory_goes_on_as_torchs_plain_loop_does(options, make):
    """Fused kernels walk through memory, so they would pair a parameter with the wrong elements of its momentum."""
    torch.manual_seed(0)
    shape = (6, 4, 3, 3)
    config = TrainConfig(epochs=1, lr=0.1, weight_decay=0.01, **options)
    ours, theirs = torch.nn.Conv2d(4, 6, 3, bias=False), torch.nn.Conv2d(4, 6, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last)

    def steps(optimizer: torch.optim.Optimizer, model: torch.nn.Module, seeds: range) -> None:
        for seed in seeds:
            gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            model.weight.grad = torch.empty_like(model.weight).copy_(gradient)
            optimizer.step()

    fused, plain = build_optimizer(ours, config), make(theirs.parameters(), 0.01)
    steps(plain, theirs, range(6))
    steps(fused, ours, range(3))
    saved = fused.state_dict()
    for values in saved["state"].values():
        values.update({name: value.contiguous() for name, value in values.items()})
    fused = build_optimizer(ours, config)
    fused.load_state_dict(saved)
    match_layout(fused)
    for values in fused.state.values():
        assert all(v.stride() == ours.weight.stride() for v in values.values() if v.shape == shape)
        assert any(v.shape == shape for v in values.values())
    steps(fused, ours, range(3, 6))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
