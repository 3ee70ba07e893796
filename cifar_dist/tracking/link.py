"""What Weights & Biases shows of a run: wandb.json in its folder, written by training and by the process that sends."""

import json
import os
import secrets
import string
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse
from zlib import crc32

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files import read_json, write_json
from cifar_dist.record.folder import LINK_FILE

PROJECT = "cifar_dist"
Mode = Literal["auto", "online", "offline", "disabled"]


@dataclass
class Link:
    """The run's identity there, and how far it was sent."""

    id: str
    mode: str = ""  # online or offline, once that is known
    note: str = ""  # why it is offline, or what went wrong
    url: str = ""
    path: str = ""  # entity/project/id
    directories: list[str] = field(default_factory=list)  # wandb's own, oldest first; each is one segment of the run
    complete: bool = False  # the server has all of the record
    stop_asked: bool = False  # by its stop button, of this start


def read_link(folder: Path) -> Link | None:
    """Return what the run folder says; None where it says nothing that can be read."""
    with suppress(OSError, ValueError, TypeError):
        content = read_json(folder / LINK_FILE)
        link, usual = Link(**{f.name: content[f.name] for f in fields(Link) if f.name in content}), Link("")
        if all(type(getattr(link, f.name)) is type(getattr(usual, f.name)) for f in fields(Link)):
            return link
    return None


def write_link(folder: Path, link: Link) -> None:
    write_json(folder / LINK_FILE, asdict(link))


def open_link(folder: Path) -> Link:
    """Return the run's link, with a new id if it has none. One that goes on keeps its id, and so stays one run."""
    agents = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    link = read_link(folder) or Link(agents or _new_id())
    link.mode, link.note, link.complete, link.stop_asked = "", "", False, False
    write_link(folder, link)
    return link


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def client_environment(folder: Path) -> dict[str, str]:
    """Return what the wandb client is told beside the user's own settings: all runs of one folder share its `wandb` folder."""
    defaults = {
        "WANDB_DIR": str(folder.parent),
        "WANDB_DATA_DIR": str(folder.parent / "wandb"),  # what waits for an upload; sync looks for it there
        "WANDB_ERROR_REPORTING": "false",  # it would be tried even offline
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.5",  # seconds; the usual 15 would be lost when a node dies
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


MODES: dict[str, Mode] = {  # of the wandb client
    "": "auto",
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def resolve_mode(mode: Mode) -> Mode:
    """Return what `--wandb` means here: WANDB_MODE, or what `wandb offline` stored, decides what `auto` leaves open. Raises `UserError`.

    Only a key's presence is looked at, so this is quick; whether it works is found out beside the training.
    """
    if mode == "auto":
        settings = stored_settings()
        wanted = os.environ.get(
            "WANDB_MODE", "disabled" if settings.get("disabled") == "true" else settings.get("mode", "")
        ).lower()
        if wanted not in MODES and "WANDB_MODE" in os.environ:
            raise UserError(
                f"WANDB_MODE={wanted} is not one of online, offline, disabled; set one of them, or unset it"
            )
        return MODES.get(wanted, "auto")
    if mode == "online" and not has_key():
        raise UserError(
            "--wandb online needs an API key; run wandb login, or set WANDB_API_KEY, or use --wandb offline and sync later"
        )
    return mode


def has_key() -> bool:
    """Whether there is an API key, in the environment or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or stored_base_url()).hostname or ""
    with suppress(OSError, NetrcParseError):
        return netrc(os.environ.get("NETRC", Path("~/.netrc").expanduser())).authenticators(host) is not None
    return False


def stored_base_url() -> str:
    """Return the server that `wandb login --host` stored, or the public one."""
    return stored_settings().get("base_url", "https://api.wandb.ai")


def stored_settings() -> dict[str, str]:
    """Return what the client's own commands have stored, for the user and over that for the working folder."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    here = Path(os.environ.get("WANDB_DIR", "."))
    stored: dict[str, str] = {}
    for path in (user / "settings", here / "wandb" / "settings", here / ".wandb" / "settings"):
        parser = ConfigParser(interpolation=None)
        with suppress(ConfigParserError, OSError, UnicodeDecodeError):
            parser.read(path)
            stored |= parser["default"] if parser.has_section("default") else {}
    return stored


def group_name(config: Mapping[str, Any]) -> str:
    """Return the group of a run, from its recorded options: the same for all seeds and folds of one configuration."""
    if given := config.get("wandb_group") or os.environ.get("WANDB_RUN_GROUP"):
        return str(given)
    fixed = {f.name: config.get(f.name) for f in fields(TrainConfig) if not f.metadata["may_change"]}
    fixed = {name: value for name, value in fixed.items() if name not in ("seed", "fold")}
    digest = crc32(json.dumps(fixed, sort_keys=True).encode())
    return f"{config['model']}-{config['recipe'].replace('/', '-')}-{digest:08x}"
