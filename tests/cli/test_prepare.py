"""`python -m cifar_dist prepare`: what it says, that it is only read the second time, and that damage doesn't pass."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from cifar_dist.__main__ import main
from cifar_dist.data import cache, cache_folder, load_dataset
from cifar_dist.data.cache import inspect_cache


@pytest.fixture
def prepared(folders, data_dir, tmp_path) -> Path:
    """A data folder of our own, in which the small class folders are cached."""
    load_dataset(str(folders), data_dir)
    return Path(shutil.copytree(data_dir, tmp_path / "data"))


def prepare(data: object, data_dir: Path) -> int:
    return main(["prepare", "--data", str(data), "--data-dir", str(data_dir)])


def test_it_says_what_is_there_where_it_is_and_what_jobs_need(folders, tmp_path, capsys):
    assert prepare(folders, tmp_path) == 0
    output = capsys.readouterr().out
    dataset = load_dataset(str(folders), tmp_path)
    assert "240 training and 100 test images" in output
    assert "4: bird cat dog ship" in output
    assert dataset.fingerprint in output
    assert f"--data {folders} --data-dir {tmp_path}" in output
    assert (tmp_path / "cache").as_posix() in output
    pixels = (240 + 100) * (3 * 32 * 32 + 8)
    assert f"{pixels / 1e6:.1f} MB, made and read back" in output


def test_the_second_time_nothing_is_decoded_or_written(folders, prepared, capsys, monkeypatch):
    monkeypatch.setattr(cache, "_write", lambda *_: pytest.fail("it decoded again"))
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert prepare(folders, prepared) == 0
    assert "was there, read" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def flip_a_pixel(folder: Path) -> None:
    images = np.load(folder / "test_images.npy")
    images[50, 1, 2, 3] ^= 1
    np.save(folder / "test_images.npy", images)


def cut_a_file(folder: Path) -> None:
    content = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(content[: len(content) // 2])


def lose_a_file(folder: Path) -> None:
    (folder / "train_targets.npy").unlink()


def empty_the_description(folder: Path) -> None:
    (folder / "about.json").write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_pixel, cut_a_file, lose_a_file, empty_the_description])
def test_a_damaged_cache_fails_and_says_what_to_do(folders, prepared, capsys, damage):
    folder = cache_folder(str(folders), prepared)
    damage(folder)
    assert prepare(folders, prepared) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert f"{folder} is damaged" in output and "delete it and run this again" in output
    shutil.rmtree(folder)
    assert prepare(folders, prepared) == 0


def test_the_fingerprint_of_what_is_on_disk_is_the_sha256_of_classes_shapes_and_bytes(folders, prepared):
    folder = cache_folder(str(folders), prepared)
    digest = hashlib.sha256(b"bird\ncat\ndog\nship")
    for name, dtype, shape in (
        ("train_images", "uint8", "(240, 3, 32, 32)"),
        ("train_targets", "int64", "(240,)"),
        ("test_images", "uint8", "(100, 3, 32, 32)"),
        ("test_targets", "int64", "(100,)"),
    ):
        digest.update(f"{dtype}{shape}".encode() + np.load(folder / f"{name}.npy").tobytes())
    assert inspect_cache(folder).found == digest.hexdigest()


@pytest.mark.parametrize("data", ["cifar10", "synthetic"])
def test_the_cache_is_looked_for_where_the_data_sets_put_it(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("cifar_dist.data.load_cached", lambda folder, *_: seen.append(folder))
    load_dataset(data, tmp_path)
    assert seen == [cache_folder(data, tmp_path)] == [tmp_path / f"cache/{data}-v{cache.VERSION}"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("auto", "error: --data auto is decided where a run starts; prepare cifar10, cifar100, synthetic or a folder"),
        ("cifar101", "error: unknown data set 'cifar101'. Did you mean 'cifar10'?"),
        ("no/such", "error: --data no/such is not a folder"),
    ],
)
def test_wrong_data_is_one_line_and_status_2(data, message, tmp_path, capsys):
    assert prepare(data, tmp_path) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())
