"""The official CIFAR-10 archive (Krizhevsky 2009), through torchvision: MD5-checked before anything is unpickled."""

import socket
from pathlib import Path

import numpy as np

from cifar_dist.data.cache import Decoded
from cifar_dist.errors import UserError
from cifar_dist.files import locked

CONNECT_TIMEOUT_S = 20.0  # urllib waits for ever without one


def read_cifar10(data_dir: Path) -> Decoded:
    """Decode the archive in `data_dir`, downloading it first where it is missing, one process at a time.

    Raises `UserError` saying what to put where when it can't be downloaded.
    """
    from torchvision.datasets import CIFAR10  # slow to import, and only needed without a cache

    data_dir.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
        with locked(data_dir / "cifar10.lock"):
            train, test = (CIFAR10(data_dir, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:  # no network, or a wrong MD5
        reason = " ".join(str(error).split())
        raise UserError(
            f"CIFAR-10 is not in {data_dir} and can't be downloaded ({reason}); put {CIFAR10.filename} "
            f"(MD5 {CIFAR10.tgz_md5}) there, or use --data synthetic, or --data FOLDER of images"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return Decoded("CIFAR-10", False, tuple(train.classes), *_arrays(train), *_arrays(test))


def _arrays(part: "object") -> tuple[np.ndarray, np.ndarray]:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))  # type: ignore[attr-defined]  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return images, np.asarray(part.targets, dtype=np.int64)  # type: ignore[attr-defined]
