"""What is seen of a pass through a model, against torch.fx, which reads the code instead."""

import pytest
import torch
from torch import fx, nn

from cifar_dist.models import MODELS, build_model
from cifar_dist.models.flow import INPUT, trace


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("som", "ghasemi")])  # fx enters our Dropout
def test_layers_and_merges_are_those_that_torch_fx_finds(name):
    model = build_model(name).eval()
    steps, nodes = trace(model), list(fx.symbolic_trace(model).graph.nodes)
    assert [step.name for step in steps if step.name] == [node.target for node in nodes if node.op == "call_module"]
    merges = [node for node in nodes if node.op == "call_function" and node.target in (torch.add, torch.cat)]
    merges += [node for node in nodes if node.op == "call_function" and node.target.__name__ == "add"]
    assert sum(len(step.inputs) > 1 for step in steps) == len(merges)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_counted_once_and_the_last_step_gives_the_logits(name):
    model = build_model(name, num_classes=7)
    steps = trace(model)
    assert sum(step.parameters for step in steps) == sum(p.numel() for p in model.parameters())
    assert steps[-1].shape == (7,)
    assert all(INPUT <= source < number for number, step in enumerate(steps) for source in step.inputs)


def test_a_model_is_as_it_was():
    model = build_model("resnet20").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_does_not_follow_from_the_image_is_no_step_and_its_parameters_are_those_of_who_uses_it():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.mix = nn.Parameter(torch.ones(3072)), nn.Parameter(torch.ones(4, 3072))
            self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

        def forward(self, images):
            x = 2 * images.flatten(1).float() / 3
            x = x @ (self.mix * self.scale).T
            return self.part(x) + x[:, ::2].repeat(1, 2)

    assert [(step.text, step.parameters, step.inputs) for step in trace(Mixed())] == [
        ("Flatten", 0, (INPUT,)),
        ("matrix product", 3072 + 4 * 3072, (0,)),
        ("Linear 4->4", 20, (1,)),
        ("ReLU", 0, (2,)),
        ("slice /2", 0, (1,)),
        ("repeat", 0, (4,)),
        ("add", 0, (3, 5)),
    ]
