import pytest
import torch
import torch.nn.functional as F
import torchvision.models.resnet as reference
from torch import nn

from cifar_dist.errors import UserError
from cifar_dist.models import MODELS, build_model, default_options, model_name
from cifar_dist.models.dropout import DropoutMasks
from cifar_dist.models.ghasemi import conv_widths
from cifar_dist.models.resnet import BasicBlock
from cifar_dist.models.som import Som
from cifar_dist.runtime.batchnorm import RunningStatistics


def conv(inputs, outputs, size, bias=True):
    return outputs * (inputs * size * size + bias)


def linear(inputs, outputs):
    return (inputs + 1) * outputs


def stages(counts, block):
    """Sum of block(inputs, width, first of its stage) over an ImageNet ResNet's four stages."""
    total, inputs = 0, 64
    for i, count in enumerate(counts):
        for j in range(count):
            parameters, inputs = block(inputs, 64 << i, j == 0)
            total += parameters
    return total


def basic(inputs, width, first):
    parameters = conv(inputs, width, 3, bias=False) + conv(width, width, 3, bias=False) + 4 * width
    return parameters + (conv(inputs, width, 1, bias=False) + 2 * width) * (first and width > 64), width


def bottleneck(inputs, width, first):
    parameters = (
        conv(inputs, width, 1, bias=False) + conv(width, width, 3, bias=False) + conv(width, 4 * width, 1, bias=False)
    )
    return parameters + 12 * width + (conv(inputs, 4 * width, 1, bias=False) + 8 * width) * first, 4 * width


# By hand, layer by layer. A CIFAR ResNet of n blocks a stage: stem 3*9*16 + 2*16, then 2n convolutions and norms of 16
# channels, 2n of 32 and 2n of 64, the first of a stage with half as many inputs, and (64+1)*10.
STEM = conv(3, 64, 3, bias=False) + 128
PARAMETERS = {
    "lenet": conv(3, 6, 5) + conv(6, 16, 5) + linear(400, 120) + linear(120, 84) + linear(84, 10),
    "ghasemi": sum(conv(i, o, 3) + 2 * o for i, o in ((3, 32), (32, 64), (64, 128), (128, 256), (256, 512)))
    + linear(2048, 512)
    + linear(512, 256)
    + linear(256, 10),
    "pandey": conv(3, 32, 5) + conv(32, 64, 5) + linear(1600, 10),
    "som": 400 * 3072,
    "sengar": conv(3, 32, 3) + conv(32, 64, 3) + conv(64, 128, 3) + linear(2048, 256) + linear(256, 10),
    "zhang": conv(3, 16, 3) + conv(16, 32, 3) + conv(32, 64, 3) + conv(16, 64, 1) + conv(128, 128, 3)
    + 2 * (16 + 32 + 64 + 64 + 128) + linear(128, 10),
    "mlp": linear(3072, 512) + linear(512, 512) + linear(512, 10),
    "speednet": conv(3, 24, 2) + sum(conv(i, o, 3, bias=False) + conv(o, o, 3, bias=False) + 4 * o
    for i, o in ((24, 64), (64, 256), (256, 256))) + 256 * 10,
    "resnet18": STEM + stages((2, 2, 2, 2), basic) + linear(512, 10),
    "resnet34": STEM + stages((3, 4, 6, 3), basic) + linear(512, 10),
    "resnet50": STEM + stages((3, 4, 6, 3), bottleneck) + linear(2048, 10),
} | {
    f"resnet{6 * n + 2}": 464
    + 2 * n * (9 * 16 * 16 + 32)
    + (2 * n * (9 * 32 * 32 + 64) - 9 * 32 * 16)
    + (2 * n * (9 * 64 * 64 + 128) - 9 * 64 * 32)
    + 650
    for n in (3, 5, 7, 9, 18)
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_hand_computed_number_of_parameters_and_says_so(name):
    assert sum(p.numel() for p in build_model(name).parameters()) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,} parameters" in MODELS[name].__doc__.splitlines()[0]


