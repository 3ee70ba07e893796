import pytest
import torch
import torch.nn.functional as F

from cifar_dist.errors import UserError
from cifar_dist.models import MODELS, build_model, model_name
from cifar_dist.models.resnet import BasicBlock

# By hand. lenet: (3*25+1)*6 + (6*25+1)*16 + (400+1)*120 + (120+1)*84 + (84+1)*10.
# A ResNet of n blocks a stage: stem 3*9*16 + 2*16, then 2n convolutions and norms of 16 channels, 2n of 32 and 2n of 64,
# the first of a stage with half as many inputs, and (64+1)*10.
PARAMETERS = {"lenet": 62_006} | {
    f"resnet{6 * n + 2}": 464
    + 2 * n * (9 * 16 * 16 + 32)
    + (2 * n * (9 * 32 * 32 + 64) - 9 * 32 * 16)
    + (2 * n * (9 * 64 * 64 + 128) - 9 * 64 * 32)
    + 650
    for n in (3, 5, 7, 9, 18)
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_hand_computed_number_of_parameters(name):
    assert sum(p.numel() for p in build_model(name).parameters()) == PARAMETERS[name]


def test_the_published_sizes_of_the_resnets():
    millions = [round(PARAMETERS[f"resnet{d}"] / 1e6, 2) for d in (20, 32, 44, 56, 110)]
    assert millions == [0.27, 0.46, 0.66, 0.85, 1.73]  # He et al. 2016, table 6 (1.7 for 110)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_finite_logits_and_every_parameter_gets_a_gradient(name):
    model = build_model(name, num_classes=7)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_no_images_gives_every_parameter_a_gradient_of_zero(name):
    model = build_model(name).eval()  # a rank without images takes part in the all-reduce like this
    model(torch.zeros(0, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_option_a_shortcut_subsamples_and_pads_channels_with_zeros():
    x = torch.randn(2, 16, 8, 8)
    y = BasicBlock(16, 32, 2).shortcut(x)
    assert torch.equal(y[:, :16], F.avg_pool2d(x, 1, stride=2))
    assert y.shape == (2, 32, 4, 4)
    assert not y[:, 16:].any()


def test_a_wrong_name_suggests_the_nearest():
    assert model_name("resnet") == "resnet20"
    with pytest.raises(
        UserError, match=r"unknown model 'lennet'. Did you mean 'lenet'\? Choose one of: lenet, resnet20"
    ):
        model_name("lennet")
