import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import stop_after, torchrun
from safetensors.torch import load

from cifar_dist.config import TrainConfig
from cifar_dist.data import load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import build_model
from cifar_dist.models.base import Classifier
from cifar_dist.models.speednet import COVARIANCE_FLOOR, whitening_filters
from cifar_dist.training import build as build_module

TINY = [
    "--model",
    "speednet",
    "--model-options",
    "width=24",
    "--limit-train",
    "64",
    "--limit-eval",
    "20",
    "--threads",
    "1",
]
MUON = [
    "--optimizer",
    "muon",
    "--lr",
    "0.1",
    "--augment",
    "shift",
    "alternate",
    "--schedule",
    "linear",
    "--warmup",
    "0",
]
SHORT = [*TINY, *MUON, "--batch-size", "32", "--steps", "6"]


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("speednet", options=["width=24"])


def pictures(count: int) -> torch.Tensor:
    """Images (N, 3, 20, 20) whose neighbouring pixels and channels are alike, as those of photographs are, float32."""
    noise = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 5, stride=1) * 4 + 0.2 * noise[..., 2:-2, 2:-2]
    return smooth + 0.8 * smooth.mean(dim=1, keepdim=True)


def patches_of(images: torch.Tensor) -> np.ndarray:
    """All patches (N * places, 12) of 2 x 2 pixels, by numpy."""
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)


def test_whitened_patches_vary_alike_in_all_directions_and_together_in_none():
    images = pictures(200)
    filters = whitening_filters(images)
    outputs = F.conv2d(images.double(), filters.double()).transpose(0, 1).flatten(1)  # (24, N * places)
    assert torch.equal(outputs[12:], -outputs[:12])
    moments = (outputs[:12] @ outputs[:12].T / outputs.shape[1]).numpy()
    patches = patches_of(images)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    assert variances[-1] > 100 * variances[0] > 1000 * COVARIANCE_FLOOR  # unlike before, and no noise to hold down
    np.testing.assert_allclose(moments, np.diag(variances / (variances + COVARIANCE_FLOOR)), atol=1e-5)
    np.testing.assert_allclose(moments, np.eye(12), atol=0.02)


def test_directions_in_which_patches_hardly_vary_are_not_blown_up():
    grey = pictures(50).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)  # 8 of 12 directions have nothing
    outputs = F.conv2d(grey, whitening_filters(grey))
    assert torch.isfinite(outputs).all()
    variances = outputs.square().mean(dim=(0, 2, 3))[:12]
    assert (variances[:8] < 1e-6).all() and (variances[8:] > 0.9).all()


def test_the_network_is_the_one_that_is_described():
    """Written out with torch's functions, in training and in evaluation."""
    model, images = tiny(), torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    values = {name: value.clone().contiguous() for name, value in model.state_dict().items()}

    def written_out(training: bool) -> torch.Tensor:
        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            names = ("running_mean", "running_var", "weight", "bias")
            mean, var, weight, bias = (values[f"{name}.{kind}"].clone() for kind in names)
            return F.batch_norm(x, mean, var, weight, bias, training, eps=1e-12)

        x = F.gelu(F.conv2d(images, values["whiten.weight"], values["whiten.bias"]))
        for group in ("groups.0", "groups.1", "groups.2"):
            x = F.max_pool2d(F.conv2d(x, values[f"{group}.conv1.weight"], padding=1), 2)
            x = F.gelu(norm(x, f"{group}.norm1"))
            x = F.gelu(norm(F.conv2d(x, values[f"{group}.conv2.weight"], padding=1), f"{group}.norm2"))
        assert x.shape == (6, 96, 3, 3)
        return F.max_pool2d(x, 3).flatten(1) @ values["head.weight"].T / 96

    torch.testing.assert_close(model(images), written_out(training=True), rtol=1e-4, atol=1e-4)
    values = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    torch.testing.assert_close(model.eval()(images), written_out(training=False), rtol=1e-4, atol=1e-4)


