"""`python -m cifar_dist export RUN`: a trained model as ONNX, torch.export program, state_dict and safetensors, with a model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.cli import command_parser
from cifar_dist.config import default_data_dir, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED
from cifar_dist.export.card import CARD_FILE, is_synthetic, write_card
from cifar_dist.export.check import TOLERANCE, images_to_check
from cifar_dist.export.formats import FORMATS, Source, check_formats, missing
from cifar_dist.export.hub import check_repository, push
from cifar_dist.export.write import write_files
from cifar_dist.files import write_atomically
from cifar_dist.options import add_flags
from cifar_dist.record.folder import CHECKPOINTS
from cifar_dist.record.reader import RunRecord, is_run, read_run
from cifar_dist.text import size
from cifar_dist.training.weights import load_weights, weights_path


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export`."""

    checkpoint: str = option("", "the same (default: none, required)")
    format: tuple[str, ...] = option(
        (),
        f"any of {', '.join(f'{name} ({form.what})' for name, form in FORMATS.items())} "
        "(default: all; without onnx where its packages aren't installed)",
    )
    output_dir: str = option("", "folder to write into (default: export/ in the run folder, or beside the weights)")
    data_dir: str = option(
        "", "where decoded images to check with are kept (default: the run's own); nothing is downloaded"
    )
    push: str = option(
        "", "upload the folder to this model repository of the Hugging Face Hub, USER/NAME (default: nowhere)"
    )

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("which model? Give a run folder, one of its checkpoints/step_*, or a weights file")
        check_formats(self.format)
        if self.push:
            check_repository(self.push)
        if self.output_dir and Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise UserError(f"--output-dir {self.output_dir} is a file; give a folder's name")


def main(argv: Sequence[str]) -> int:
    """Write, check and perhaps upload; raises `UserError`."""
    parser = command_parser("export", usage="%(prog)s RUN [options]")
    parser.add_word("checkpoint", "RUN", "a run folder, one of its checkpoints/step_*, or a weights file")
    add_flags(parser, ExportOptions)
    options, console = ExportOptions(**parser.parse(argv)), Console(speaks=True)
    weights = weights_path(options.checkpoint)
    model, about = load_weights(weights)
    source, record = Source(model, about), run_of(weights)
    data_dir = options.data_dir or record.config.get("data_dir") or default_data_dir()
    folder = Path(options.output_dir) if options.output_dir else default_folder(weights)
    console.synthetic_note(is_synthetic(record, about))
    images = images_to_check(about, Path(data_dir))
    console.say(
        f"each file is read back and compared with the model on {len(images.pixels)} {images.what}{f' ({images.why})' * bool(images.why)}"
    )
    files = write_files(source, folder, chosen_formats(options.format, console), images)
    for one in files:
        path, found = folder / FORMATS[one.format].file, one.difference
        console.say(
            f"{path}  {size(one.num_bytes)}, largest difference {found.largest:.2g} of logits up to {found.scale:.3g} "
            f"(allowed: {TOLERANCE * found.scale:.2g})"
        )
    # A run's test was of the weights that it kept, which are the ones in its own folder.
    tested = weights.resolve().parent == record.path and record.summary.get("best_step") == about["step"]
    card = write_card(source, record, tested, files, images)
    write_atomically(folder / CARD_FILE, card.encode(errors="replace"))
    console.say(f"{folder / CARD_FILE}  the model card")
    for left in [f.file for name, f in FORMATS.items() if name not in [one.format for one in files]]:
        if (folder / left).exists():
            console.warn(f"{folder / left} is of an earlier export, and not in the card")
    if options.push:
        names = [CARD_FILE, *(FORMATS[one.format].file for one in files)]
        console.say(f"uploaded to {push(folder, names, options.push)}")
    return FINISHED


def chosen_formats(given: Sequence[str], console: Console) -> list[str]:
    """Return the formats to write: the given ones, or all that can be; says which can't."""
    if given:
        return list(given)
    for name in FORMATS:
        if packages := missing(name):
            console.warn(
                f"no {FORMATS[name].file}: it needs {' and '.join(packages)}; pip install {' '.join(packages)}"
            )
    return [name for name in FORMATS if not missing(name)]


def run_of(weights: Path) -> RunRecord:
    """Return the record of the run that a weights file lies in, or in one of whose checkpoints; empty where there is none."""
    weights = weights.resolve()
    folders = [weights.parent, *(weights.parents[2:3] if weights.parents[1].name == CHECKPOINTS else [])]
    found = next(filter(is_run, folders), None)
    return read_run(found) if found else RunRecord(weights.parent, "broken", "there is only its weights file")


def default_folder(weights: Path) -> Path:
    """Return `export` in the run folder; for a checkpoint, which a run may remove, `export-step_NUMBER`."""
    step = weights.resolve().parent
    if step.parent.name == CHECKPOINTS and is_run(step.parent.parent):
        return step.parent.parent / f"export-{step.name}"
    return weights.parent / "export"
