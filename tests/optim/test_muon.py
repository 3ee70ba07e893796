import io

import pytest
import torch

from cifar_dist.optim.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, Muon, orthogonalised

SHAPES = [(64, 216), (24, 24), (256, 60), (3, 50), (50, 3), (1, 7), (7, 1)]  # wide, square, tall


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(matrix: torch.Tensor) -> torch.Tensor:
    """The same singular vectors; each singular value by the scalar polynomial a s + b s^3 + c s^5. In float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s, (a, b, c) = s / (s.square().sum().sqrt() + 1e-7), COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


def alone(matrix: torch.Tensor) -> torch.Tensor:
    return orthogonalised([matrix])[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_keeps_singular_vectors_and_sends_values_through_the_polynomial(shape):
    matrix = noise(*shape)
    expected = reference(matrix)
    torch.testing.assert_close(alone(matrix.double()), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone(matrix).double(), expected, rtol=0, atol=1e-5)
    assert alone(matrix).dtype == matrix.dtype and alone(matrix).shape == shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_orthogonalising_does_not_care_for_the_size_of_a_matrix_nor_for_which_side_is_longer(shape, scale):
    matrix = noise(*shape)
    torch.testing.assert_close(alone(matrix * scale), alone(matrix), rtol=0, atol=1e-4)
    torch.testing.assert_close(alone(matrix.T), alone(matrix).T, rtol=0, atol=1e-6)


def test_singular_values_come_near_to_1_and_a_matrix_of_zeros_stays():
    values = torch.linalg.svdvals(alone(noise(64, 576).double()))  # a random gradient of a layer of speednet
    assert values.min() > 0.6 and values.max() < 1.3
    assert not alone(torch.zeros(4, 9)).any()


def test_matrices_of_all_shapes_at_once_are_orthogonalised_as_each_alone():
    matrices = [
        noise(*shape, seed=i) for i, shape in enumerate([*SHAPES, (64, 576), (60, 256)])
    ]  # (60, 256) and (256, 60) meet
    together = orthogonalised(matrices)
    assert [x.shape for x in together] == [x.shape for x in matrices]
    for ours, matrix in zip(together, matrices, strict=True):
        torch.testing.assert_close(ours.double(), reference(matrix), rtol=0, atol=1e-5)


def parameter(*shape: int, memory_format=torch.contiguous_format) -> torch.nn.Parameter:
    return torch.nn.Parameter(noise(*shape, seed=1).contiguous(memory_format=memory_format))


def filters_of(shape: tuple[int, ...], lr: float, steps: int, memory_format=torch.contiguous_format) -> torch.Tensor:
    """Filters after some steps along gradients of noise."""
    p = parameter(*shape, memory_format=memory_format)
    muon = Muon([{"params": [p], "orthogonal": True}], lr=lr, momentum=0.9)
    for step in range(steps):
        p.grad = noise(*shape, seed=10 + step).contiguous(memory_format=memory_format)
        muon.step()
    assert p.is_contiguous(memory_format=memory_format)
    return p.detach()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (40, 4, 3, 3), (16, 8, 1, 1)])
def test_filters_move_along_their_orthogonalised_momentum_from_a_fixed_norm(shape, memory_format):
    """Written out in float64, by singular values."""
    lr, p, buffer = 0.24, noise(*shape, seed=1).double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(5):
        gradient = noise(*shape, seed=10 + step).double()
        buffer = MOMENTUM * buffer + gradient
        direction = reference((gradient + MOMENTUM * buffer).reshape(shape[0], -1)).reshape(shape)
        p = p * (shape[0] / p.square().sum()) ** 0.5 - lr * direction
    torch.testing.assert_close(filters_of(shape, lr, 5, memory_format).double(), p, rtol=0, atol=2e-5)


def test_without_a_move_filters_have_their_direction_and_the_norm_sqrt_of_their_number():
    before, after = noise(40, 4, 3, 3, seed=1), filters_of((40, 4, 3, 3), lr=0.0, steps=3)
    assert after.norm() == pytest.approx(40**0.5)
    torch.testing.assert_close(after / after.norm(), before / before.norm())


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_the_rest_is_trained_as_torchs_sgd_does_it_with_nesterovs_momentum(weight_decay):
    ours, theirs = ([parameter(7), parameter(5, 9)] for _ in range(2))
    muon = Muon([{"params": ours, "weight_decay": weight_decay}], lr=0.3, momentum=0.85)
    sgd = torch.optim.SGD(
        theirs, lr=0.3, momentum=0.85, weight_decay=weight_decay, nesterov=True, foreach=False, fused=False
    )
    for step in range(12):
        for optimizer, parameters in ((muon, ours), (sgd, theirs)):
            optimizer.param_groups[0]["lr"] = 0.3 / (1 + step)
            for p in parameters:
                p.grad = noise(*p.shape, seed=100 + step)
            optimizer.step()
        for a, b in zip(
            ours, theirs, strict=True
        ):  # torch multiplies by the lr and adds in one operation, without rounding between
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_is_left_alone():
    moved, still = parameter(4, 2, 3, 3), parameter(4, 2, 3, 3)
    muon = Muon([{"params": [moved, still], "orthogonal": True}], lr=0.1, momentum=0.9)
    moved.grad = noise(4, 2, 3, 3)
    muon.step()
    assert not torch.equal(moved, still) and torch.equal(still, parameter(4, 2, 3, 3))


def test_going_on_from_a_saved_state_changes_no_bit():
    def build() -> tuple[list[torch.nn.Parameter], Muon]:
        p = [parameter(8, 3, 3, 3, memory_format=torch.channels_last), parameter(8), parameter(5, 8)]
        rest = [{"params": [q], "lr_ratio": 2.0 + i, "weight_decay": 0.01} for i, q in enumerate(p[1:])]
        return p, Muon([{"params": p[:1], "orthogonal": True}, *rest], lr=0.1, momentum=0.85)

    def steps(parameters: list[torch.nn.Parameter], muon: Muon, which: range) -> None:
        for step in which:
            for p in parameters:
                p.grad = torch.empty_like(p).copy_(noise(*p.shape, seed=step))
            muon.step()

    whole, muon = build()
    steps(whole, muon, range(6))
    first, muon = build()
    steps(first, muon, range(3))
    buffer = io.BytesIO()
    torch.save(muon.state_dict(), buffer)
    second, muon = build()
    for p, values in zip(second, first, strict=True):
        p.data.copy_(values.data)
    muon.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert [group.get("lr_ratio") for group in muon.param_groups] == [None, 2.0, 3.0]
    steps(second, muon, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_the_rounding_of_bf16_stays_small():
    matrix = noise(64, 576)
    difference = alone(matrix.cuda()).cpu() - alone(matrix)
    assert alone(matrix.cuda()).dtype == torch.float32
    assert difference.norm() < 0.05 * alone(matrix).norm()
