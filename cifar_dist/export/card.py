"""The model card, README.md in the Hugging Face Hub's form: what was trained on what, and what was measured of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cifar_dist.export.check import Images
from cifar_dist.export.formats import FORMATS, Source
from cifar_dist.export.graph import input_is
from cifar_dist.export.write import Exported
from cifar_dist.record.lines import Result
from cifar_dist.record.reader import RunRecord
from cifar_dist.report.provenance import commands
from cifar_dist.scores.intervals import wilson_interval
from cifar_dist.text import count, percent, printable, size
from cifar_dist.training.weights import side_of

CARD_FILE = "README.md"
ON_THE_HUB = {"CIFAR-10": "uoft-cs/cifar10", "CIFAR-100": "uoft-cs/cifar100"}  # by what data/cifar.py calls them
WARNING = "**SYNTHETIC DATA: drawn shapes, not CIFAR-10. No number here says anything about CIFAR-10.**"
USE = {
    "onnx": """\
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
image = Image.open("image.png").convert("RGB").resize(({side}, {side}))
pixels = np.asarray(image).transpose(2, 0, 1)[None]  # (1, 3, {side}, {side}) uint8
(logits,) = session.run(["logits"], {"pixels": pixels})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(classes[logits[0].argmax()])
""",
    "pt2": """\
import json

import numpy as np
import torch
from PIL import Image

facts = {"about.json": ""}
model = torch.export.load("model.pt2", extra_files=facts).module()
image = Image.open("image.png").convert("RGB").resize(({side}, {side}))
pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]  # (1, 3, {side}, {side}) uint8
logits = model(pixels)
classes = json.loads(json.loads(facts["about.json"])["classes"])
print(classes[logits[0].argmax()])
""",
    "pth": """\
import torch
from cifar_dist.models import build_model

model = build_model({arguments})
model.load_state_dict(torch.load("model.pth", weights_only=True))
model.eval()
mean, std = torch.tensor({mean}).view(3, 1, 1), torch.tensor({std}).view(3, 1, 1)
# logits = model((pixels / 255 - mean) / std)
""",
    "safetensors": """\
python eval.py --checkpoint model.safetensors --data FOLDER
""",
}


def write_card(source: Source, record: RunRecord, tested: bool, files: Sequence[Exported], images: Images) -> str:
    """Return the card. `record` is the run's, empty where only its weights are at hand; `tested` is whether its test was of these."""
    about, test = source.about, record.summary.get("test") if tested else None
    synthetic = is_synthetic(record, about)
    sections = [
        f"# {about['model']} on {data_name(about, synthetic)}",
        *([WARNING] if synthetic else []),
        *_description(source, record),
        "## Results",
        *_results(record, test),
        "## Files",
        *_files(files, images),
        "## Use",
        f"Pixels are {input_is(about)}. `model.onnx` and `model.pt2` normalise them inside; the weights alone want them normalised. "
        "What comes out are logits (batch, classes); their softmax is probabilities.",
        *_use(about, files),
        "## How it was trained",
        *_training(record),
    ]
    header = yaml.safe_dump(front_matter(about, synthetic, test, files), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def is_synthetic(record: RunRecord, about: Mapping[str, Any]) -> bool:
    return bool(record.dataset.get("synthetic", about["dataset"] == "synthetic"))


def data_name(about: Mapping[str, Any], synthetic: bool) -> str:
    """Return what the data are called: of a folder only its name, as who reads the card has no such path."""
    if synthetic:
        return "synthetic data"
    name = str(about["dataset"])
    return name if name in ON_THE_HUB else f"class folders {_inline(Path(name).name or name)}"


def front_matter(
    about: Mapping[str, Any], synthetic: bool, test: Result | None, files: Sequence[Exported]
) -> dict[str, Any]:
    """Return what the Hub reads: https://huggingface.co/docs/hub/model-cards. Without a licence, which is the owner's to give."""
    official = ON_THE_HUB.get(about["dataset"])
    tags = [
        "image-classification",
        printable(about["model"]),
        *(["onnx"] if "onnx" in [f.format for f in files] else []),
    ]
    content: dict[str, Any] = {"library_name": "pytorch", "pipeline_tag": "image-classification"}
    content["tags"] = [*tags, *(["synthetic-data"] if synthetic else [])]
    if official:
        content["datasets"] = [official]
    if test:
        content["metrics"] = ["accuracy"]
        kind = official or ("synthetic" if synthetic else "imagefolder")
        name = data_name(about, synthetic).replace("`", "")
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": kind, "name": name, "split": "test"},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": test["accuracy"],
                    "name": f"accuracy on {test['num_images']:,} test images",
                }
            ],
        }
        content["model-index"] = [{"name": printable(about["model"]), "results": [result]}]
    return content


