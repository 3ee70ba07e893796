import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from helpers.browser import chromium, contrast, open_page
from helpers.pages import make_run

from cifar_dist.record.reader import read_run
from cifar_dist.report.images import load_pixels
from cifar_dist.report.page import write_report

pytestmark = pytest.mark.slow  # a browser takes a second to start
SIZES = [(390, 844), (1280, 800)]
pages = {}  # made once: the fixtures that make it belong to one test each


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def report(train, tmp_path_factory):
    """The page of a small real run, with the paper's number."""
    if "report" not in pages:
        folder = tmp_path_factory.mktemp("page") / "run"
        shutil.copytree(train("--lr", "0.005").folder, folder)
        pages["report"] = write_report(folder, load_pixels(read_run(folder), "test"), published=0.61)
    return pages["report"]


def summary_of(report) -> dict:
    return json.loads((report.parent / "summary.json").read_text())


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_self_contained_and_no_wider_than_the_window(browser, report, width, height, scheme):
    with open_page(browser, report, width, height, color_scheme=scheme) as opened:
        for button in opened.page.locator(".matrix button").all()[:3]:
            button.click()
        for fold in opened.page.locator("summary").all():
            fold.click()
        assert not opened.is_wider_than_the_window()
        assert opened.messages == []
        assert opened.requests == [report.resolve().as_uri()]


def test_light_and_dark_differ_and_both_can_be_read(browser, report):
    grounds = []
    for scheme in ("light", "dark"):
        with open_page(browser, report, color_scheme=scheme) as opened:
            opened.page.locator(".matrix .right button").first.click()
            ground, card = opened.colour("body", "backgroundColor"), opened.colour(".card", "backgroundColor")
            grounds.append(ground)
            assert contrast(opened.colour("h1"), ground) > 7
            for selector in (".muted", ".tile dd + dd", ".thumb small", ".verdict .right", ".verdict .wrong"):
                assert contrast(opened.colour(selector), card) > 4.5, selector
    assert sum(grounds[0]) > 700 and sum(grounds[1]) < 100


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_each_cell_shows_exactly_the_images_it_counts(browser, report, width, height):
    confusion = np.array(summary_of(report)["test"]["confusion_matrix"])
    with np.load(report.parent / "predictions-test.npz") as file:
        targets, first = file["targets"], file["logits"].argmax(axis=1)
    with open_page(browser, report, width, height) as opened:
        cells = opened.page.locator(".matrix button")
        assert cells.count() == (confusion > 0).sum()
        for true, predicted in zip(*np.nonzero(confusion), strict=True):
            opened.page.locator(f'[data-true="{true}"][data-predicted="{predicted}"]').click()
            places = opened.page.locator("#cell .thumb").evaluate_all("all => all.map(e => Number(e.dataset.place))")
            assert sorted(places) == np.nonzero((targets == true) & (first == predicted))[0].tolist()
            assert len(places) == confusion[true, predicted]  # fewer than 50: none is left out
        pictures = opened.page.locator("#cell .picture").evaluate_all(
            "all => all.map(e => getComputedStyle(e).backgroundImage)"
        )
        assert pictures and all(picture.startswith('url("data:image/jpeg;base64,') for picture in pictures)


def test_a_page_says_where_it_shows_fewer_images_than_there_are(browser, tmp_path):
    pixels = make_run(tmp_path / "run")
    with open_page(browser, write_report(tmp_path / "run", pixels)) as opened:
        cell = opened.page.locator('[data-true="1"][data-predicted="1"]')
        cell.focus()
        opened.page.keyboard.press("Enter")
        assert (
            opened.page.locator("#cell h3").inner_text()
            == f"dog, recognised: the 50 least certain of {cell.inner_text()}"
        )
        assert opened.page.locator("#cell .thumb").count() == 50 < int(cell.inner_text())


def test_without_pixels_a_cell_lists_the_images_numbers(browser, tmp_path):
    make_run(tmp_path / "run")
    with open_page(browser, write_report(tmp_path / "run", None)) as opened:
        opened.page.locator(".matrix .wrong button").first.click()
        numbers = opened.page.locator("#cell .picture").all_inner_texts()
        places = opened.page.locator("#cell .thumb").evaluate_all("all => all.map(e => `#${e.dataset.place}`)")
        assert numbers == places and numbers


