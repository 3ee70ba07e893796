import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cifar_dist.cli import evaluate as evaluate_command
from cifar_dist.data import Split
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import build_model
from cifar_dist.training import evaluation
from cifar_dist.training.evaluation import evaluate, six_views

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NORMALIZE = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), torch.device("cpu"))


def views_by_numpy(image: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """One image (3, 32, 32): as it is, and its reflecting frame of one pixel cut at two corners; each also mirrored."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    views = [(1 / 4, image), (1 / 8, padded[:, 2:34, 2:34]), (1 / 8, padded[:, 0:32, 0:32])]
    return [(weight, side) for weight, view in views for side in (view, view[:, :, ::-1])]


def test_six_views_are_those_of_numpy_and_their_weights_add_up_to_1():
    views = list(six_views(IMAGES))
    assert sum(weight for weight, _ in views) == 1
    for i, image in enumerate(IMAGES.numpy()):
        for (weight, view), (expected_weight, expected) in zip(views, views_by_numpy(image), strict=True):
            assert weight == expected_weight
            assert np.array_equal(view[i].numpy(), expected)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("block", [500, 3])
def test_evaluation_equals_a_loop_over_single_images(monkeypatch, block, tta):
    monkeypatch.setattr(evaluation, "EVAL_BLOCK", block)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(0, 4, (20,), generator=generator), torch.randperm(20, generator=generator)[:11])
    torch.manual_seed(0)
    model = build_model("zhang", num_classes=4).train()
    result = evaluate(model, split, NORMALIZE, 4, Accelerator(cpu=True), tta)
    assert model.training

    model.eval()
    for place, number in enumerate(split.index):
        image = NORMALIZE(pixels[number].unsqueeze(0))[0].numpy()
        views = views_by_numpy(image) if tta else [(1, image)]
        with torch.no_grad():
            logits = [weight * model(torch.tensor(view.copy()).unsqueeze(0))[0] for weight, view in views]
        torch.testing.assert_close(result.logits[place], sum(logits), rtol=1e-4, atol=1e-5)
    assert torch.equal(result.targets, split.targets[split.index])
    assert result.num_images == 11


@pytest.mark.parametrize("name", ["lenet", "zhang"])
def test_evaluation_is_bit_for_bit_the_same_where_training_does_without_onednn(name):
    """Weights of a run with small steps: evaluated between them, and by a process that knows nothing of them."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(0, 10, (600,), generator=generator), torch.arange(600))
    results, strides = {}, {}
    for onednn in (True, False):
        torch.backends.mkldnn.enabled = onednn
        torch.manual_seed(0)
        model = build_model(name)
        strides[onednn] = [p.stride() for p in model.parameters()]
        results[onednn] = evaluate(model, split, NORMALIZE, 10, Accelerator(cpu=True)).logits
        assert torch.backends.mkldnn.enabled == onednn
        assert [p.stride() for p in model.parameters()] == strides[onednn]
        model(IMAGES).sum().backward()  # can still be trained
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert strides[True] != strides[False]
    assert torch.equal(results[True], results[False])


def test_a_run_is_tested_with_the_views_it_asks_for_and_validated_without(train, data_dir):
    plain, augmented = train(name="plain"), train("--tta", name="tta")
    assert plain.weights() == augmented.weights()
    assert plain.metrics("val")[-1]["loss"] == augmented.metrics("val")[-1]["loss"]
    tested = {name: run.json("summary.json")["test"] for name, run in (("plain", plain), ("tta", augmented))}
    assert tested["plain"]["loss"] != tested["tta"]["loss"]
    where = ["--checkpoint", str(augmented.folder), "--data-dir", str(data_dir), "--threads", "1"]
    for name, options in (("plain", []), ("tta", ["--tta"])):
        assert evaluate_command.main([*where, *options]) == 0
        again = augmented.json("eval-test.json")
        assert {key: again[key] for key in tested[name]} == tested[name]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_trains_afterwards_if_it_did_before(training):
    split = Split(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8).long(), torch.arange(8))
    model = build_model("zhang").train(training)
    evaluate(model, split, NORMALIZE, 10, Accelerator(cpu=True))
    assert {module.training for module in model.modules()} == {training}


def test_evaluation_tells_how_many_images_it_has_looked_at():
    split, told = (
        Split(torch.zeros(1200, 3, 32, 32, dtype=torch.uint8), torch.zeros(1200).long(), torch.arange(1200)),
        [],
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    evaluate(model, split, NORMALIZE, 4, Accelerator(cpu=True), progress=lambda done, total: told.append((done, total)))
    assert told == [(400, 1200), (800, 1200), (1200, 1200)]  # three blocks
