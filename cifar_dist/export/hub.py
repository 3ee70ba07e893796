"""The Hugging Face Hub: a folder of exported files goes there when asked, and at no other time."""

import re
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.text import reason

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_repository(name: str) -> None:
    """Raise `UserError` unless it reads USER/NAME, before minutes of work."""
    if not REPOSITORY.fullmatch(name):
        raise UserError(
            f"--push {name!r} is not USER/NAME, such as jane/resnet20-cifar10; letters, digits and .-_ may be in both"
        )


def push(folder: Path, files: Sequence[str], repository: str) -> str:
    """Upload these files of `folder` as one commit to a model repository, made where there is none; return its address.

    Raises `UserError` for whatever the Hub or the network says. The token is huggingface_hub's own affair.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message="Export by cifar_dist"
        )
    except Exception as error:  # of a dozen types, of which some are the network's
        raise UserError(
            f"--push {repository} failed ({reason(error)}); {folder} is complete: hf auth login, then hf upload {repository} {folder}"
        ) from None
    return str(address)