def test_a_matrix_of_100_classes_scrolls_in_a_window_of_its_own_under_its_names(browser, tmp_path):
    classes = [f"sweet_pepper{number:02d}" for number in range(100)]
    pixels = make_run(tmp_path / "run", classes)
    with open_page(browser, write_report(tmp_path / "run", pixels)) as opened:
        window = opened.page.locator(".card:has(> .matrix)")
        last = opened.page.locator('[data-true="99"][data-predicted="99"]')
        last.scroll_into_view_if_needed()
        frame, cell = window.bounding_box(), last.bounding_box()
        assert frame["height"] < 800 and frame["width"] < 1280
        above = opened.page.locator(".matrix thead th").nth(99).bounding_box()
        beside = opened.page.locator(".matrix tbody th").nth(99).bounding_box()
        assert frame["y"] <= above["y"] and above["y"] + above["height"] <= cell["y"]
        assert frame["x"] <= beside["x"] and beside["x"] + beside["width"] <= cell["x"]
        assert abs(above["x"] + above["width"] / 2 - cell["x"] - cell["width"] / 2) < 2
        places = [span.bounding_box() for span in opened.page.locator(".matrix thead span").all()[-9:]]
        assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(places))
        last.click()
        assert opened.page.locator("#cell h3").inner_text().startswith("sweet_pepper99, recognised: ")


def test_the_table_of_classes_sorts_both_ways(browser, report):
    accuracy = summary_of(report)["test"]["per_class_accuracy"]
    with open_page(browser, report) as opened:
        heading = opened.page.locator("#classes th", has_text="accuracy")
        for direction, sign in (("ascending", 1), ("descending", -1)):
            heading.locator("button").click()
            names = opened.page.locator("#classes tbody th").all_inner_texts()
            assert names == sorted(accuracy, key=lambda name: sign * accuracy[name])
            assert heading.get_attribute("aria-sort") == direction
        assert opened.page.locator("#classes tfoot th").inner_text() == "all"


def test_a_chart_shows_the_values_under_the_pointer_and_hides_lines(browser, report):
    lines = [json.loads(line) for line in (report.parent / "metrics.jsonl").open()]
    last = [line for line in lines if line["kind"] == "val"][-1]
    with open_page(browser, report) as opened:
        chart = opened.page.locator("figure", has=opened.page.get_by_text("Accuracy", exact=True))
        assert "the paper's test accuracy, 61.00 %" in chart.locator("svg").first.text_content()
        plot = chart.locator(".chart-plot svg")
        near_the_end = {"x": plot.bounding_box()["width"] - 20, "y": 50}
        plot.hover(position=near_the_end)
        tooltip = chart.locator(".chart-tooltip")
        assert tooltip.locator("strong").inner_text() == f"epoch {last['epoch']:g}"
        assert f"validation\n{100 * last['accuracy']:.2f} %" in tooltip.inner_text()
        button = chart.get_by_role("button", name="validation")
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert chart.locator(".chart-line").count() == 1
        plot.hover(position=near_the_end)
        assert "validation" not in tooltip.inner_text() and "training" in tooltip.inner_text()
        button.click()
        assert chart.locator(".chart-line").count() == 2
        plot.focus()
        opened.page.keyboard.press("ArrowRight")
        assert tooltip.locator("strong").inner_text() == "epoch 1"


def test_hostile_names_are_shown_as_they_are(browser, tmp_path):
    name, note = '<b>&"x', "</script><script>alert(1)</script>"
    pixels = make_run(tmp_path / "run", [name, "dog", "</style>", "<img src=x>"], wandb_group=note)
    with open_page(browser, write_report(tmp_path / "run", pixels)) as opened:
        opened.page.locator('[data-true="0"][data-predicted="3"]').click()
        assert opened.page.locator("#cell h3").inner_text().startswith(f"{name}, taken for <img src=x>: ")
        assert opened.page.locator("#classes tbody th").first.inner_text() == name
        assert opened.page.get_by_text(note, exact=True).first.is_visible()
        assert opened.page.locator("img").count() == 0
        assert opened.messages == [] and len(opened.requests) == 1


def test_a_running_page_comes_back_to_its_place(browser, tmp_path):
    make_run(tmp_path / "run")
    path = write_report(tmp_path / "run", None)
    path.write_text(path.read_text().replace("<body>", '<body data-reload-s="0.4">'))
    with open_page(browser, path) as opened:
        opened.page.locator('[data-true="2"][data-predicted="1"]').click()
        opened.page.evaluate("scrollTo(0, 700)")
        with opened.page.expect_event("load"):
            pass
        assert opened.page.evaluate("scrollY") == 700
        assert opened.page.locator("#cell h3").inner_text().startswith("ship, taken for dog: ")
