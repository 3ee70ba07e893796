"""The comparison's page in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Opened, chromium, open_page
from helpers.compared import write_run

from cifar_dist.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """The page of 15 configurations of two runs each and an interrupted one."""
    root = tmp_path_factory.mktemp("runs")
    for point in range(15):
        for seed in (0, 1):
            write_run(
                root / f"p{point:02d}-s{seed}", 0.5 + 0.02 * point + 0.001 * seed, lr=(point + 1) / 100, seed=seed
            )
    write_run(root / "stopped", status="interrupted", lr=0.5)
    assert main(["compare", str(root)]) == 0
    return root / "comparison" / "compare.html"


def lines(opened: Opened, chart: int = 0) -> int:
    return opened.page.locator(".charts figure").nth(chart).locator(".chart-line").count()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_it_says_nothing_asks_for_nothing_and_fits_the_window(browser, page_file, width, scheme):
    with open_page(browser, page_file, width, color_scheme=scheme) as opened:
        opened.page.get_by_text("All runs and their configurations").click()
        assert opened.messages == []
        assert opened.requests == [page_file.as_uri()]
        assert not opened.is_wider_than_the_window()


def test_the_first_twelve_configurations_are_drawn_and_chosen_anew(browser, page_file):
    with open_page(browser, page_file) as opened:
        assert [lines(opened, chart) for chart in range(5)] == [12] * 5
        opened.page.locator("[data-group='0']").click()
        assert [lines(opened, chart) for chart in range(5)] == [11] * 5
        opened.page.get_by_role("button", name="all", exact=True).click()
        assert lines(opened) == 16
        opened.page.get_by_role("button", name="none", exact=True).click()
        assert lines(opened) == 0
        opened.page.locator("[data-group='1']").click()
        opened.page.get_by_label("single runs").check()
        assert lines(opened) == 3  # the mean, and two thin ones


def test_the_choice_outlives_reading_the_page_again(browser, page_file):
    with open_page(browser, page_file) as opened:
        opened.page.locator("[data-group='0']").click()
        opened.page.reload()
        assert lines(opened) == 11
        assert opened.page.locator("[data-group='0']").get_attribute("aria-pressed") == "false"


def test_the_configurations_sort_by_any_column(browser, page_file):
    with open_page(browser, page_file) as opened:
        column = opened.page.locator("#groups tbody tr > :nth-child(3)")
        assert column.first.inner_text() == "78.05 %"
        heading = opened.page.locator("#groups thead th").nth(2).get_by_role("button")
        heading.click()
        values = opened.page.locator("#groups tbody tr > :nth-child(3)").all_inner_texts()
        assert (values[0], values[-2:]) == ("50.05 %", ["78.05 %", "–"])
        heading.click()
        assert opened.page.locator("#groups tbody tr > :nth-child(3)").first.inner_text() == "78.05 %"


def test_a_page_of_live_runs_reads_itself_again_until_told_not_to(browser, page_file, tmp_path):
    live = tmp_path / "compare.html"
    text = page_file.read_text().replace('<body class="compare">', '<body class="compare" data-reload="0.3">')
    live.write_text(text.replace("<main>", '<main><input type="checkbox" id="live" checked>', 1))
    with open_page(browser, live) as opened:
        opened.page.wait_for_function("performance.getEntriesByType('navigation')[0].type === 'reload'")
        opened.page.locator("#live").uncheck()
        opened.page.wait_for_timeout(400)
        count = len(opened.requests)
        opened.page.wait_for_timeout(900)
        assert len(opened.requests) == count
