"""`python -m cifar_dist prepare`: download and decode a data set once, where there is internet, for machines without."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.cli import command_parser
from cifar_dist.config import IMAGE_SIZE, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.data import NAMES, cache_folder, load_dataset
from cifar_dist.data.cache import inspect_cache
from cifar_dist.doctor.cached_data import folder_bytes
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.options import add_flags, to_words
from cifar_dist.text import size


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options of `prepare`, which mean what they mean to train.py."""

    data: str = option("cifar10", "cifar10, cifar100, synthetic, or a folder of train/CLASS/* and test/CLASS/*")
    image_size: int | None = option(
        None, "side in pixels that images are resized to (default: refuse any but 32x32)", must_be=IMAGE_SIZE
    )
    data_dir: str = option("data", "where downloads and decoded caches are kept")

    def __post_init__(self) -> None:
        check_bounds(self)


def main(argv: Sequence[str]) -> int:
    """Fill the cache where it is empty, read all of it back, and say what jobs need. Raises `UserError`."""
    more = "All of it is read back and compared with its fingerprint. Run it again at any time: what is there is only read."
    parser = command_parser("prepare", more)
    add_flags(parser, PrepareOptions)
    options = PrepareOptions(**parser.parse(argv))
    if options.data == "auto":
        raise UserError("--data auto is decided where a run starts; prepare cifar10, cifar100, synthetic or a folder")
    console, data_dir, start = Console(speaks=True), Path(options.data_dir), time.monotonic()
    folder = cache_folder(options.data, data_dir, options.image_size)
    if new := not folder.exists():
        console.say(f"preparing data: {options.data}", "dim")
        with console.bar(f"preparing {options.data}", "images") as progress:
            load_dataset(options.data, data_dir, options.image_size, progress)
    state = inspect_cache(folder)
    if not state.whole:
        console.say(f"failed: {folder} is damaged: {state.damage}; delete it and run this again", "bold red")
        return FAILED
    dataset = load_dataset(options.data, data_dir, options.image_size)
    seconds = time.monotonic() - start
    console.say(f"data         {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images")
    console.say(f"classes      {len(dataset.classes)}: {' '.join(dataset.classes)}")
    console.say(f"fingerprint  {dataset.fingerprint}, that of the bytes on disk")
    done = "made and read back" if new else "was there, read"
    console.say(f"cache        {folder}, {size(folder_bytes(folder))}, {done} in {seconds:.1f} s")
    where: dict[str, object] = {"data": options.data, "data_dir": str(data_dir.resolve())}
    if options.image_size:
        where["image_size"] = options.image_size
    console.say(f"jobs need    {' '.join(to_words(where))}" + " and that folder itself" * is_folder(options.data))
    console.synthetic_note(dataset.synthetic)
    return FINISHED


def is_folder(data: str) -> bool:
    return data not in NAMES
