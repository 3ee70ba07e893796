"""Write a model in several formats: all of them, each read back and checked, or none."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cifar_dist.errors import UserError
from cifar_dist.export.check import TOLERANCE, Difference, Images, difference, logits_of
from cifar_dist.export.formats import FORMATS, Source
from cifar_dist.files import clear_partials, partial_of, sync_folder, write_synced
from cifar_dist.text import reason


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
        exported = [write_file(source, partial, name, images, eager) for name in formats]
        folder.mkdir(exist_ok=True)
        for name in formats:
            os.replace(partial / FORMATS[name].file, folder / FORMATS[name].file)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def write_file(source: Source, folder: Path, name: str, images: Images, eager: Tensor) -> Exported:
    """Write one format into `folder`, and read it back; raises `UserError` where it isn't what was to be written."""
    form, model = FORMATS[name], source.about["model"]
    try:
        data = form.dump(source)
    except Exception as error:  # exporters raise anything for what they can't express
        raise UserError(
            f"{model} can't be exported as {name} ({reason(error)}); leave {name} out of --format"
        ) from None
    write_synced(folder / form.file, data)
    try:
        found = difference(logits_of(form.read(source, folder / form.file), images.pixels), eager)
    except Exception as error:
        raise UserError(
            f"the {name} file of {model} can't be read back ({reason(error)}); leave {name} out of --format"
        ) from None
    if not found.small:
        raise UserError(
            f"the {name} file of {model} is off by {found.largest:.2g} where logits reach {found.scale:.3g}, "
            f"more than {TOLERANCE:g} of that, so no file was written; leave {name} out of --format"
        )
    return Exported(name, len(data), found)
