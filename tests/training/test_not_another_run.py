"""What is damaged or missing when a run goes on is said, and the run is the same one or none: never silently another."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import stop_after, untimed

from cifar_dist.__main__ import main
from cifar_dist.cli import evaluate
from cifar_dist.config import TrainConfig
from cifar_dist.record import checkpoint
from cifar_dist.record.reader import read_run
from cifar_dist.training import run as run_module
from cifar_dist.training.resume import new_folder

OPTIONS = ("--lr", "0.05", "--epochs", "6", "--seed", "1")


def content(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a run but its lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def best_folder(run) -> Path:
    best = max(run.metrics("val"), key=lambda line: (line["accuracy"], -line["step"]))["step"]
    return checkpoint.folder_for(run.folder / "checkpoints", best)


@pytest.fixture
def untested(train, monkeypatch):
    """A run that died before its test, whose best checkpoint isn't its newest."""

    def die(_):
        raise OSError("the machine died before the test")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "test", die)
        run = train(*OPTIONS)
    assert run.status == 1
    assert best_folder(run) != checkpoint.folder_for(run.folder / "checkpoints", run.metrics("val")[-1]["step"])
    return run


def lose_manifest(best: Path) -> None:
    (best / "manifest.json").unlink()


def lose_all(best: Path) -> None:
    shutil.rmtree(best)


