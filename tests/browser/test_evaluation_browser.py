import pytest
from helpers.browser import chromium, open_page

from cifar_dist.cli import evaluate

pytestmark = pytest.mark.slow  # a browser takes a second to start


def test_an_evaluation_is_quiet_self_contained_and_no_wider_than_the_window(train, data_dir, tmp_path):
    runs = [str(train("--steps", "4", "--seed", seed, name=f"run{seed}").folder) for seed in ("1", "2")]
    where = ["--data-dir", str(data_dir), "--threads", "1", "--output", str(tmp_path / "both.json")]
    assert evaluate.main(["--checkpoint", *runs, *where]) == 0
    page = tmp_path / "both.html"
    with chromium() as browser:
        for width, height in ((390, 844), (1280, 800)):
            with open_page(browser, page, width, height) as opened:
                opened.page.locator("table.sortable th button").first.click()
                assert not opened.is_wider_than_the_window()
                assert opened.messages == []
                assert opened.requests == [page.resolve().as_uri()]
                assert opened.page.locator("img.plot").count() == 4