def test_the_published_sizes_of_the_resnets():
    millions = [round(PARAMETERS[f"resnet{d}"] / 1e6, 2) for d in (20, 32, 44, 56, 110)]
    assert millions == [0.27, 0.46, 0.66, 0.85, 1.73]  # He et al. 2016, table 6 (1.7 for 110)
    assert round(PARAMETERS["resnet18"] / 1e6, 2) == 11.17


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_finite_logits(name):
    logits = build_model(name, num_classes=7).eval()(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("count", [2, 0])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_is_trained_gets_a_gradient_which_is_zero_without_images(name, count):
    """A rank without images takes part in the all-reduce with zeros."""
    model = build_model(name).train()
    DropoutMasks(model, seed=0).draw(torch.arange(count))
    with RunningStatistics(model).frozen():
        outputs = model(torch.randn(count, 3, 32, 32))
    outputs.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in trained)  # fused optimizers expect it
    assert count or not any(p.grad.any() for p in trained)
    assert all(module.training for module in model.modules())


def test_option_a_shortcut_subsamples_and_pads_channels_with_zeros():
    x = torch.randn(2, 16, 8, 8)
    y = BasicBlock(16, 32, 2).shortcut(x)
    assert torch.equal(y[:, :16], F.avg_pool2d(x, 1, stride=2))
    assert y.shape == (2, 32, 4, 4)
    assert not y[:, 16:].any()


class OptionA(nn.Module):
    """He et al.'s shortcut, written another way: average pooling of one pixel, zeros concatenated."""

    def forward(self, x):
        x = F.avg_pool2d(x, 1, stride=2)
        return torch.cat((x, torch.zeros_like(x)), dim=1)


def torchvision_cifar_resnet(blocks):
    layers = []
    for width in (16, 32, 64):
        for j in range(blocks):
            first = j == 0 and width > 16
            layers.append(
                reference.BasicBlock(
                    width // 2 if first else width, width, 2 if first else 1, OptionA() if first else None
                )
            )
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def torchvision_imagenet_resnet(name):
    model = getattr(reference, name)(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


RESNETS = [name for name in MODELS if name.startswith("resnet")]


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnets_forward_equals_torchvisions_modules_with_the_same_weights(name):
    depth = int(name[6:])
    ours = build_model(name)
    theirs = torchvision_imagenet_resnet(name) if depth in (18, 34, 50) else torchvision_cifar_resnet((depth - 2) // 6)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.05 * torch.randn_like(p))  # so that norms aren't all the same
    values = ours.state_dict()
    expected = theirs.state_dict()
    if depth in (18, 34, 50):  # torchvision's own names
        assert list(values) == list(expected)
    theirs.load_state_dict(dict(zip(expected, values.values(), strict=True)))
    theirs.to(memory_format=torch.channels_last)  # as ours: another order of additions
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)  # training: batch statistics
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def test_ghasemis_family_has_the_layers_of_his_listing_and_of_his_table():
    listing = [
        f"{type(m).__name__}{tuple(getattr(m, 'weight', torch.empty(0)).shape)}"
        for m in build_model("ghasemi").children()
    ]
    assert [m for m in listing if m.startswith(("Conv", "Linear"))] == [
        "Conv2d(32, 3, 3, 3)", "Conv2d(64, 32, 3, 3)", "Conv2d(128, 64, 3, 3)", "Conv2d(256, 128, 3, 3)", "Conv2d(512, 256, 3, 3)",
        "Linear(512, 2048)", "Linear(256, 512)", "Linear(10, 256)",
    ]  # fmt: skip
    kinds = [m.partition("(")[0] for m in listing]
    assert kinds == ["Conv2d", "ReLU", "BatchNorm2d"] * 4 + ["Dropout", "Conv2d", "ReLU", "BatchNorm2d"] + [
        "AvgPool2d", "Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"
    ]  # fmt: skip
    assert [m.stride[0] for m in build_model("ghasemi").children() if isinstance(m, nn.Conv2d)] == [1, 2, 1, 1, 1]
    for convolutions in range(1, 15):
        for linear_layers in (1, 3, 4):
            options = (f"convolutions={convolutions}", f"linear_layers={linear_layers}", "dropout=0", "batch_norm=no")
            model = build_model("ghasemi", options=options)
            layers = [type(m) for m in model.children()]
            assert (layers.count(nn.Conv2d), layers.count(nn.Linear)) == (convolutions, linear_layers)
            strides = [m.stride[0] for m in model.children() if isinstance(m, nn.Conv2d)]
            assert sum(s == 2 for s in strides) == (1 if convolutions > 1 else 0)
    assert conv_widths(12) == [32, 32, 32, 64, 64, 64, 128, 128, 256, 256, 512, 512]


@pytest.mark.parametrize("pool", ["no", "yes"])
def test_zhangs_skip_joins_by_concatenation_before_the_stems_relu(pool):
    model = build_model("zhang", options=(f"pool={pool}",)).eval()
    inputs = []
    model.conv4.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    images = torch.randn(2, 3, 32, 32)
    model(images)
    stem = model.bn_conv1(model.conv1(images))
    skip = F.relu(model.bn_skip(F.conv2d(stem[:, :, ::4, ::4], model.skip.weight, model.skip.bias)))
    torch.testing.assert_close(inputs[0][:, 64:], skip)
    assert inputs[0].shape == (2, 128, 8, 8)


def test_zhang_pools_the_largest_of_four_places_in_place_of_taking_one_of_four():
    strided, pooled = (build_model("zhang", options=(f"pool={pool}",)).eval() for pool in ("no", "yes"))
    pooled.load_state_dict(strided.state_dict())
    blocks = {True: [], False: []}
    strided.conv3.register_forward_pre_hook(lambda _, args: blocks[False].append(args[0]))
    pooled.conv3.register_forward_pre_hook(lambda _, args: blocks[True].append(args[0]))
    images = torch.randn(2, 3, 32, 32)
    strided(images), pooled(images)
    stem = F.relu(pooled.bn_conv1(pooled.conv1(images)))
    whole = F.relu(pooled.bn_conv2(pooled.conv2(stem)))  # a place for every pixel
    torch.testing.assert_close(blocks[False][0], whole[:, :, ::2, ::2])
    torch.testing.assert_close(blocks[True][0], whole.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5)))


