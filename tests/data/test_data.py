import hashlib
import http.server
import io
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.runs import CLASSES, ROOT, copy_tree, write_class_folders
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from cifar_dist import data
from cifar_dist.config import TrainConfig
from cifar_dist.data import load_dataset, make_splits
from cifar_dist.data.cifar import OFFICIAL
from cifar_dist.data.dataset import channel_statistics, fingerprint
from cifar_dist.data.splits import stratified
from cifar_dist.data.synthetic import draw_images
from cifar_dist.errors import UserError

CPU = torch.device("cpu")


# ---- class folders


def test_folders_hold_the_decoded_pixels_in_order_of_class_and_name(folders, data_dir):
    dataset = load_dataset(str(folders), data_dir)
    assert dataset.classes == CLASSES
    assert dataset.train.images.dtype == torch.uint8
    files = sorted((folders / "train").glob("*/*"))
    assert dataset.train.targets.tolist() == [CLASSES.index(f.parent.name) for f in files]
    for i in (0, 61, 239):
        pixels = np.asarray(Image.open(files[i])).transpose(2, 0, 1)
        assert np.array_equal(dataset.train.images[i].numpy(), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp", ".gif", ".tiff"])
def test_any_format_decodes(tmp_path, suffix):
    write_class_folders(tmp_path / "set", train=3, test=2, suffix=suffix)
    assert len(load_dataset(str(tmp_path / "set"), tmp_path / "data").train) == 12


def test_grey_and_opaque_images_become_rgb(tmp_path):
    write_class_folders(tmp_path / "set", train=3, test=2)
    Image.new("L", (32, 32), 200).save(tmp_path / "set/train/cat/0000.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(tmp_path / "set/train/cat/0001.png")
    images = load_dataset(str(tmp_path / "set"), tmp_path / "data").train.images
    assert images[3].unique().tolist() == [200]
    assert images[4, :, 0, 0].tolist() == [1, 2, 3]


def break_file(root: Path) -> None:
    (root / "train/dog/0001.png").write_bytes(b"not an image")


def start_a_program(root: Path) -> None:
    (root / "train/dog/0001.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    )


def claim_to_be_huge(root: Path) -> None:
    """30,000 x 30,000 black pixels in 60 bytes: 900 MB once decoded."""
    png = io.BytesIO()
    Image.new("1", (32, 32)).save(png, "PNG")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png.getvalue()[24:29]
    huge = png.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png.getvalue()[33:]
    (root / "train/dog/0001.png").write_bytes(huge)


def tear_file(root: Path) -> None:
    path = root / "train/dog/0001.png"
    path.write_bytes(path.read_bytes()[:500])


def grow_file(root: Path) -> None:
    Image.new("RGB", (48, 64)).save(root / "test/cat/0000.png")


def rename_class(root: Path, name: bytes) -> None:
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / os.fsdecode(name))


def empty_class(root: Path) -> None:
    for file in (root / "test/cat").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_file, r"/train/dog/0001.png is no image in one of the formats PNG, JPEG, .*; convert or remove it"),
        (start_a_program, r"/train/dog/0001.jpg is no image in one of the formats PNG"),
        (claim_to_be_huge, r"/train/dog/0001.png can't be decoded .*decompression bomb|0001.png is 30000x30000 pixels"),
        (lambda root: rename_class(root, b"d\xf6g"), "the class folder 'd.udcf6g' of .* unless it is UTF-8"),
        (lambda root: rename_class(root, b"d\x1b[2Jg"), "the class folder .* without control characters; rename it in"),
        (tear_file, r"/train/dog/0001.png can't be decoded"),
        (grow_file, r"/test/cat/0000.png is 48x64 pixels; images must be 32x32"),
        (empty_class, r"class folder .*/test/cat is empty"),
        (lambda root: (root / "test/cat").rename(root / "test/cats"), "only one of them has cat, cats"),
        (lambda root: (root / "test").rename(root / "valid"), "has no folder test/"),
        (lambda root: (root / "val").mkdir(), "has a folder val/, which would not be used"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, damage, message):
    write_class_folders(tmp_path / "set", train=3, test=2)
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(tmp_path / "set"), tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("cache/*/about.json"))  # nothing half-read is kept


def orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


LOSSY = {
    "16 bits": (
        lambda: Image.fromarray(np.full((32, 32), 50_000, np.uint16)),
        {},
        "more than 8 bits a value (mode I;16)",
    ),
    "transparency": (lambda: Image.new("RGBA", (32, 32), (1, 2, 3, 128)), {}, "transparent pixels"),
    **{
        f"orientation {turn}": (
            lambda: Image.new("RGB", (32, 32)),
            {"exif": orientation(turn)},
            f"an EXIF orientation ({turn})",
        )
        for turn in range(2, 9)
    },
}


@pytest.mark.parametrize("what", LOSSY)
def test_what_a_conversion_would_lose_is_named(tmp_path, what):
    make, options, message = LOSSY[what]
    write_class_folders(tmp_path / "set", train=2, test=2)
    make().save(tmp_path / "set/train/cat/0001.png", **options)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_dataset(str(tmp_path / "set"), tmp_path)
    assert "train/cat/0001.png" in str(error.value)


def test_hidden_folders_are_no_classes_and_names_may_be_any_bytes(tmp_path):
    write_class_folders(tmp_path / "set", train=2, test=2)
    for part in ("train", "test"):
        (tmp_path / "set" / part / ".ipynb_checkpoints").mkdir()
    odd = os.fsencode(tmp_path / "set/train/cat") + b"/\xff.png"
    (tmp_path / "set/train/cat/0001.png").rename(os.fsdecode(odd))
    dataset = load_dataset(str(tmp_path / "set"), tmp_path)
    assert (len(dataset.classes), len(dataset.train.targets)) == (4, 8)


@pytest.mark.parametrize("name", ["inner", "nowhere", "pipe"])
def test_what_is_no_image_among_the_images_is_named(tmp_path, name):
    write_class_folders(tmp_path / "set", train=2, test=2)
    path = tmp_path / "set/train/cat" / name
    if name == "inner":
        path.mkdir()
    elif name == "nowhere":
        path.symlink_to(tmp_path / "gone")
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=f"train/cat/{name} is (a folder|no file)"):
        load_dataset(str(tmp_path / "set"), tmp_path)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "set", train=2, test=2)

    def damaged(*_, **__):
        raise RuntimeError("item table missing")

    monkeypatch.setattr(Image, "open", damaged)
    with pytest.raises(UserError, match=r"\.png can't be decoded \(item table missing\); repair or remove it"):
        load_dataset(str(tmp_path / "set"), tmp_path)


def test_a_changed_folder_is_decoded_again_and_has_another_fingerprint(folders, tmp_path):
    root = copy_tree(folders, tmp_path / "set")
    before = load_dataset(str(root), tmp_path / "data")
    assert load_dataset(str(root), tmp_path / "data").fingerprint == before.fingerprint
    Image.new("RGB", (32, 32)).save(root / "train/cat/0000.png")
    assert load_dataset(str(root), tmp_path / "data").fingerprint != before.fingerprint


def test_an_image_replaced_by_one_of_as_many_bytes_is_decoded_anew(tmp_path):
    write_class_folders(tmp_path / "set", train=3, test=2, suffix=".bmp")
    before = load_dataset(str(tmp_path / "set"), tmp_path / "data")
    path = tmp_path / "set/train/cat/0001.bmp"
    size = path.stat().st_size
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    assert path.stat().st_size == size
    after = load_dataset(str(tmp_path / "set"), tmp_path / "data")
    changed = (after.train.images != before.train.images).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert changed == [4] and after.train.images[4, :, 0, 0].tolist() == [1, 2, 3]


def test_a_fingerprint_is_of_names_types_shapes_and_bytes():
    pixels = np.arange(2 * 3 * 4 * 8, dtype=np.uint8).reshape(2, 3, 4, 8)
    same = [pixels, pixels.copy(), np.asfortranarray(pixels)]
    other = [pixels.transpose(0, 1, 3, 2), pixels.reshape(2, 3, 8, 4), pixels.view(np.int8), pixels + np.uint8(1)]
    found = [fingerprint(("a", "b"), [array]) for array in (*same, *other)]
    assert len(set(found[:3])) == 1
    assert len({*found, fingerprint(("a", "c"), [pixels])}) == 2 + len(other)


