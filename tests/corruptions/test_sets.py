import io

import numpy as np
import pytest
import torch

from cifar_dist.console import Console
from cifar_dist.corruptions import corrupt
from cifar_dist.corruptions.sets import CLASSES, check_corruptions, check_files, corrupted_sets, sets_in
from cifar_dist.data import Split
from cifar_dist.errors import UserError
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.robustness import measure_corruptions

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def write_cifar10_c(folder, names=("fog", "snow"), size=20) -> np.ndarray:
    """Write files as CIFAR-10-C has them, of fewer images; returns the labels of one severity."""
    labels = np.arange(size) % 10
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for name in names:
        np.save(folder / f"{name}.npy", RNG.integers(0, 256, (5 * size, 32, 32, 3), dtype=np.uint8))
    return labels


def test_a_split_is_corrupted_by_the_index_of_its_images_not_their_places():
    images = torch.from_numpy(RNG.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8))
    index = torch.tensor([20, 3, 11, 7, 25])
    split = Split(images, torch.arange(30) % 10, index)
    sets = list(corrupted_sets(["shot_noise", "fog"], split))
    assert [(one.name, one.severity) for one in sets] == [(n, s) for n in ("shot_noise", "fog") for s in range(1, 6)]
    for name, severity, corrupted in sets:
        pixels, targets = corrupted.gather(torch.tensor([4, 1]))
        assert torch.equal(pixels, corrupt(name, severity, images[[25, 3]], torch.tensor([25, 3])))
        assert targets.tolist() == [5, 3] and len(corrupted) == 5


def test_the_files_of_cifar10_c_hold_the_severities_one_after_the_other(tmp_path):
    labels = write_cifar10_c(tmp_path)
    sets = list(sets_in(tmp_path, CLASSES, None, CPU))
    assert [(one.name, one.severity) for one in sets] == [(n, s) for n in ("fog", "snow") for s in range(1, 6)]
    array = np.load(tmp_path / "snow.npy")
    for _, severity, split in sets[5:]:
        expected = array[20 * (severity - 1) : 20 * severity]
        assert np.array_equal(split.pixels(), expected)
        assert np.array_equal(split.labels().numpy(), labels)
    few = list(sets_in(tmp_path, CLASSES, 10, CPU))
    assert all(sorted(one.split.labels().tolist()) == list(range(10)) for one in few)  # of each class as many


def test_the_files_of_cifar10_1_have_no_severity(tmp_path):
    images, labels = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 10
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels.astype(np.int32))
    ((name, severity, split),) = sets_in(tmp_path, CLASSES, None, CPU)
    assert (name, severity) == ("cifar10.1_v6", None)
    assert np.array_equal(split.pixels(), images) and np.array_equal(split.labels().numpy(), labels)


class Trap:
    """What a pickle would run."""

    def __reduce__(self):
        return (open, ("/nonexistent/ran", "w"))


def put(folder, **arrays) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=array.dtype == object)