def test_zhangs_head_sees_the_mean_of_the_last_blocks_halved_places():
    model = build_model("zhang", options=("pool=yes",)).eval()
    seen = {}
    model.conv4.register_forward_pre_hook(lambda _, args: seen.update(conv4=args[0]))
    model.fc.register_forward_pre_hook(lambda _, args: seen.update(fc=args[0]))
    model(torch.randn(2, 3, 32, 32))
    whole = F.relu(model.bn_conv4(model.conv4(seen["conv4"])))  # (2, 128, 8, 8)
    expected = whole.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5)).mean(dim=(2, 3))
    torch.testing.assert_close(seen["fc"], expected)


def test_a_map_classifies_by_the_majority_of_the_images_its_units_win():
    model = Som(3, 2, 2, 1.0, 0.5).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 3072) * 10)
    model.wins.copy_(torch.tensor([[0, 5, 2], [1, 0, 3], [0, 0, 0], [2, 2, 0]]))
    images = (torch.eye(4, 3072) * 10).view(4, 3, 32, 32)
    images[2] += 0.5 * images[3]  # its own unit won nothing, so has no class: the next nearest is the last
    logits = model(images)
    assert logits.argmax(dim=1).tolist() == [1, 2, 0, 0]
    assert logits[0].argsort(descending=True).tolist() == [1, 2, 0]
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(4))


def test_a_wrong_name_suggests_the_nearest():
    assert model_name("resnet") == "resnet20"
    with pytest.raises(
        UserError, match=r"unknown model 'lennet'. Did you mean 'lenet'\? Choose one of: lenet, ghasemi"
    ):
        model_name("lennet")


@pytest.mark.parametrize(
    ("model", "option", "message"),
    [
        ("ghasemi", "convolution=8", "unknown option of ghasemi 'convolution'. Did you mean 'convolutions'?"),
        ("ghasemi", "convolutions", "takes KEY=VALUE, got 'convolutions'; ghasemi has convolutions, linear_layers, dropout, batch_norm"),
        ("ghasemi", "convolutions=many", "convolutions must be a whole number, got 'many'"),
        ("ghasemi", "convolutions=0", "needs 1 or more convolutions"),
        ("ghasemi", "dropout=1", "dropout must be in"),
        ("ghasemi", "batch_norm=maybe", "batch_norm must be yes or no, got 'maybe'"),
        ("mlp", "width=0", "mlp needs"),
        ("som", "sigma_end=11", "sigma_start >= sigma_end > 0"),
        ("resnet20", "width=3", "resnet20 has no options"),
    ],
)  # fmt: skip
def test_a_wrong_model_option_is_one_line_with_the_way_out(model, option, message):
    with pytest.raises(UserError) as error:
        build_model(model, options=[option])
    assert message in str(error.value)


def test_options_are_read_as_what_their_defaults_are():
    assert default_options("mlp") == {"hidden_layers": 2, "width": 512, "dropout": 0.0}
    assert sum(p.numel() for p in build_model("mlp", options=["hidden_layers=0"]).parameters()) == linear(3072, 10)