def test_an_image_moved_to_another_class_has_its_new_label(tmp_path):
    write_class_folders(tmp_path / "set", train=3, test=2)
    assert (
        load_dataset(str(tmp_path / "set"), tmp_path / "data").train.targets.tolist()
        == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )
    (tmp_path / "set/train/cat/0000.png").rename(tmp_path / "set/train/bird/moved.png")
    assert (
        load_dataset(str(tmp_path / "set"), tmp_path / "data").train.targets.tolist()
        == [0] * 4 + [1] * 2 + [2] * 3 + [3] * 3
    )
    for part in ("train", "test"):
        (tmp_path / "set" / part / "cat").rename(tmp_path / "set" / part / "car")
    assert load_dataset(str(tmp_path / "set"), tmp_path / "data").classes == ("bird", "car", "dog", "ship")


def test_the_cache_is_memory_mapped_so_that_ranks_share_it(folders, data_dir):
    load_dataset(str(folders), data_dir)
    mapped = Path("/proc/self/maps").read_text()
    images = load_dataset(str(folders), data_dir).train.images
    assert Path("/proc/self/maps").read_text().count("train_images.npy") > mapped.count("train_images.npy")
    assert images.is_contiguous()


# ---- the official archive


class Published(NamedTuple):
    """A small set in the official format, on a server."""

    key: str  # of OFFICIAL
    source: type  # torchvision's class
    archive: Path
    batch: Path  # the first of the training batches
    downloads: list[str]  # that were asked for


LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
CLASSES_OF = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "cifar100": [f"class {number:02d}" for number in range(100)],
}
both = pytest.mark.parametrize("official", ["cifar10", "cifar100"], indirect=True)


