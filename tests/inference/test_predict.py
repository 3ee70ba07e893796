"""`python -m cifar_dist predict`, and what it shares with `cifar_dist.predict`."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers.runs import CLASSES, ROOT
from PIL import Image

from cifar_dist import load_model, predict
from cifar_dist.__main__ import main
from cifar_dist.cli import predict as command
from cifar_dist.inference import predictions
from cifar_dist.inference.predictions import Guess, Prediction
from cifar_dist.models import build_model
from cifar_dist.training.weights import pack_weights

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A weights file with outputs that differ from class to class."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(3)
    model = build_model("lenet", len(CLASSES))
    about = {
        "model": "lenet",
        "model_options": [],
        "classes": CLASSES,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
    }
    path.write_bytes(pack_weights(model, {**about, "mixed_precision": "no", "dataset": "folders", "data": "folders"}))
    return path


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Five images in a folder and the folders in it, beside what is none."""
    folder = tmp_path / "pictures"
    for name in ("b.png", "a.jpg", "inner/c.webp", "inner/deeper/d.bmp", "e.TIF"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "TIF": "TIFF"}.get(name.rpartition(".")[2])
        size = (40 + len(name), 50, 3)
        Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(folder / name, kind)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    (folder / ".cache").mkdir()
    (folder / ".cache/x.png").write_text("not an image")
    return folder


@pytest.fixture
def run(capsys, weights):
    """Run the command on these words: (status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        status = main(["predict", str(weights), "--threads", "1", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def by_hand(weights: Path, pixels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) of pixels (N, 32, 32, 3), from the tensors of the file and what it says of its inputs."""
    with safetensors.safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["cifar_dist"])
    model = build_model(about["model"], len(about["classes"]))
    model.load_state_dict(safetensors.torch.load_file(weights))
    images = (pixels / 255 - about["mean"]) / about["std"]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)).double().numpy()
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_says_of_its_test_images_what_its_own_test_said(train, folders, precision):
    """Bit for bit the logits that the run kept: eval.py's are the same."""
    run = train("--steps", "9", "--mixed-precision", precision)
    model = load_model(run.folder)
    paths = [path for name in CLASSES for path in sorted((folders / "test" / name).iterdir())]
    with np.load(run.folder / "predictions-test.npz") as kept:
        logits = kept["logits"]
    torch.set_num_threads(1)
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2).copy())
    assert (model.logits(pixels).numpy() == logits).all()
    assert (load_model(run.folder, mixed_precision="no").logits(pixels).numpy() == logits).all() == (precision == "no")
    shares = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    for said, row in zip(predict(model, paths, top=4), shares, strict=True):
        assert {guess.label: guess.probability for guess in said.top} == dict(zip(CLASSES, row, strict=True))
    assert len(paths) == 100


def test_probabilities_are_those_computed_by_hand_over_several_blocks(weights, monkeypatch):
    monkeypatch.setattr(predictions, "EVAL_BLOCK", 4)
    pixels = RNG.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    expected = by_hand(weights, pixels)
    said = predict(load_model(weights), pixels, top=3)
    assert [prediction.name for prediction in said] == [f"image {i}" for i in range(11)]
    for prediction, row in zip(said, expected, strict=True):
        best = np.argsort(-row)[:3]
        assert [guess.label for guess in prediction.top] == [CLASSES[c] for c in best]
        assert [guess.probability for guess in prediction.top] == pytest.approx(row[best], rel=1e-5)


def test_of_equally_probable_classes_the_first_comes_first(weights, monkeypatch):
    """As a map has them, whose logits are counts of images."""
    model = load_model(weights)
    monkeypatch.setattr(model, "probabilities", lambda pixels: np.array([[0.1, 0.4, 0.1, 0.4]] * len(pixels)))
    (said,) = predict(model, np.zeros((32, 32, 3), np.uint8), top=4)
    assert [guess.label for guess in said.top] == [CLASSES[c] for c in (1, 3, 0, 2)]


def test_folders_are_walked_in_order_and_everything_is_a_json_line(run, pictures, weights):
    status, out, err = run(pictures, "--json", "--top", 2)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    names = ["a.jpg", "b.png", "e.TIF", "inner/c.webp", "inner/deeper/d.bmp"]
    assert [line["file"] for line in lines] == [str(pictures / name) for name in names]
    assert all(line["error"] is None and len(line["top"]) == 2 for line in lines)
    again = predict(load_model(weights), pictures, top=2)
    assert [[(g["class"], g["probability"]) for g in line["top"]] for line in lines] == [list(p.top) for p in again]
    assert len(err.splitlines()) == 1 and err.startswith("not calibrated")