def _description(source: Source, record: RunRecord) -> list[str]:
    about, data = source.about, record.dataset
    number = sum(parameter.numel() for parameter in source.model.parameters())
    network = _inline(" ".join([about["model"], *about["model_options"]]))
    kept = "the moving average of its weights" if about["ema"] else "its weights"
    counts = ""
    if "test" in data:
        counts = f": {data['train']:,} training, {data['val']:,} validation and {data['test']:,} test images"
    classes = ", ".join(_inline(name) for name in about["classes"])
    return [
        f"The network {network} of `cifar_dist`, {number:,} parameters, trained by the recipe {_inline(about['recipe'])} "
        f"with seed {about['seed']}; {kept} after step {about['step']:,}.",
        f"Data: {data_name(about, is_synthetic(record, about))}{counts}. "
        f"SHA-256 of classes, pixels and labels: {_inline(about['fingerprint'])}.",
        f"Classes, in the order of the logits: {classes}.",
        f"Mean {numbers(about['mean'])} and standard deviation {numbers(about['std'])} per channel, of images in [0, 1].",
    ]


def _results(record: RunRecord, test: Result | None) -> list[str]:
    if not test:
        return ["No test of these weights is on record."]
    total, interval = test["num_images"], wilson_interval(test["accuracy"], test["num_images"])
    shares = f"{percent(test['accuracy'])} | {percent(interval.low)} to {percent(interval.high)}"
    rows = [
        "| split | images | accuracy | 95 % interval (Wilson) | top-2 accuracy | cross-entropy |",
        "|---|---|---|---|---|---|",
        f"| test | {total:,} | {shares} | {percent(test['top2_accuracy'])} | {test['loss']:.4f} |",
    ]
    notes = []
    if record.config.get("tta"):
        notes.append(
            "Measured on the mean over six views of each image, mirrored and moved by a pixel; the files see one."
        )
    if (precision := record.config.get("mixed_precision", "no")) != "no":
        notes.append(f"Measured with mixed precision ({_inline(precision)}); the files compute in float32.")
    return ["\n".join(rows), *notes]


def _files(files: Sequence[Exported], images: Images) -> list[str]:
    rows = ["| file | what | size | largest difference of a logit |", "|---|---|---|---|"]
    for one in files:
        form = FORMATS[one.format]
        rows.append(f"| `{form.file}` | {form.what} | {size(one.num_bytes)} | {one.difference.largest:.2g} |")
    reach = files[0].difference.scale if files else 0.0
    checked = f"Each was read back and compared with the model itself on {len(images.pixels)} {images.what}"
    return ["\n".join(rows), f"{checked}; the logits reach {reach:.3g}."]


def _use(about: Mapping[str, Any], files: Sequence[Exported]) -> list[str]:
    arguments = [
        about["model"],
        len(about["classes"]),
        *([list(about["model_options"])] if about["model_options"] else []),
    ]
    words = {
        "arguments": ", ".join(map(repr, arguments)),
        "mean": str(list(about["mean"])),
        "std": str(list(about["std"])),
        "side": str(side_of(about)),
    }
    parts = []
    for one in files:
        code = USE[one.format]
        for name, value in words.items():
            code = code.replace(f"{{{name}}}", value)
        parts.append(
            f"`{FORMATS[one.format].file}`:\n\n{_fenced(code, 'sh' if one.format == 'safetensors' else 'python')}"
        )
    return parts


def _training(record: RunRecord) -> list[str]:
    if not record.starts:
        return ["The weights came without their run, so the command that trained them is not known."]
    start = record.starts[-1]
    packages = "".join(f", {name} {version}" for name, version in (start.get("packages") or {}).items() if version)
    where = f"{count(start.get('world_size', 1), 'process')} on {start.get('device')}, Python {start.get('python')}{packages}."
    return [_fenced("\n".join(commands(record)) + "\n", "sh"), _plain(where)]


def numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _plain(text: str) -> str:
    """Return somebody else's text as one line that Markdown takes as text."""
    line = " ".join(printable(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in line)


def _inline(text: str) -> str:
    """Return somebody else's words as code within a line, or a cell."""
    return f"`{' '.join(printable(str(text)).split()).replace('`', chr(39)).replace('|', '/')}`"


def _fenced(code: str, language: str) -> str:
    return f"```{language}\n{printable(code).replace('```', chr(39) * 3)}```"
