import pytest
import torch
from torch import nn

from cifar_dist.errors import UserError
from cifar_dist.models.dropout import Dropout, DropoutMasks

POSITIONS = torch.arange(500, 564)


def draw(p: float = 0.3, *, seed: int = 0, positions: torch.Tensor = POSITIONS, layer: int = 0) -> torch.Tensor:
    """Dropout of ones (B, 8, 5, 5) in layer number `layer` of a model."""
    model = nn.Sequential(*(Dropout(p) for _ in range(layer + 1))).train()
    DropoutMasks(model, seed).draw(positions)
    return model[layer](torch.ones(len(positions), 8, 5, 5))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
def test_values_are_dropped_with_probability_p_and_the_rest_scaled_to_keep_the_mean(p):
    values = draw(p, positions=torch.arange(1000))
    assert abs((values == 0).double().mean() - p) < 0.005
    assert values.unique().tolist() == pytest.approx(sorted({0.0, 1 / (1 - p)} if p else {1.0}))
    per_feature = (values == 0).double().mean(dim=0)
    assert (per_feature - p).abs().max() < 0.08  # 5 standard deviations of 1,000 draws


@pytest.mark.parametrize("cuts", [(1,) * 64, (10, 0, 54), (33, 31)])
def test_a_samples_mask_is_the_same_whoever_holds_it(cuts):
    assert torch.equal(torch.cat([draw(positions=piece) for piece in POSITIONS.split(cuts)]), draw())


def test_seed_position_and_layer_change_the_mask_and_history_does_not():
    torch.manual_seed(1)
    first = draw()
    torch.rand(7)
    assert torch.equal(draw(), first)
    for other in (draw(seed=1), draw(positions=POSITIONS + 1), draw(layer=1)):
        assert 0.3 < (other != first).double().mean() < 0.54  # two independent masks differ in 2 p (1 - p) = 0.42


def test_layers_of_other_sizes_do_not_repeat_each_others_masks():
    model = nn.Sequential(Dropout(0.5), Dropout(0.5)).train()
    DropoutMasks(model, 0).draw(torch.arange(64))
    wide, narrow = model[0](torch.ones(64, 100)), model[1](torch.ones(64, 50))
    for shift in range(50):
        assert not torch.equal(wide[:, shift : shift + 50], narrow)


def test_the_gradient_passes_where_the_value_did():
    x = torch.ones(64, 9, requires_grad=True)
    model = Dropout(0.5).train()
    DropoutMasks(model, 0).draw(POSITIONS)
    y = model(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_evaluation_keeps_everything():
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(0.9).eval()(x), x)


@pytest.mark.parametrize("p", [-0.1, 0.995, float("nan")])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(UserError, match=r"dropout must be in \[0, 0.99\]"):
        Dropout(p)