def test_the_table_has_a_row_an_image_and_says_once_that_nothing_is_calibrated(run, pictures):
    status, out, err = run(pictures, pictures / "b.png")
    rows = out.splitlines()
    assert (status, err) == (0, "")
    assert len(rows) == 1 + 6 + 1
    assert rows[1].split()[0] == str(pictures / "a.jpg") and rows[1].count("%") == 3
    assert [row for row in rows if "not calibrated" in row] == [rows[-1]]
    assert rows[2].replace(" ", "") == rows[6].replace(" ", "")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(run, pictures, tmp_path):
    (pictures / "torn.png").write_bytes((pictures / "b.png").read_bytes()[:300])
    (pictures / "text.gif").write_text("GIF?")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty").mkdir()
    status, out, err = run(pictures, tmp_path / "none.png", tmp_path / "pipe.png", tmp_path / "empty")
    assert status == 1 and len(out.splitlines()) == 1 + 5 + 1
    lines = err.splitlines()
    assert [line.removeprefix(str(tmp_path)).split(" ")[0] for line in lines] == [
        "/pictures/text.gif",
        "/pictures/torn.png",
        "/none.png",
        "/pipe.png",
        "/empty",
    ]
    said = (
        "is no image in one of",
        "can't be decoded",
        "No such file",
        "is not a regular file",
        "folder without images",
    )
    assert all(text in line for text, line in zip(said, lines, strict=True))
    status, out, err = run(tmp_path / "none.png", "--json")
    assert status == 2 and "No such file" in json.loads(out)["error"]
    assert err.splitlines()[-1] == "error: none of 1 image could be read; the lines above say why"


def test_a_folder_that_may_not_be_opened_is_named(weights, pictures, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/locked"))
        yield from real(top, onerror=onerror)

    real = os.walk
    monkeypatch.setattr(predictions.os, "walk", walk)
    (bad,) = [p for p in predict(load_model(weights), pictures) if p.error]
    assert (bad.name, bad.error) == (f"{pictures}/locked", "can't be read: Permission denied")


def test_names_control_no_terminal_and_stay_whole_in_json(run, pictures):
    odd = pictures / "\x1b[31m:cat:[b]\n\u202ex.png"
    bytes_name = pictures / os.fsdecode(b"d\xf6g.png")
    for path in (odd, bytes_name):
        path.write_bytes((pictures / "b.png").read_bytes())
    (pictures / "\x1b[2J.gif").write_text("")
    status, out, err = run(pictures)
    assert status == 1
    for text in (out, err):
        assert not any(c in text for c in "\x1b\u202e") and all(c.isprintable() or c == "\n" for c in text)
    assert "\ufffd[31m:cat:[b] \ufffdx.png " in out and "\ufffd[2J.gif is no image" in err
    _, out, _ = run(pictures, "--json")
    assert {str(odd), str(bytes_name)} < {json.loads(line)["file"] for line in out.splitlines()}
    assert out.isascii() and "\x1b" not in out


def test_one_image_comes_on_standard_input(run, pictures, monkeypatch):
    content = (pictures / "b.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, out, _ = run("-", pictures / "b.png", "--json")
    stdin, file = (json.loads(line) for line in out.splitlines())
    assert status == 0 and stdin["file"] == "-" and stdin["top"] == file["top"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content[:100])))
    status, _, err = run("-")
    assert status == 2 and err.startswith("- can't be decoded")


def test_standard_input_is_not_waited_for_in_vain(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    status, _, err = run("-")
    assert status == 2 and err.startswith("error: - reads an image's bytes from standard input, which is a terminal;")
    status, _, err = run("-", "-")
    assert status == 2 and "- is given twice" in err


def evaluation(weights: Path, temperature: object, **more: object) -> str:
    with safetensors.safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["cifar_dist"])
    return json.dumps(
        {"about": {**about, **more}, "fingerprint": about.get("fingerprint"), "temperature": {"value": temperature}}
    )