def damage_weights(best: Path) -> None:
    (best / "model.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("lose", [lose_manifest, lose_all, damage_weights])
def test_for_a_lost_best_checkpoint_the_folders_own_weights_stand_in(train, untested, capsys, lose):
    whole = train(*OPTIONS, name="whole")
    best = best_folder(untested)
    lose(best)
    capsys.readouterr()
    assert train(*OPTIONS).status == 0
    said = "".join(capsys.readouterr().out.split())
    assert "holdsthesamebytesandstandsinforit" in said and best.name in said
    assert untested.weights() == whole.weights()
    for name in ("best_step", "val", "test"):
        assert untested.json("summary.json")[name] == whole.json("summary.json")[name]


def test_weights_that_are_nowhere_any_more_are_said_to_be(train, untested, capsys):
    best = best_folder(untested)
    damage_weights(best)
    (untested.folder / "model.safetensors").write_bytes(b"damaged")
    assert train(*OPTIONS).status == 0
    assert f"ofstep{int(best.name[5:])},aregone" in "".join(capsys.readouterr().out.split())
    assert untested.json("summary.json")["best_step"] == untested.metrics("val")[-1]["step"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("which", ["best", "newest"])
def test_what_cannot_be_read_at_the_moment_is_not_taken_for_broken(train, untested, monkeypatch, capsys, number, which):
    whole = train(*OPTIONS, name="whole")
    steps = checkpoint.saved_steps(untested.folder / "checkpoints")
    folder = (
        best_folder(untested) if which == "best" else checkpoint.folder_for(untested.folder / "checkpoints", steps[-1])
    )
    before, read = content(untested.folder), checkpoint.read_file

    def read_file(path):
        if path.parent.name == folder.name and path.name == "model.safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_file", read_file)
        assert train(*OPTIONS).status in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert os.strerror(number) in line and folder.name in line
    assert content(untested.folder) == before
    assert train(*OPTIONS).status == 0
    assert untested.weights() == whole.weights()


def unmount_behind_a_link(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(checkpoints.parent / "nowhere")


def mount_nothing(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()


@pytest.mark.parametrize("lose", [shutil.rmtree, unmount_behind_a_link, mount_nothing])
def test_without_its_checkpoints_a_run_does_not_start_over(train, monkeypatch, capsys, lose):
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        run = train()
    lose(run.folder / "checkpoints")
    before = content(run.folder)
    assert train().status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "checkpoints is gone or empty, though a run began" in line
    assert content(run.folder) == before
    assert train("--resume", "never").status == 0


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(train, monkeypatch):
    def die(*_):
        raise OSError("the machine died at the first step")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", die)
        assert train().status == 1
    assert train().status == 0


def drop(lines):
    return lines[:1] + lines[2:]


def repeat(lines):
    return lines[:2] + lines[1:]


def change(lines):
    return [lines[0].replace(b'"loss": ', b'"loss": 1'), *lines[1:]]


def tear(lines):
    return [lines[0][:30], *lines[1:]]


def deepen(lines):
    return [b"[" * 100_000, *lines[1:]]


def mistake(lines):
    return [b"[1]", *lines[1:]]


@pytest.mark.parametrize("damage", [drop, repeat, change, tear, deepen, mistake])
def test_lines_that_do_not_fit_the_checkpoint_are_noticed_and_nothing_is_changed(train, monkeypatch, capsys, damage):
    whole = train(name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        run = train()
    metrics = run.folder / "metrics.jsonl"
    good = metrics.read_bytes()
    metrics.write_bytes(b"\n".join(damage(good.split(b"\n"))))
    before = content(run.folder)
    assert train().status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "metrics.jsonl" in line and "restore" in line and "--resume never" in line
    assert content(run.folder) == before
    metrics.write_bytes(good)
    assert train().status == 0
    assert run.weights() == whole.weights()
    assert untimed(run.metrics()) == untimed(whole.metrics())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def change_mean(cache: Path) -> None:
    about = json.loads((cache / "about.json").read_text())
    about["mean"][0] += 0.01
    (cache / "about.json").write_text(json.dumps(about))


def flip_pixel(cache: Path) -> None:
    flip(cache / "train_images.npy", -1)


def flip_target(cache: Path) -> None:
    flip(cache / "test_targets.npy", -8)


def not_a_mapping(cache: Path) -> None:
    (cache / "about.json").write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [change_mean, flip_pixel, flip_target, not_a_mapping])
def test_one_wrong_bit_in_the_decoded_data_ends_what_would_use_them(train, tmp_path, capsys, damage):
    data = ["--data-dir", str(tmp_path / "data")]
    run = train(*data)
    (cache,) = (path for path in (tmp_path / "data/cache").iterdir() if path.is_dir())
    damage(cache)
    capsys.readouterr()
    assert train(*data, name="new").status == 2
    assert evaluate.main(["--checkpoint", str(run.folder), *data]) == 2
    for line in capsys.readouterr().err.strip().splitlines():
        assert line.startswith(f"error: the decoded data in {cache} are damaged: ") and "delete that folder" in line
    shutil.rmtree(cache)
    assert train(*data, name="new").weights() == run.weights()


@pytest.mark.parametrize("place", ["mean", "weights", "name"])
def test_one_wrong_bit_in_a_weights_file_ends_its_evaluation(train, tmp_path, data_dir, capsys, place):
    run = train()
    path = tmp_path / "copy.safetensors"
    path.write_bytes(run.weights())
    header = run.weights()
    at = {"mean": header.index(b"mean") + 10, "weights": -1, "name": header.index(b"weights_digest")}[place]
    flip(path, at)
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(path), "--data-dir", str(data_dir)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {path} is damaged")


def put(file: str, *where, value):
    """Return what puts a value at a place of a JSON file, or of its first line."""

    def damage(folder: Path) -> None:
        text = (folder / file).read_text()
        first, _, rest = text.partition("\n") if file.endswith("l") else (text, "", "")
        content = json.loads(first)
        inner = content
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        content.pop("sha256", None)  # as of a version that didn't seal it
        (folder / file).write_text(json.dumps(content) + "\n" + rest)

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (put("config.json", "config", "model", value=None), "--model None"),
        (put("config.json", "config", "batch_size", value="x"), "--batch-size 'x'"),
        (put("config.json", "config", "optimizer", value=1e308), "--optimizer 1e+308"),
        (put("config.json", "config", "augment", value=[{}]), "--augment"),
        (put("config.json", "config", value=[]), "it has no config"),
        (put("config.json", "starts", 0, value=-1), "starts are not"),
        (put("config.json", "dataset", "fingerprint", value={}), "with fingerprint"),
        (put("metrics.jsonl", "step", value="x"), "step is not a count"),
        (put("metrics.jsonl", "loss", value=1e308), "loss is not a number"),
        (put("metrics.jsonl", "accuracy", value={}), "accuracy is not a number"),
    ],
)
def test_what_no_version_wrote_is_one_line_and_status_2(train, monkeypatch, capsys, damage, named):
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        run = train()
    damage(run.folder)
    capsys.readouterr()
    assert train().status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line


@pytest.mark.parametrize(
    "damage",
    [
        put("summary.json", "test", value=-1),
        put("summary.json", "test", "confusion_matrix", value=[]),
        put("summary.json", "test", "second_guess_correct", value=True),
    ],
)
def test_a_damaged_result_of_a_finished_run_is_one_line_and_status_2(train, capsys, damage):
    damage(train().folder)
    capsys.readouterr()
    assert train().status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "summary.json is damaged (its test: " in line


def test_a_pipe_in_place_of_a_file_holds_nobody_up(train, capsys):
    run = train()
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        (run.folder / name).unlink()
        os.mkfifo(run.folder / name)
    assert read_run(run.folder).status == "broken"
    capsys.readouterr()
    assert train().status == 2
    assert "is not a regular file" in capsys.readouterr().err


def test_a_restart_looks_past_a_run_whose_starts_are_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for name, starts in (("a", [{"launch": "launch"}]), ("b", [])):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(
            json.dumps({"config": {}, "dataset": {}, "starts": starts})
        )
    assert new_folder(TrainConfig(epochs=1)) == Path("runs/a")


class Payload:
    """What a file might hold to run code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def put_into(folder: Path, data: bytes, name: str = "training.pt") -> None:
    """Put a file into a checkpoint, whose manifest says that it belongs there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "what",
    [
        lambda path: saved(Payload(path)),
        lambda path: pickle.dumps(Payload(path)),
        lambda path: saved({"model": {"w": torch.ones(1)}, "progress": {"step": Payload(path)}}),
        lambda _: saved({"model": 1, "optimizer": [], "ema": None, "progress": {}, "per_rank": {}}),
        lambda _: saved([1, 2]),
        lambda _: b"",
        lambda _: b"PK\x03\x04" + 1000 * b"\0",
    ],
    ids=["zip", "pickle", "inside", "types", "list", "empty", "no zip"],
)
def test_a_state_that_is_not_ours_is_passed_over_and_runs_no_code(train, untested, tmp_path, capsys, what):
    whole = train(*OPTIONS, name="whole")
    newest = checkpoint.saved_steps(untested.folder / "checkpoints")[-1]
    put_into(checkpoint.folder_for(untested.folder / "checkpoints", newest), what(tmp_path / "ran"))
    capsys.readouterr()
    assert train(*OPTIONS).status == 0
    assert "skippedabrokencheckpoint:training.ptisnotwhatarunwrites" in "".join(capsys.readouterr().out.split())
    assert not (tmp_path / "ran").exists()
    assert untested.weights() == whole.weights()


