"""Write a model in several formats: all of them, each read back and checked, or none."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_dist.errors import UserError
from cifar_dist.export.check import TOLERANCE, Difference, Images, difference, logits_of
from cifar_dist.export.formats import FORMATS, Source
from cifar_dist.files import clear_partials, partial_of, sync_folder, write_synced
from cifar_dist.text import reason

COLOUR = re.compile("\x1b\\[[0-9;]*m")


class Exported(NamedTuple):
    """A file that was written and checked."""

    format: str
    num_bytes: int
    difference: Difference


def write_files(source: Source, folder: Path, formats: Sequence[str], images: Images) -> list[Exported]:
    """Write `formats` into `folder`, replacing files of their names, and return what they are.

    Raises `UserError`, and leaves the folder as it was, where a format can't hold the model or computes something else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_partials(folder.parent)
    partial = partial_of(folder)
    partial.mkdir()
    try:
        eager = logits_of(source.from_pixels(source.model), images.pixels)
        exported = [write_file(source, partial, name, images, eager, without(name, formats)) for name in formats]
        folder.mkdir(exist_ok=True)
        for name in formats:
            os.replace(partial / FORMATS[name].file, folder / FORMATS[name].file)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def write_file(source: Source, folder: Path, name: str, images: Images, eager: Tensor, others: str) -> Exported:
    """Write one format into `folder`, and read it back; raises `UserError` where it isn't what was to be written.

    `others` is what to do without it.
    """
    form, model = FORMATS[name], source.about["model"]
    try:
        data = form.dump(source)
    except Exception as error:  # exporters raise anything for what they can't express
        raise UserError(
            f"{model} can't be exported as {name} with torch {torch.__version__} ({_cause(error)}); {others}"
        ) from None
    write_synced(folder / form.file, data)
    try:
        found = difference(logits_of(form.read(source, folder / form.file), images.pixels), eager)
    except Exception as error:
        raise UserError(f"the {name} file of {model} can't be read back ({_cause(error)}); {others}") from None
    if not found.small:
        raise UserError(
            f"the {name} file of {model} is off by {found.largest:.2g} where logits reach {found.scale:.3g}, "
            f"more than {TOLERANCE:g} of that, so no file was written; {others}"
        )
    return Exported(name, len(data), found)


def without(name: str, formats: Sequence[str]) -> str:
    """Return the way out where a format can't be written."""
    others = " ".join(other for other in formats if other != name)
    return f"use --format {others}" if others else f"use another --format than {name}"


def _cause(error: BaseException) -> str:
    """Return what was wrong at first, in one line: exporters wrap it in advice for their own developers."""
    while error.__cause__:
        error = error.__cause__
    return COLOUR.sub("", reason(error))
