"""Pages made from the templates in assets/: everything inline, every text escaped, no file or network needed to read them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifar_dist.checkpoint import write_atomically

ASSETS = Path(__file__).parent / "assets"


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template of assets/ and write it to `path`, wholly or not at all."""
    write_atomically(path, _environment().get_template(template).render(**values).encode())


def embed(data: Any) -> Markup:
    """Return `data` as JSON that is safe within a <script> element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def percent(share: float | None, digits: int = 2) -> str:
    """0.5 -> 50.00 %, None -> –."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


@cache
def asset(name: str) -> Markup:
    """Return a style sheet or a script of assets/ as it is."""
    return Markup((ASSETS / name).read_text())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["asset"] = asset
    environment.filters.update(embed=embed, percent=percent)
    return environment
