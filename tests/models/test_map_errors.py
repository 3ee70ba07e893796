"""What a map's fit is measured by, against its definitions unit by unit and image by image."""

import math

import numpy as np
import pytest
import torch
from helpers.runs import ROOT, torchrun

from cifar_dist.models.som import Som, u_matrix

SHAPES = [(3, 4), (1, 5), (5, 1), (2, 2)]


def neighbours(rows: int, columns: int, unit: int) -> list[int]:
    row, column = divmod(unit, columns)
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [r * columns + c for r, c in around if 0 <= r < rows and 0 <= c < columns]


def errors_by_hand(weights: np.ndarray, images: np.ndarray, rows: int, columns: int) -> list[tuple[float, float]]:
    found = []
    for x in images:
        distances = [math.dist(x, w) for w in weights]
        best, second = sorted(range(len(weights)), key=lambda unit: distances[unit])[:2]
        found.append((distances[best], float(second not in neighbours(rows, columns, best))))
    return found


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_errors_of_a_map_are_those_of_their_definitions(rows, columns):
    torch.manual_seed(rows)
    model = Som(4, rows, columns, 1.0, 0.5).eval()
    images = torch.randn(64, 3, 32, 32)
    expected = errors_by_hand(model.weight.detach().double().numpy(), images.flatten(1).double().numpy(), rows, columns)
    measured = model.map_errors(images)
    np.testing.assert_allclose(measured.detach().numpy(), expected, rtol=1e-5)
    if len(neighbours(rows, columns, 0)) < rows * columns - 1:
        assert 0 < measured[:, 1].mean() < 1  # so that the test could fail


def test_diagonal_units_are_no_neighbours():
    model = Som(4, 2, 2, 1.0, 0.5)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [5.0], [9.0], [1.0]]).expand(4, 3072))
    image = torch.full((1, 3, 32, 32), 0.25)
    assert model.map_errors(image)[0].tolist() == pytest.approx([0.25 * math.sqrt(3072), 1.0])


def test_a_map_of_one_unit_has_distances_alone():
    model = Som(4, 1, 1, 1.0, 0.5)
    images = torch.randn(5, 3, 32, 32)
    distance, torn = model.map_errors(images).unbind(dim=1)
    torch.testing.assert_close(distance, (images.flatten(1) - model.weight).norm(dim=1))
    assert torn.tolist() == [0.0] * 5
    assert u_matrix(torch.randn(1, 1, 7)).tolist() == [[0.0]]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_u_matrix_is_the_mean_distance_to_the_neighbours_on_the_grid(rows, columns):
    weights = torch.randn(rows, columns, 7, generator=torch.Generator().manual_seed(columns)).double()
    flat = weights.flatten(0, 1).numpy()
    expected = [
        np.mean([math.dist(flat[unit], flat[other]) for other in neighbours(rows, columns, unit)])
        for unit in range(rows * columns)
    ]
    np.testing.assert_allclose(u_matrix(weights).flatten().numpy(), expected, rtol=1e-6)


OPTIONS = ["--model", "som", "--model-options", "rows=3", "columns=4"]
OPTIONS += ["--epochs", "1", "--batch-size", "20", "--seed", "3", "--threads", "1"]


def test_every_evaluation_of_a_map_has_its_errors(train, folders, data_dir):
    from cifar_dist.data import load_dataset
    from cifar_dist.training.weights import load_weights

    result = train(*OPTIONS, pictures=True)
    model, about = load_weights(result.folder / "model.safetensors")
    dataset = load_dataset(str(folders), data_dir)
    mean, std = (np.array(about[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    images = ((dataset.test.images.numpy() / 255 - mean) / std).reshape(len(dataset.test.images), -1)
    by_hand = np.mean(errors_by_hand(model.weight.detach().double().numpy(), images, 3, 4), axis=0)
    (line,) = result.metrics("test")
    recorded = [result.json("summary.json")["test"], line]
    for found in recorded:
        assert [found["quantisation_error"], found["topographic_error"]] == pytest.approx(by_hand, rel=1e-5)
    assert "quantisation_error" in result.metrics("val")[0]
    page = (result.folder / "report.html").read_text()
    assert "test quantisation error" in page and f"{by_hand[0]:.2f}" in page


@pytest.mark.slow
def test_three_processes_measure_the_same_errors(train, folders, data_dir, tmp_path):
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--threads", "1"]
    one = train(*OPTIONS)
    from cifar_dist.cli.evaluate import main

    assert main(["--checkpoint", str(one.folder), *where, "--output", str(tmp_path / "one.json")]) == 0
    command = [str(ROOT / "eval.py"), "--checkpoint", str(one.folder), *where]
    torchrun(3, [*command, "--output", str(tmp_path / "three.json")])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "three.json").read_bytes()
