"""`python -m cifar_dist sync [PATH...]`: upload the runs that Weights & Biases doesn't have yet, and verify each."""

import os
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.cli import command_parser
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.tracking.link import has_key
from cifar_dist.tracking.uploads import Server, UploadError, find_uploads, send_upload

DEFAULT = "runs"


def main(argv: Sequence[str]) -> int:
    """Upload one run after the other; returns the exit status: failed if one isn't wholly there. Raises `UserError`."""
    parser = command_parser("sync", usage="%(prog)s [PATH ...]")
    what = f"a run folder, or a folder of them, or of wandb's offline runs (default: {DEFAULT})"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    paths = [Path(word) for word in parser.parse(argv)["paths"] or [DEFAULT]]
    if missing := [path for path in paths if not path.is_dir()]:
        raise UserError(f"{missing[0]} is not a folder; give run folders, or a folder of them")
    uploads = find_uploads(paths)
    if not uploads:
        raise UserError(
            f"there is no run to upload in {' '.join(map(str, paths))}; runs write theirs unless --wandb disabled"
        )
    if not has_key():  # else the client would ask for one
        raise UserError("there is no API key for Weights & Biases; wandb login stores one, or set WANDB_API_KEY")
    os.environ.pop("WANDB_MODE", None)
    os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    try:
        server = Server()
    except UploadError as error:
        raise UserError(f"the Weights & Biases server can't be used: {error}") from None
    console, failures = Console(speaks=True), 0
    for upload in uploads:
        try:
            console.say(f"{upload.name}: {send_upload(upload, server)}")
        except UploadError as error:
            failures += 1
            console.warn(f"{upload.name}: {error}; the same command tries again")
    return FAILED if failures else FINISHED
