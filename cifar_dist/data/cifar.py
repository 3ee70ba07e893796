"""The official CIFAR-10 and CIFAR-100 archives (Krizhevsky 2009), through torchvision: MD5-checked before anything is unpickled."""

import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_dist.data.cache import Decoded
from cifar_dist.errors import UserError
from cifar_dist.files import locked

CONNECT_TIMEOUT_S = 20.0  # urllib waits for ever without one


class Official(NamedTuple):
    """An official set, and torchvision's names for it in the data folder."""

    name: str  # for people
    torchvision: str  # class of torchvision.datasets
    archive: str
    unpacked: str

    def is_in(self, data_dir: Path) -> bool:
        """Whether the set is there, still to be checked and decoded."""
        return (data_dir / self.archive).is_file() or (data_dir / self.unpacked).is_dir()


OFFICIAL = {
    "cifar10": Official("CIFAR-10", "CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": Official("CIFAR-100", "CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python"),
}


def read_official(key: str, data_dir: Path) -> Decoded:
    """Decode the archive of OFFICIAL[key] in `data_dir`, downloading it first where it is missing, one process at a time.

    CIFAR-100's classes are the 100 fine ones. Raises `UserError` saying what to put where when it can't be downloaded.
    """
    from torchvision import datasets  # slow to import, and only needed without a cache

    official = OFFICIAL[key]
    source = getattr(datasets, official.torchvision)
    data_dir.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
        with locked(data_dir / f"{key}.lock"):
            train, test = (source(data_dir, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:  # no network, or a wrong MD5
        reason = " ".join(str(error).split())
        raise UserError(
            f"{official.name} is not in {data_dir} and can't be downloaded ({reason}); put {official.archive} "
            f"(MD5 {source.tgz_md5}) there, or use --data synthetic, or --data FOLDER of images"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return Decoded(official.name, False, tuple(train.classes), *_arrays(train), *_arrays(test))


def _arrays(part: "object") -> tuple[np.ndarray, np.ndarray]:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))  # type: ignore[attr-defined]  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return images, np.asarray(part.targets, dtype=np.int64)  # type: ignore[attr-defined]
