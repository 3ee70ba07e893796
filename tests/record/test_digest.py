"""What a state's digest is over: two states share it if they are the same in every bit, and else not."""

import hashlib

import torch

from cifar_dist.record.digest import digest, optimizer_digest, weights_digest


def test_a_digest_is_over_names_types_shapes_and_bytes_wherever_they_lie():
    x = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    expected = hashlib.sha256(b"w torch.float32 (2, 3, 4)\n" + x.numpy().tobytes()).hexdigest()
    assert digest([("w", x)]) == expected
    assert digest([("w", x.permute(2, 0, 1).contiguous().permute(1, 2, 0))]) == expected
    zeros = torch.zeros(4)
    others = [("v", zeros), ("w", zeros.int()), ("w", zeros.view(2, 2)), ("w", torch.tensor([0.0, 0.0, 0.0, -0.0]))]
    assert len({digest([one]) for one in [("w", zeros), *others]}) == 5


def test_the_moving_average_is_part_of_the_weights_and_another_one_than_the_model():
    model, average = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    states = [(model, None), (model, average), (average, model), (model, model), (average, None)]
    assert len({weights_digest(*state) for state in states}) == 5


def test_every_value_of_an_optimizers_state_counts_and_its_learning_rate_does_not():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    before = optimizer_digest(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.2
    assert optimizer_digest(optimizer.state_dict()) == before
    for value in optimizer.state[parameter].values():
        kept = value.clone()
        value += 1
        assert optimizer_digest(optimizer.state_dict()) != before
        value.copy_(kept)
    assert optimizer_digest(optimizer.state_dict()) == before
