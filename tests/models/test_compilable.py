"""Compiled models compute what eager ones do: each against float64, and none compares for equality in what is compiled."""

import copy
import math
import os
import shutil
import sys

import pytest
import torch
from helpers.runs import ROOT
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from cifar_dist.inputs.labels import Labels
from cifar_dist.models import MODELS, build_model
from cifar_dist.models.dropout import DropoutMasks

sys.path.insert(0, str(ROOT / "benchmarks"))
import compiled

# Others have more of the same blocks as resnet20 and resnet18: they are compiled in the benchmark alone.
OF_EACH_BLOCK = [name for name in MODELS if name not in ("resnet32", "resnet44", "resnet56", "resnet110", "resnet34")]
# A value that is computed anew in a compiled graph may be rounded otherwise than the one it is compared with.
TIES = {"eq", "ne", "amax", "amin", "max", "min", "sort", "topk", "argsort", "kthvalue", "median", "mode", "unique"}


def operations(model, labels: Labels) -> set[str]:
    """The names of all operations on floating point of a forward and backward pass, as autograd does them."""
    model.fit(torch.randn(model.images_to_fit, 3, 32, 32))
    images = torch.randn(4, 3, 32, 32)
    DropoutMasks(model, seed=0).draw(torch.arange(4))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def gradient(*parameters):
        outputs = functional_call(model, {**buffers, **dict(zip(names, parameters, strict=True))}, images)
        return torch.autograd.grad(
            model.loss_sum(outputs, labels, 0.1 if labels.others is None else 0.0, 0.0), parameters
        )

    parameters = [p.detach().requires_grad_() for p in model.parameters() if p.requires_grad]
    graph = make_fx(gradient, tracing_mode="fake", _allow_non_fake_inputs=True)(*parameters)
    found = set()
    for node in graph.graph.nodes:
        given = [one.meta.get("val") for one in node.all_input_nodes]
        if str(node.target).startswith("aten.") and any(torch.is_tensor(x) and x.is_floating_point() for x in given):
            found.add(str(node.target).split(".")[1])
    assert len(found) > 5
    return found


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", OF_EACH_BLOCK)
def test_no_model_or_loss_compares_for_equality(name, mixed):
    if name == "som" and mixed:
        pytest.skip("it sees no labels")
    targets = torch.tensor([1, 2, 3, 4])
    labels = Labels(targets, targets.flip(0), torch.full((4,), 0.3)) if mixed else Labels(targets)
    assert not operations(build_model(name), labels) & TIES


def test_such_a_comparison_would_be_found():
    class Pooled(type(build_model("lenet"))):
        def forward(self, x):
            return super().forward(x) + x.amax(dim=(1, 2, 3)).unsqueeze(1)

    model = build_model("lenet")
    model.__class__ = Pooled
    assert operations(model, Labels(torch.tensor([1, 2, 3, 4]))) & TIES


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("precision", compiled.PRECISIONS)
@pytest.mark.parametrize("name", OF_EACH_BLOCK)
def test_compiled_is_no_farther_from_the_truth_than_eager(name, precision):
    torch._dynamo.reset()
    eager, ours = compiled.errors(name, precision, batch_size=8)
    assert compiled.agree(eager, ours, precision), (eager, ours)
    assert any(eager) or name == "som"


@pytest.mark.parametrize(
    ("found", "same"),
    [([1e-3, 0.1, 0.1], True), ([0.0, 0.0, 0.0], True), ([1e-3, 0.4, 0.1], False), ([math.nan, 0.1, 0.1], False)],
)
def test_what_is_farther_off_or_not_finite_does_not_agree(found, same):
    assert compiled.agree([1e-3, 0.1, 0.1], found, "bfloat16") == same


def test_distances_are_those_of_the_farthest_tensor():
    truth = [torch.ones(100, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)]
    found = copy.deepcopy(truth)
    found[1][0] += 1.0
    assert compiled.far(found, truth) == pytest.approx(1 / 4)
