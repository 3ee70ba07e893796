"""Pages in a real browser: headless Chromium, and a record of what a page says, breaks and asks for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Opened(NamedTuple):
    """A page, and what it has done since it was opened."""

    page: Any  # playwright.sync_api.Page
    messages: list[str]  # of its console, and its uncaught errors
    requests: list[str]  # addresses, its own among them

    def is_wider_than_the_window(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def colour(self, selector: str, name: str = "color") -> tuple[int, ...]:
        """Return a computed colour as (red, green, blue)."""
        text = self.page.locator(selector).first.evaluate(f"e => getComputedStyle(e)['{name}']")
        return tuple(int(part) for part in text.partition("(")[2].rstrip(")").split(",")[:3])


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, path: Path, width: int = 1280, height: int = 800, **options: Any) -> Iterator[Opened]:
    """Open a file in a window of its own; `options` are those of Playwright's contexts, such as color_scheme="dark"."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    opened = Opened(context.new_page(), [], [])
    opened.page.on("console", lambda message: opened.messages.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.messages.append(f"error: {error}"))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.resolve().as_uri())
    yield opened
    context.close()


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)