def test_norms_take_two_fifths_of_each_batch_and_normalise_even_what_hardly_varies():
    norm, x = tiny().groups[0].norm1, 3 + 1e-5 * torch.randn(8, 24, 6, 6).double()
    y = norm.double()(x)
    assert y.std().item() == pytest.approx(1, rel=0.01)
    torch.testing.assert_close(norm.running_mean, 0.4 * x.mean(dim=(0, 2, 3)))


def test_fresh_filters_pass_their_channels_on():
    model = tiny()
    for group, channels in zip(model.groups, (24, 24, 96), strict=True):
        x = torch.randn(2, channels, 8, 8)
        torch.testing.assert_close(group.conv1(x)[:, :channels], x)
        others = group.conv1.weight[channels:]
        assert len(others) == 0 or others.std() > 0.01  # drawn
        y = torch.randn(2, len(group.conv1.weight), 8, 8)
        torch.testing.assert_close(group.conv2(y), y)


def test_the_heads_weights_have_a_standard_deviation_of_1_and_logits_are_means_over_channels():
    model = tiny().eval()
    assert model.head.weight.std().item() == pytest.approx(1)
    features = []
    model.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    logits = model(torch.randn(4, 3, 32, 32))
    expected = (features[0].unsqueeze(1) * model.head.weight).mean(dim=2)
    torch.testing.assert_close(logits, expected)


def test_whitening_filters_but_not_their_biases_and_the_scales_of_norms_are_fixed():
    fixed = [name for name, p in tiny().named_parameters() if not p.requires_grad]
    assert fixed == ["whiten.weight", *(f"groups.{i}.norm{j}.weight" for i in range(3) for j in (1, 2))]


def test_a_network_narrower_than_its_whitening_is_refused():
    with pytest.raises(UserError, match="speednet needs a width of 24 or more, got 23"):
        build_model("speednet", options=["width=23"])


def expected_filters(folders, data_dir, limit: int) -> torch.Tensor:
    """What the training images of the small runs give, on their own."""
    dataset = load_dataset(str(folders), data_dir)
    config = TrainConfig(epochs=1, limit_train=limit)
    train = make_splits(dataset, config, torch.device("cpu")).train
    normalize = Normalize(dataset.mean, dataset.std, torch.device("cpu"))
    return whitening_filters(normalize(train.images[train.index]))


@pytest.mark.parametrize("ema", [[], ["--ema-decay", "0.9"]])
def test_filters_are_fitted_to_the_training_images_once_and_stay_through_stopping_and_going_on(
    train, monkeypatch, folders, data_dir, ema
):
    fitted, fit = [], build_module.fit_to_images
    monkeypatch.setattr(build_module, "fit_to_images", lambda *given: (fitted.append(1), fit(*given)))
    whole = train(*SHORT, *ema, name="whole")
    assert whole.status == 0 and len(fitted) == 1
    assert torch.equal(load(whole.weights())["whiten.weight"], expected_filters(folders, data_dir, 64))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(*SHORT, *ema, name="stopped").status == 75
    resumed = train(*SHORT, *ema, name="stopped")
    assert len(fitted) == 2  # at the start that was stopped
    assert resumed.weights() == whole.weights()


def test_other_models_take_nothing_from_the_images(train, monkeypatch):
    monkeypatch.setattr(Classifier, "fit", lambda *_: pytest.fail("looked at the images"))
    assert train("--steps", "1").status == 0


@pytest.mark.slow
def test_filters_are_the_same_on_any_number_of_processes(train, folders, data_dir, tmp_path):
    alone = load(train(*SHORT, name="alone").weights())
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "two")]
    torchrun(2, ["train.py", *where, *SHORT])
    together = load((tmp_path / "two/model.safetensors").read_bytes())
    assert torch.equal(together["whiten.weight"], alone["whiten.weight"])
    assert torch.equal(alone["whiten.weight"], expected_filters(folders, data_dir, 64))
    assert (together["head.weight"] - alone["head.weight"]).abs().max() > 0  # batch norm over other images