IMAGES = np.zeros((10, 32, 32, 3), np.uint8)
WRONG = {
    "other shape": (lambda f: put(f, fog=IMAGES[..., :1]), "fog.npy holds (10, 32, 32, 1) uint8, not"),
    "floats": (lambda f: put(f, fog=IMAGES / 1.0), "float64, not (images, 32, 32, 3) uint8"),
    "few labels": (lambda f: put(f, labels=np.zeros(9, np.uint8)), "holds (9,) labels, and"),
    "high labels": (lambda f: put(f, labels=np.full(10, 10)), "other labels than whole numbers from 0 to 9"),
    "labels in between": (lambda f: put(f, labels=np.zeros(10)), "other labels than whole numbers from 0 to 9"),
    "no five parts": (lambda f: put(f, fog=IMAGES[:9], labels=np.zeros(9, int)), "not as many of each of 5 severities"),
    "pickle": (lambda f: put(f, fog=np.array([Trap()] * 10, dtype=object)), "fog.npy is not an array of NumPy's"),
    "text": (lambda f: (f / "fog.npy").write_text("images"), "fog.npy is not an array of NumPy's"),
    "empty": (lambda f: (f / "fog.npy").write_bytes(b""), "fog.npy is not an array of NumPy's"),
    "cut off": (lambda f: (f / "fog.npy").write_bytes((f / "fog.npy").read_bytes()[:-1]), "is not an array of NumPy's"),
    "folder": (lambda f: (f / "snow.npy").mkdir(), "snow.npy is not there, or no file"),
    "no labels": (lambda f: np.save(f / "cifar10.1_v6_data.npy", IMAGES), "cifar10.1_v6_labels.npy is not there"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_that_are_not_what_they_should_be_are_named_in_one_line(tmp_path, what):
    put(tmp_path, fog=IMAGES, labels=np.zeros(10, np.uint8))
    check_files(tmp_path, CLASSES)
    spoil, message = WRONG[what]
    spoil(tmp_path)
    with pytest.raises(UserError) as raised:
        check_files(tmp_path, CLASSES)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_archive_an_empty_folder_and_other_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no CIFAR-10-C \(labels.npy and"):
        check_files(tmp_path, CLASSES)
    put(tmp_path, labels=np.zeros(10, np.uint8))
    np.savez(archive := io.BytesIO(), IMAGES)
    (tmp_path / "fog.npy").write_bytes(archive.getvalue())
    with pytest.raises(UserError, match="is an archive of arrays"):
        check_files(tmp_path, CLASSES)
    with pytest.raises(UserError, match="these weights know cat dog"):
        check_files(tmp_path, ("cat", "dog"))


def test_what_the_option_takes(tmp_path):
    for words in ([], ["all"], ["fog", "contrast"], [str(tmp_path)]):
        check_corruptions(words, "test")
    for words, split, message in [
        (["fogg"], "test", "unknown corruption 'fogg'. Did you mean 'fog'?"),
        (["all", "fog"], "test", "unknown corruption 'all'"),
        (["no/where"], "test", "--corruptions no/where is not a folder"),
        (["fog", str(tmp_path)], "test", "takes names or one folder"),
        ([str(tmp_path)], "val", "--split val has no effect on the images in"),
        (["fog", "fog"], "test", "names fog twice"),
    ]:
        with pytest.raises(UserError) as raised:
            check_corruptions(words, split)
        assert message in str(raised.value)


def test_the_mean_is_over_corruptions_and_not_over_a_new_test_set_beside_them(tmp_path, capsys):
    """A model that takes an image's first value for its class: right in fog but at severity 5, wrong in CIFAR-10.1."""
    labels = write_cifar10_c(tmp_path, ["fog"])
    images = np.zeros((5, len(labels), 32, 32, 3), np.uint8)
    images[..., 0, 0, 0] = labels
    images[4, ..., 0, 0, 0] = 9 - labels
    np.save(tmp_path / "fog.npy", images.reshape(-1, 32, 32, 3))
    np.save(tmp_path / "cifar10.1_v6_data.npy", images[4])
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)

    def look_at(split: Split) -> EvalResult:
        pixels, targets = split.gather(torch.arange(len(split)))
        return EvalResult.of(torch.eye(10)[pixels[:, 0, 0, 0].long()], targets)

    split = Split(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.zeros(1).long()
    )
    found = measure_corruptions([str(tmp_path)], split, CLASSES, None, CPU, look_at, 0.9, Console(speaks=True))
    assert [(row["name"], row["accuracy"]) for row in found["sets"]] == [
        ("cifar10.1_v6", 0.0),
        *[("fog", 1.0)] * 4,
        ("fog", 0.0),
    ]
    assert found["mean_accuracy"] == pytest.approx(0.8)
    assert "mean corruption accuracy 80.00 %, -10.00 points from 90.00 %" in capsys.readouterr().out