def test_the_state_of_another_model_is_refused_in_one_line(train, untested, capsys):
    other = train("--model", "mlp", "--steps", "2", name="other")
    checkpoints = untested.folder / "checkpoints"
    (theirs,) = (other.folder / "checkpoints").glob("step_*/training.pt")
    for step in checkpoint.saved_steps(checkpoints):
        put_into(checkpoint.folder_for(checkpoints, step), theirs.read_bytes())
    before = content(untested.folder)
    capsys.readouterr()
    assert train(*OPTIONS).status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the checkpoint is not one of this run: RuntimeError: Error(s) in loading")
    assert content(untested.folder) == before


def test_predictions_that_would_run_code_are_none(train, tmp_path, capsys):
    run = train("--steps", "2", name="a")
    for split in ("test", "val"):
        logits = np.array([Payload(tmp_path / "ran")], dtype=object)
        np.savez(run.folder / f"predictions-{split}.npz", step=2, logits=logits, targets=logits, places=logits)
    capsys.readouterr()
    assert main(["report", str(run.folder)]) == 0
    assert "holds no predictions" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(run.folder)]) == 0
    assert train("--steps", "2", name="a").status == 0
    assert not (tmp_path / "ran").exists()


def test_one_wrong_digit_among_the_options_is_noticed(train, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        run = train()
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"momentum": 0.9', '"momentum": 0.8'))
    capsys.readouterr()
    assert train("--resume", str(run.folder)).status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "config.json is damaged (it is not what the run wrote" in line