@pytest.fixture
def official(request, tmp_path, monkeypatch):
    """A small archive in the official format behind a counting loopback server; torchvision's sums changed to match."""
    key = getattr(request, "param", "cifar10")
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[key]
    served, rng, classes = tmp_path / "source", np.random.default_rng(0), CLASSES_OF[key]
    folder = served / source.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count: int) -> dict:
        labels = [(7 * i) % len(classes) for i in range(count)]
        content = {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), LABELS[key]: labels}
        return content | ({"coarse_labels": [label // 5 for label in labels]} if key == "cifar100" else {})

    trains = {"cifar10": [(f"data_batch_{i}", 20) for i in range(1, 6)], "cifar100": [("train", 200)]}[key]
    tests = {"cifar10": [("test_batch", 10)], "cifar100": [("test", 100)]}[key]
    monkeypatch.setattr(source, "train_list", [write(name, batch(count)) for name, count in trains])
    monkeypatch.setattr(source, "test_list", [write(name, batch(count)) for name, count in tests])
    names = {source.meta["key"]: classes, "coarse_label_names": ["no class of ours"]}
    meta, meta_md5 = write(source.meta["filename"], names)
    monkeypatch.setattr(source, "meta", {"filename": meta, "key": source.meta["key"], "md5": meta_md5})
    archive = served / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())

    downloads: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            if self.command == "GET":
                downloads.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}")
    yield Published(key, source, archive, folder / trains[0][0], downloads)
    server.shutdown()


@both
def test_the_archive_is_downloaded_checked_and_decoded(official, tmp_path):
    timeout = socket.getdefaulttimeout()
    dataset = load_dataset(official.key, tmp_path / "data")
    assert socket.getdefaulttimeout() == timeout  # of whatever else this process does
    sizes = {"cifar10": ("CIFAR-10", 100, 10), "cifar100": ("CIFAR-100", 200, 100)}[official.key]
    assert (dataset.name, len(dataset.train), len(dataset.test)) == sizes
    assert not dataset.synthetic
    assert list(dataset.classes) == CLASSES_OF[official.key]
    batch = pickle.loads(official.batch.read_bytes())
    assert np.array_equal(dataset.train.images[3].numpy().reshape(-1), batch["data"][3])
    assert dataset.train.targets[: len(batch["data"])].tolist() == batch[LABELS[official.key]]
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize("official", ["cifar100"], indirect=True)
def test_a_validation_split_of_cifar100_holds_each_fine_class(tmp_path):
    s = splits(load_dataset("cifar100", tmp_path / "data"), val_fraction=0.5)
    assert torch.bincount(s.val.labels(), minlength=100).tolist() == [1] * 100
    assert torch.bincount(s.train.labels(), minlength=100).tolist() == [1] * 100


@pytest.mark.parametrize(("key", "source"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_names_in_the_data_folder_are_torchvisions(key, source):
    assert OFFICIAL[key].torchvision == source.__name__
    assert (OFFICIAL[key].archive, OFFICIAL[key].unpacked) == (source.filename, source.base_folder)


def test_processes_that_start_together_download_once(official, tmp_path):
    downloads = official.downloads
    load_dataset("cifar10", tmp_path / "alone")
    requests_of_one = len(downloads)  # torchvision asks for redirects first
    downloads.clear()
    names = ("url", "tgz_md5", "train_list", "test_list", "meta")
    settings = {name: getattr(CIFAR10, name) for name in names}
    code = (
        f"import torchvision\nfor k, v in {settings!r}.items(): setattr(torchvision.datasets.CIFAR10, k, v)\n"
        "from pathlib import Path\nfrom cifar_dist.data import load_dataset\n"
        f"print(load_dataset('cifar10', Path({str(tmp_path / 'data')!r})).fingerprint)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    prints = {run.communicate()[0].split()[-1] for run in runs}
    assert len(prints) == 1
    assert len(downloads) == requests_of_one


@both
def test_an_archive_put_there_by_hand_is_used_without_a_network(official, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / official.archive.name).write_bytes(official.archive.read_bytes())
    monkeypatch.setattr(official.source, "url", "http://127.0.0.1:9/nothing")
    assert len(load_dataset(official.key, tmp_path / "data").train) in (100, 200)
    assert not official.downloads


@both
def test_a_wrong_archive_is_refused_before_anything_is_unpickled(official, tmp_path, monkeypatch):
    monkeypatch.setattr(official.source, "tgz_md5", "0" * 32)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match="can't be downloaded"):
        load_dataset(official.key, tmp_path / "data")


@pytest.mark.parametrize(
    ("key", "source", "md5"),
    [
        ("cifar10", CIFAR10, "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", CIFAR100, "eb9058c3a382ffc7106e4002c42a8d85"),
    ],  # from https://www.cs.toronto.edu/~kriz/cifar.html
)
def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch, key, source, md5):
    monkeypatch.setattr(source, "url", "http://127.0.0.1:9/nothing")
    put = rf"put {source.filename} \(MD5 {md5}\) there, or use --data synthetic"
    with pytest.raises(UserError, match=rf"^CIFAR-{key[5:]} is not in .* can't be downloaded .*{put}") as e:
        load_dataset(key, tmp_path / "data")
    assert "\n" not in str(e.value)


@pytest.fixture
def small_synthetic(monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", {"train": 200, "test": 50})


@pytest.mark.usefixtures("official", "small_synthetic")
def test_auto_takes_cifar10_if_it_can_be_had_and_else_says_why_not(tmp_path, monkeypatch):
    assert load_dataset("auto", tmp_path / "one").name == "CIFAR-10"
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing")
    assert load_dataset("auto", tmp_path / "two").synthetic
    name, why = data.choose_data(tmp_path / "two")
    assert name == "synthetic"
    assert "can't be downloaded" in why


@pytest.mark.usefixtures("official", "small_synthetic")
def test_auto_does_not_take_another_set_because_cifar10_is_damaged(tmp_path):
    load_dataset("auto", tmp_path)
    (data.cache_folder("cifar10", tmp_path) / "about.json").write_text("{}")
    with pytest.raises(UserError, match=r"the decoded data in .* are damaged"):
        load_dataset("auto", tmp_path)


# ---- synthetic


@pytest.mark.usefixtures("small_synthetic")
def test_the_synthetic_set_is_the_same_each_time_and_train_is_not_test(tmp_path):
    one, two = (load_dataset("synthetic", tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert one.synthetic
    assert one.name == "synthetic"
    assert torch.bincount(one.train.targets).tolist() == [20] * 10
    seen = {image.numpy().tobytes() for image in one.train.images}
    assert not seen & {image.numpy().tobytes() for image in one.test.images}


@pytest.mark.slow
def test_the_synthetic_set_needs_more_than_a_linear_model(train):
    (images, targets), (test_images, test_targets) = (draw_images(n, seed) for n, seed in ((10_000, 0), (2000, 1)))
    mean, std = images.mean(axis=0), images.std(axis=0)
    x, test_x = (torch.from_numpy((i - mean) / std).float().flatten(1) for i in (images, test_images))
    linear = torch.nn.Linear(3072, 10)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=1.0)
    for epoch in range(8):
        for index in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(x[index]), torch.from_numpy(targets)[index]).backward()
            optimizer.step()
    linear_accuracy = (linear(test_x).argmax(dim=1) == torch.from_numpy(test_targets)).double().mean().item()
    options = "--data synthetic --model lenet --limit-train 10000 --limit-eval 2000 --epochs 8 --batch-size 128"
    result = train(*options.split(), "--log-every", "50")
    accuracy = result.json("summary.json")["test"]["accuracy"]
    assert 0.1 < linear_accuracy < 0.4
    assert accuracy > 0.6
    assert result.json("summary.json")["synthetic"]


# ---- splits and statistics


def splits(dataset, **options):
    return make_splits(dataset, TrainConfig(**{"epochs": 1, **options}), CPU)


def test_validation_is_held_out_stratified_and_fixed_by_its_own_seed(folders, data_dir):
    dataset = load_dataset(str(folders), data_dir)
    s = splits(dataset)
    assert (len(s.train), len(s.val), len(s.test)) == (216, 24, 100)
    assert not set(s.train.index.tolist()) & set(s.val.index.tolist())
    assert torch.bincount(dataset.train.targets[s.val.index]).tolist() == [6] * 4
    assert torch.equal(splits(dataset, seed=9).val.index, s.val.index)
    assert not torch.equal(splits(dataset, split_seed=9).val.index, s.val.index)


def test_all_images_can_be_trained_on(folders, data_dir):
    s = splits(load_dataset(str(folders), data_dir), val_fraction=0.0)
    assert (len(s.train), s.val) == (240, None)


def pooled_targets(dataset):
    return torch.cat((dataset.train.targets, dataset.test.targets))


def test_a_test_fraction_pools_all_images_and_uses_each_once_the_classes_balanced(folders, data_dir):
    dataset = load_dataset(str(folders), data_dir)
    s = splits(dataset, test_fraction=0.2, val_fraction=0.25)
    parts = (s.train, s.val, s.test)
    assert [len(part) for part in parts] == [204, 68, 68]
    assert torch.equal(torch.cat([part.index for part in parts]).sort().values, torch.arange(340))
    for part in parts:
        assert torch.bincount(part.labels()).tolist() == [len(part) // 4] * 4
        images, targets = part.gather(torch.arange(len(part)))
        assert torch.equal(targets, pooled_targets(dataset)[part.index])
        assert torch.equal(images[-1], torch.cat((dataset.train.images, dataset.test.images))[part.index[-1]])
    assert torch.equal(splits(dataset, test_fraction=0.2, val_fraction=0.25, seed=4).test.index, s.test.index)
    assert not torch.equal(splits(dataset, test_fraction=0.2, split_seed=4).test.index, s.test.index)


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_folds_hold_out_each_training_image_exactly_once_the_classes_balanced(folders, data_dir, folds):
    dataset = load_dataset(str(folders), data_dir)
    held_out = []
    for fold in range(folds):
        s = splits(dataset, folds=folds, fold=fold)
        assert not set(s.train.index.tolist()) & set(s.val.index.tolist())
        assert len(s.train) + len(s.val) == 240
        assert len(s.val) in (240 // folds, 240 // folds + 1)
        counts = torch.bincount(s.val.labels(), minlength=4)
        assert counts.max() - counts.min() <= 1
        assert len(s.test) == 100
        held_out += s.val.index.tolist()
    assert sorted(held_out) == list(range(240))


def test_folds_of_a_pool_leave_the_test_images_out(folders, data_dir):
    dataset = load_dataset(str(folders), data_dir)
    parts = [splits(dataset, test_fraction=0.2, folds=4, fold=fold) for fold in range(4)]
    test = set(parts[0].test.index.tolist())
    assert all(set(s.test.index.tolist()) == test for s in parts)
    assert torch.cat([s.val.index for s in parts]).sort().values.tolist() == sorted(set(range(340)) - test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 200, "fold": 0}, "a fold of --folds 200 of 240 images is 2, fewer than the 4 classes; use fewer"),
        (
            {"test_fraction": 0.005},
            "--test-fraction 0.005 of 340 images is 2, fewer than the 4 classes; use more, or leave it out",
        ),
    ],
)
def test_splits_smaller_than_the_classes_are_refused(folders, data_dir, options, message):
    with pytest.raises(UserError, match=message):
        splits(load_dataset(str(folders), data_dir), **options)


@pytest.mark.parametrize(
    ("sizes", "count", "taken"),
    [
        ([10, 7, 3], 7, [4, 2, 1]),  # 3.5, 2.45, 1.05
        ([5, 5, 5], 4, [2, 1, 1]),
        ([1, 1, 8], 5, [1, 0, 4]),  # 0.5, 0.5, 4
        ([4, 0, 4], 3, [2, 0, 1]),
    ],
)
def test_shares_of_uneven_classes_are_rounded_by_largest_remainder(sizes, count, taken):
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    places = stratified(targets, count, seed=3)
    assert places.tolist() == sorted(set(places.tolist()))
    assert torch.bincount(targets[places], minlength=len(sizes)).tolist() == taken


def test_limits_keep_the_classes_balanced(folders, data_dir):
    dataset = load_dataset(str(folders), data_dir)
    s = splits(dataset, limit_train=40, limit_eval=12)
    assert [len(part) for part in (s.train, s.val, s.test)] == [40, 12, 12]
    assert torch.bincount(dataset.train.targets[s.train.index]).tolist() == [10] * 4


def test_a_validation_split_smaller_than_the_classes_is_refused(folders, data_dir):
    with pytest.raises(UserError, match="is 2, fewer than the 4 classes"):
        splits(load_dataset(str(folders), data_dir), val_fraction=0.01)


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)), rel=1e-12)
    assert std == pytest.approx((images / 255).std(axis=(0, 2, 3)), rel=1e-12)


