"""Exported files against the model itself, read by other libraries and by processes that don't know this package."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.runs import CLASSES
from huggingface_hub import ModelCard
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.data.synthetic import draw_images
from cifar_dist.export import check, formats
from cifar_dist.export.check import Images, images_to_check
from cifar_dist.export.formats import FORMATS, Source
from cifar_dist.export.write import write_files
from cifar_dist.models import MODELS, build_model
from cifar_dist.training.weights import load_weights

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
QUICK = ("lenet", "som", "zhang", "mlp", "resnet20")  # of each kind one; others take up to half a minute
DEEPER = ("resnet32", "resnet44", "resnet56", "resnet110", "resnet34")  # of the same blocks as one that is tried
EVERY_MODEL = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS if name not in DEEPER
]
ALONE = [sys.executable, "-I", "-c"]  # neither this folder nor PYTHONPATH is on the path


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_model(name: str) -> Source:
    """A model with random weights and running statistics that differ from fresh ones."""
    torch.manual_seed(0)
    model = build_model(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    if name == "som":
        model.wins.copy_(torch.randint(0, 20, model.wins.shape))
    about = {"model": name, "model_options": [], "classes": [f"class {i}" for i in range(10)], "mean": MEAN, "std": STD}
    return Source(model, about | {"data": "synthetic"})


def drawn(number: int = 7) -> Images:
    return Images(torch.from_numpy(draw_images(number, seed=3)[0]), "drawn images")


def by_hand(source: Source, pixels: torch.Tensor) -> np.ndarray:
    """What the model says of pixels that are normalised as the definition has it, in float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        return source.model(((pixels.double() / 255 - mean) / std).float()).numpy()


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_computes_the_same_in_every_format_for_one_image_and_for_three(name, tmp_path):
    source, images = random_model(name), drawn()
    written = write_files(source, tmp_path / "out", list(FORMATS), images)
    assert [one.format for one in written] == list(FORMATS)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    for number in (1, 3):
        expected = by_hand(source, images.pixels[:number])
        scale = np.abs(expected).max()
        (logits,) = session.run(["logits"], {"pixels": images.pixels[:number].numpy()})
        assert logits.shape == (number, 10) and logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= 1e-4 * scale
        assert np.abs(program(images.pixels[:number]).detach().numpy() - expected).max() <= 1e-4 * scale


@pytest.mark.parametrize("name", ["lenet", "som"])
def test_an_onnx_file_says_what_goes_in_and_what_comes_out(name, tmp_path):
    source = random_model(name)
    write_files(source, tmp_path / "out", ["onnx"], drawn())
    model = onnx.load(tmp_path / "out/model.onnx")
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"pixels": ["batch", 3, 32, 32], "logits": ["batch", 10]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == source.about["classes"]
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == (list(MEAN), list(STD))
    assert facts["output"].startswith("logits: float32 (batch, 10)")


def test_a_file_that_computes_something_else_is_an_error_and_leaves_what_was_there(tmp_path, monkeypatch):
    source = random_model("lenet")
    write_files(source, tmp_path / "out", ["pt2", "pth"], drawn())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def other(source: Source) -> bytes:
        changed = build_model("lenet")
        changed.load_state_dict(source.state())
        with torch.no_grad():
            changed.fc3.bias += 1e-3
        return formats.dump_pt2(Source(changed.eval(), source.about))

    monkeypatch.setitem(FORMATS, "pt2", FORMATS["pt2"]._replace(dump=other))
    with pytest.raises(
        formats.UserError, match=r"the pt2 file of lenet is off by 0\.001 where logits reach 0\.\d+, more"
    ):
        write_files(source, tmp_path / "out", ["pth", "pt2"], drawn())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_the_exporter_refuses_is_a_line_with_the_reason(tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, 10:20]

    source = Source(Branching(), random_model("lenet").about)
    with pytest.raises(
        formats.UserError, match=r"lenet can't be exported as pt2 .*; use another --format than pt2"
    ) as error:
        write_files(source, tmp_path / "new/out", ["pt2"], drawn())
    assert "\n" not in str(error.value)
    assert list((tmp_path / "new").iterdir()) == []


# ---- the command, on a run


@pytest.fixture
def run(train):
    return train("--epochs", "1").folder


def export(run, *words: str) -> int:
    return main(["export", str(run), *words])


