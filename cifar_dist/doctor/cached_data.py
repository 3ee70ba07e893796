"""What lies in a data folder, as the doctor and `prepare` tell it."""

from pathlib import Path


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
