"""Heat maps of a search against means taken cell by cell."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_dist.report.heat import MOST_MAPS, heat_maps
from cifar_dist.report.heat_plot import draw_heat_maps
from cifar_dist.text import percent

GRID = {"lr": [0.1, 0.001, 0.03], "batch_size": [128, 64], "augment": [["crop"], []]}


def measured(grid: dict, seed: int = 0) -> list[tuple[dict, float]]:
    rng = np.random.default_rng(seed)
    return [(dict(zip(grid, values, strict=True)), float(rng.random())) for values in itertools.product(*grid.values())]


def test_cells_are_means_over_the_other_options():
    points = measured(GRID)
    maps = {(one.row_name, one.column_name): one for one in heat_maps(points, GRID)}
    assert set(maps) == set(itertools.combinations(GRID, 2))
    one = maps["lr", "batch_size"]
    assert (one.rows, one.columns) == (("0.001", "0.03", "0.1"), ("64", "128"))  # by size, not by text
    for (i, lr), (j, size) in itertools.product(enumerate([0.001, 0.03, 0.1]), enumerate([64, 128])):
        cell = [mean for options, mean in points if (options["lr"], options["batch_size"]) == (lr, size)]
        assert len(cell) == one.counts[i][j] == 2
        assert one.means[i][j] == pytest.approx(sum(cell) / 2)
    assert one.note == "a cell is the mean over augment: up to 2 configurations"
    flat = {place: one.means[place[0]][place[1]] for place in itertools.product(range(3), range(2))}
    assert one.best(maximize=True) == max(flat, key=flat.get)
    assert one.best(maximize=False) == min(flat, key=flat.get)


def test_of_two_options_a_cell_is_one_configuration_and_unmeasured_ones_are_empty():
    points = measured({"lr": [1, 2], "steps": [5, 6]})
    points[1] = (points[1][0], None)
    (one,) = heat_maps(points, ["lr", "steps"])
    assert one.means == ((points[0][1], None), (points[2][1], points[3][1]))
    assert one.note == "a cell is one configuration"


def test_a_random_search_whose_values_never_meet_has_no_map():
    points = [({"lr": i / 10, "wd": i / 7}, 0.5) for i in range(6)]
    assert heat_maps(points, ["lr", "wd"]) == []
    assert heat_maps([], ["lr", "wd"]) == []
    assert heat_maps(measured({"lr": [1, 2], "wd": [3]}), ["lr", "wd"]) == []  # nothing differs in the second


def test_a_map_is_drawn_from_half_of_its_cells_on():
    points = [({"lr": i % 2, "wd": i}, 0.5) for i in range(4)]  # 4 of 2 x 4
    assert len(heat_maps(points, ["lr", "wd"])) == 1
    points = [({"lr": i % 3, "wd": i}, 0.5) for i in range(4)]  # 4 of 3 x 4
    assert heat_maps(points, ["lr", "wd"]) == []


def test_a_search_over_many_options_has_no_more_maps_than_can_be_looked_at():
    points = measured({name: [0, 1] for name in "abcdefg"})
    assert len(heat_maps(points, "abcdefg")) == MOST_MAPS < 7 * 6 // 2


def test_maps_are_drawn_within_their_edges(tmp_path):
    names = {"$lr$": [0.1, 0.2], "augment": ["crop flip rotate jitter and more" * 2, "none"], "batch": [1, 2, 3]}
    maps = heat_maps(measured(names), names)
    path = draw_heat_maps(maps, percent, True, tmp_path / "plots/ranking.png", "a sweep " * 30)
    image = np.asarray(Image.open(path).convert("RGB"))
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert (edge == 255).all()
    frame = np.abs(image.astype(int) - [0xD5, 0x5E, 0]).sum(axis=2) < 6
    assert frame.any()


def test_the_comparisons_page_has_the_maps(tmp_path):
    from helpers.compared import write_run

    from cifar_dist.__main__ import main

    accuracies = {(0.1, 64): 0.5, (0.1, 128): 0.25, (0.2, 64): 0.75, (0.2, 128): 0.625}
    for number, ((lr, size), accuracy) in enumerate(accuracies.items()):
        write_run(tmp_path / "runs" / str(number), accuracy, lr=lr, batch_size=size)
    assert main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    (page,) = Path(tmp_path / "out").glob("*.html")
    table = re.search(r'<table class="heat">(.*?)</table>', page.read_text(), re.DOTALL)[1]
    cells = re.findall(r'<td( class="best")? style="--depth: ([\d.]+)">([\d.]+) %</td>', table)
    assert len(cells) == 4
    for best, depth, text in cells:
        assert float(text) / 100 in accuracies.values()
        assert float(depth) == pytest.approx((float(text) / 100 - 0.25) / 0.5, abs=1e-3)
        assert bool(best) == (text == "75.00")
