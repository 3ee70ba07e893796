"""Pages made from the templates in assets/: everything inline, every text escaped, no file or network needed to read them."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifar_dist.files import write_atomically
from cifar_dist.text import percent

ASSETS = Path(__file__).parent / "assets"


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill in a template and write it to `path`, wholly or not at all. Its assets lie beside it, or with ours."""
    write_atomically(
        path, _environment(template.parent).get_template(template.name).render(**values).encode(errors="replace")
    )


def embed(data: Any) -> Markup:
    """Return `data` as JSON that is safe within a <script> element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def data_url(picture: Path) -> str:
    """Return a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


@cache
def _environment(folder: Path) -> Environment:
    folders = (folder, ASSETS)
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )

    def asset(name: str) -> Markup:
        """Return a style sheet or a script as it is."""
        return Markup(next(path for place in folders if (path := place / name).is_file()).read_text())

    environment.globals["asset"] = asset
    environment.filters.update(embed=embed, percent=percent)
    return environment