def test_an_evaluation_beside_the_weights_calibrates(weights, tmp_path, pictures, capsys):
    beside = tmp_path / "model.safetensors"
    beside.write_bytes(weights.read_bytes())
    pixels = RNG.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)

    def shares(**options: float) -> tuple[list[float], str]:
        model = load_model(beside, **options)
        (said,) = predict(model, pixels, top=4)
        return [guess.probability for guess in said.top], model.calibration

    def expected(temperature: float):
        return pytest.approx(sorted(by_hand(weights, pixels, temperature)[0], reverse=True), rel=1e-5)

    assert shares() == (
        expected(1),
        f"not calibrated: no eval-val.json or eval-test.json with a temperature beside {beside}",
    )
    (tmp_path / "eval-test.json").write_text(evaluation(weights, 2.5))
    assert shares() == (expected(2.5), f"calibrated by temperature 2.5 of {tmp_path}/eval-test.json")
    (tmp_path / "eval-val.json").write_text(evaluation(weights, 0.5))
    assert shares() == (expected(0.5), f"calibrated by temperature 0.5 of {tmp_path}/eval-val.json")
    assert shares(temperature=4) == (expected(4), "calibrated by the given temperature 4")
    assert main(["predict", str(beside), str(pictures), "--temperature", "3"]) == 0
    assert "probabilities calibrated by the given temperature 3" in capsys.readouterr().out
    for wrong in (0, -1, "2", True, None, float("nan")):
        (tmp_path / "eval-val.json").write_text(evaluation(weights, wrong))
        (tmp_path / "eval-test.json").unlink(missing_ok=True)
        problem = f"the temperature of {tmp_path}/eval-val.json is not a number greater than 0"
        assert shares() == (expected(1), f"not calibrated: {problem}")
    (tmp_path / "eval-val.json").write_text(evaluation(weights, 2.0, step=7))
    assert shares()[1].startswith(f"not calibrated: {tmp_path}/eval-val.json is about other weights")
    for damaged in ("{", "[]", '{"temperature'):
        (tmp_path / "eval-val.json").write_text(damaged)
        assert shares()[1].startswith("not calibrated: no eval-val.json")


def test_the_contact_sheet_shows_the_pixels_that_the_model_saw(run, tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_dist.cli.predict.MOST_ON_SHEET", 3)
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i}.png")
    status, _, _ = run(tmp_path, "--sheet", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert status == 0
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255]):
        assert (sheet == colour).all(axis=2).sum() == 160 * 160
    assert not (sheet == [9, 9, 9]).all(axis=2).sum() > 160 * 80
    for name, message in (("x.jpg", "ends in .png"), ("nowhere/x.png", "there is no folder"), ("", "--sheet is empty")):
        status, _, err = run(tmp_path / "0.png", "--sheet", str(tmp_path / name) if name else "")
        assert status == 2 and message in err


@pytest.mark.parametrize(
    ("most", "said"), [(2, "the first 2 of 3 images, as"), (3, "3 images, as"), (4, "3 images, as")]
)
def test_the_contact_sheet_says_how_many_of_the_images_it_shows(weights, tmp_path, monkeypatch, most, said):
    monkeypatch.setattr(command, "MOST_ON_SHEET", most)
    written: list[str] = []

    def grid(images, captions, lines):
        assert len(images) == len(captions) == min(most, 3)
        written.extend(lines)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("cifar_dist.report.image_grids.grid", grid)
    sheet = command.Sheet(str(tmp_path / "sheet.png"))
    for i in range(3):
        sheet.add(Prediction(f"{i}.png", (Guess("cat", 0.5),)), np.zeros((32, 32, 3), np.uint8))
    sheet.write(3, load_model(weights))
    assert written[1].startswith(said)


def test_weights_that_are_nan_are_an_error(tmp_path, weights, capsys):
    model = build_model("lenet", len(CLASSES))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with safetensors.safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["cifar_dist"])
    broken = {name: value for name, value in about.items() if name not in ("sha256", "weights_digest")}
    (tmp_path / "model.safetensors").write_bytes(pack_weights(model, broken))
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    assert main(["predict", str(tmp_path), str(tmp_path / "x.png")]) == 2
    assert "the weights give probabilities that are nan" in capsys.readouterr().err


def test_synthetic_data_are_named(tmp_path, weights, pictures, capsys):
    with safetensors.safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["cifar_dist"])
    about = {name: value for name, value in about.items() if name not in ("sha256", "weights_digest")}
    (tmp_path / "model.safetensors").write_bytes(
        pack_weights(build_model("lenet", 4), {**about, "dataset": "synthetic"})
    )
    for weights_file, named in ((tmp_path, True), (weights, False)):
        assert main(["predict", str(weights_file), str(pictures)]) == 0
        assert ("SYNTHETIC DATA" in capsys.readouterr().err) == named


def test_it_works_in_one_process(run, pictures, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(pictures)[0] == 2


@pytest.mark.slow
def test_a_reader_that_goes_ends_it_quietly(weights, tmp_path):
    for i in range(2000):
        Image.new("L", (8, 8), i % 256).save(tmp_path / f"{i:04}.png")
    program = f"{sys.executable} -m cifar_dist predict {weights} {tmp_path} --json 2>err | head -2"
    done = subprocess.run(
        ["bash", "-c", f"cd {tmp_path}; export PYTHONPATH={ROOT}; {program}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[2] == "0" and done.stderr == ""
    assert (tmp_path / "err").read_text().count("\n") <= 1  # that nothing is calibrated
