"""What lies in a data folder, as the doctor and `prepare` tell it."""

from pathlib import Path

ARCHIVE, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-batches-py"  # torchvision's names in the data folder


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