@pytest.mark.skipif(
    "CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR doesn't name a folder with the official archive"
)
def test_the_statistics_of_the_real_images_are_the_known_ones():
    dataset = load_dataset("cifar10", Path(os.environ["CIFAR10_DIR"]))
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert dataset.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)


def test_an_unknown_data_set_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown data set 'cifar'\. Did you mean 'cifar10'"):
        load_dataset("cifar", tmp_path)
    with pytest.raises(UserError, match="--data /no/where is not a folder"):
        load_dataset("/no/where", tmp_path)


def test_who_waits_is_told_how_many_images_are_decoded_and_only_then(folders, tmp_path):
    told: list[tuple[float, int]] = []
    for _ in range(2):
        load_dataset(str(folders), tmp_path, None, lambda done, total: told.append((done, total)))
    images = sum(path.is_file() for path in folders.rglob("*"))
    assert told == [(0, 0), *((done, images) for done in range(100, images + 1, 100))]  # once: the second finds a cache


def test_drawing_tells_how_many_images_are_drawn():
    told: list[tuple[float, int]] = []
    with_reports = draw_images(1200, 3, lambda done, total: told.append((done, total)))
    assert told == [(500, 1200), (1000, 1200), (1200, 1200)]
    assert all(map(np.array_equal, with_reports, draw_images(1200, 3)))