def test_a_runs_export_is_read_by_processes_that_know_nothing_of_this_package(run, data_dir, capsys):
    assert export(run) == 0
    printed = capsys.readouterr().out
    assert "compared with the model on 100 test images of the data it was trained on\n" in printed
    assert printed.count("largest difference") == 4
    folder = run / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *(f"model.{e}" for e in sorted(FORMATS))]
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()

    model, about = load_weights(run / "model.safetensors")
    image = images_to_check(about, data_dir).pixels[40]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "image.png")
    normal = (image.float() / 255 - torch.tensor(about["mean"]).view(3, 1, 1)) / torch.tensor(about["std"]).view(
        3, 1, 1
    )
    best = CLASSES[model(normal[None]).argmax()]
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks[:2]:  # ONNX and torch.export
        code = f"{block}\nimport sys\nassert not any(name.startswith('cifar_dist') for name in sys.modules)"
        done = subprocess.run([*ALONE, code], cwd=folder, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == (f"{best}\n", 0), done.stderr
    code = "import torch; print(sorted(torch.load('model.pth', weights_only=True)))"
    keys = subprocess.run([*ALONE, code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert keys == f"{sorted(model.state_dict())}\n"
    again = build_model("lenet", 4)
    again.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    assert torch.equal(again(normal[None]), model(normal[None]))


def test_the_card_says_what_the_hub_reads_and_nothing_that_was_not_measured(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert export(run.name, "--format", "pth") == 0
    card = ModelCard.load(run / "export/README.md")
    test = json.loads((run / "summary.json").read_text())["test"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", test["accuracy"])
    assert (result.dataset_type, result.dataset_split, result.task_type) == (
        "imagefolder",
        "test",
        "image-classification",
    )
    assert card.data.license is None and card.data.library_name == "pytorch" and "lenet" in card.data.tags
    assert f"| test | 100 | {100 * test['accuracy']:.2f} % |" in card.text
    assert "python train.py" in card.text and "SYNTHETIC" not in card.text
    assert "| `model.onnx` |" not in card.text and "onnx" not in card.data.tags


def test_files_are_checked_on_images_from_the_whole_split(run, folders, data_dir, monkeypatch):
    """A folder's images are sorted by class: its first ones are all of one."""
    monkeypatch.setattr(check, "NUM_IMAGES", 4)
    _, about = load_weights(run / "model.safetensors")
    paths = [path for name in CLASSES for path in sorted((folders / "test" / name).iterdir())]
    expected = np.stack([np.asarray(Image.open(paths[place])).transpose(2, 0, 1) for place in (0, 33, 66, 99)])
    assert (images_to_check(about, data_dir).pixels.numpy() == expected).all()


def test_a_checkpoint_goes_into_a_folder_of_its_own_without_the_test_of_other_weights(run):
    (step,) = list((run / "checkpoints").glob("step_*"))
    assert export(step, "--format", "pth") == 0
    card = ModelCard.load(run / f"export-{step.name}/README.md")
    assert card.data.eval_results is None
    assert "No test of these weights is on record." in card.text


def test_images_that_are_not_here_are_neither_downloaded_nor_missed(run, tmp_path, capsys):
    assert export(run, "--data-dir", str(tmp_path / "elsewhere"), "--format", "safetensors", "pth") == 0
    assert "on 128 synthetic images (--data " in capsys.readouterr().out
    assert "on 128 synthetic images; the logits" in (run / "export/README.md").read_text()
    assert not (tmp_path / "elsewhere").exists()


def test_synthetic_data_are_said_to_be(train, tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_dist.data.SYNTHETIC_SIZES", {"train": 200, "test": 100})
    folder = train("--data", "synthetic", "--epochs", "1", "--data-dir", str(tmp_path / "data"), name="drawn").folder
    assert export(folder, "--format", "pth") == 0
    card = ModelCard.load(folder / "export/README.md")
    assert "SYNTHETIC DATA: drawn shapes, not CIFAR-10" in card.text
    assert "synthetic-data" in card.data.tags and card.data.datasets is None
    assert card.data.eval_results[0].dataset_name == "synthetic data"


def test_without_its_packages_onnx_is_left_out_with_a_line_and_refused_when_asked_for(run, capsys, monkeypatch):
    find_spec = formats.importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find_spec(name)
    )
    assert export(run) == 0
    assert "no model.onnx: it needs onnx and onnxscript and onnxruntime; pip install onnx" in capsys.readouterr().out
    assert not (run / "export/model.onnx").exists() and (run / "export/model.pt2").exists()
    assert export(run, "--format", "onnx") == 2
    assert capsys.readouterr().err.startswith(
        "error: --format onnx needs onnx and onnxscript and onnxruntime; pip install"
    )


class FakeApi:
    """What of huggingface_hub an upload uses, without a network."""

    calls: tuple[tuple[str, object], ...] = ()
    error: Exception | None = None

    def create_repo(self, repo_id, *, exist_ok):
        if self.error:
            raise self.error
        type(self).calls += (("create", (repo_id, exist_ok)),)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        sent = sorted(path.name for path in folder_path.iterdir() if path.name in allow_patterns)
        type(self).calls += (("upload", (repo_id, sent)),)


def test_a_push_uploads_what_was_written_and_nothing_else(run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", ())
    (run / "export").mkdir()
    (run / "export/private.txt").write_text("mine")
    assert export(run, "--format", "pth", "--push", "jane/lenet") == 0
    assert FakeApi.calls == (("create", ("jane/lenet", True)), ("upload", ("jane/lenet", ["README.md", "model.pth"])))
    assert "uploaded to https://huggingface.co/jane/lenet" in capsys.readouterr().out


def test_a_push_that_fails_is_a_line_and_the_files_stay(run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", ConnectionError("no route\nto host"))
    assert export(run, "--format", "pth", "--push", "jane/lenet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --push jane/lenet failed (ConnectionError: no route to host)")
    assert (run / "export/model.pth").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which model? Give a run folder, one of its checkpoints/step_*, or a weights file"),
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--format", "onxx"], "unknown format 'onxx'. Did you mean 'onnx'?"),
        (["RUN", "--format", "pth", "pth"], "--format pth pth names one twice; once is enough"),
        (["RUN", "--push", "lenet"], "--push 'lenet' is not USER/NAME"),
        (["RUN", "--output-dir", "RUN/config.json"], "is a file; give a folder's name"),
        (["RUN/config.json"], "is not a weights file"),
    ],
)
def test_a_wrong_input_is_one_line_and_status_2(tmp_path, capsys, words, message):
    (tmp_path / "config.json").write_text("{}")
    assert main(["export", *(word.replace("RUN", str(tmp_path)) for word in words)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and message in line and captured.out == ""
