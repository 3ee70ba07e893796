"""What the files of a run folder hold, as types that who writes and who reads them share.

A reader may meet a run that is only begun, or of another version, so of config.json and summary.json any key may be missing.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

Options = dict[str, Any]  # by field of TrainConfig
Kind = Literal["train", "val", "test"]


class TrainLine(TypedDict):
    """A line of metrics.jsonl: the mean over the steps since the line before; lr and gradient are the last step's."""

    kind: Literal["train"]
    step: int  # optimizer steps done
    epoch: float
    samples: int  # images trained on until then, over all ranks
    loss: float  # nats per image
    accuracy: float | None  # in [0, 1]; None of a model that predicts nothing while it trains
    lr: float
    gradient_norm: float | None  # before clipping; None where it overflowed
    images_per_second: float
    seconds: float  # of training, evaluation and checkpoints, over all starts


class Result(TypedDict):
    """What an evaluation found."""

    accuracy: float
    top2_accuracy: float
    loss: float  # cross-entropy, nats per image
    num_images: int
    per_class_accuracy: dict[str, float | None]  # in the order of the labels; None for a class without images
    quantisation_error: NotRequired[float]  # of a map: see `Som.map_errors`
    topographic_error: NotRequired[float]  # in [0, 1]


class Counts(TypedDict):
    """The integers that everything else of a result derives from."""

    confusion_matrix: list[list[int]]  # row = true class, column = predicted class
    second_guess_correct: list[int]  # images of each true class whose second guess was right


class CountedResult(Result, Counts):
    """The result of a test, as summary.json keeps it."""


class Digests(TypedDict, total=False):
    """What the state after a step comes down to, on rank 0: see record/digest.py."""

    weights_digest: str
    optimizer_digest: str


class EvalLine(Result):
    """A line of metrics.jsonl about the weights after some step."""

    kind: Literal["val", "test"]
    step: int
    epoch: float
    samples: int
    seconds: float


class ValLine(EvalLine, Digests):
    """A validation's line."""


Line = TrainLine | EvalLine | ValLine


def fixed(lines: Sequence[Line]) -> tuple[int, str]:
    """Return how many lines there are, and the SHA-256 of all in them but what a clock says."""
    total = hashlib.sha256()
    for line in lines:
        rest = {name: value for name, value in line.items() if name not in ("seconds", "images_per_second")}
        total.update(json.dumps(rest, sort_keys=True).encode() + b"\n")
    return len(lines), total.hexdigest()


class DatasetRecord(TypedDict, total=False):
    """What a run was trained on."""

    name: str
    fingerprint: str
    synthetic: bool
    classes: list[str]
    train: int  # images of each split
    val: int
    test: int
    mean: list[float]  # of the training images in [0, 1], per channel
    std: list[float]


class Start(TypedDict, total=False):
    """What else a result may depend on, of one of the times a run was started."""

    from_step: int
    started: str
    command: str
    git_commit: str | None
    python: str
    packages: dict[str, str | None]
    host: str
    device: str
    world_size: int
    threads_per_process: int
    launch: str | None  # torchrun's name for the launch, the same after it has restarted its workers
    kernels: dict[str, Any]  # which of the kernels that a processor offers are used: they may round differently
    num_parameters: int


class ConfigRecord(TypedDict, total=False):
    """config.json."""

    config: Options
    dataset: DatasetRecord
    starts: list[Start]
    further_from: int  # the step from which on a copy of another run was trained further
    early_before: int  # images that the other run saw in the first half of its epochs


class TrainResult(TypedDict):
    """Training since the last validation but one."""

    loss: float
    accuracy: float | None


class Gap(TypedDict):
    """Training minus validation accuracy, and the epoch at which over-fitting begins."""

    accuracy: float | None
    opens_at_epoch: float | None


class Summary(TypedDict, total=False):
    """summary.json."""

    status: str
    model: str
    recipe: str
    dataset: str
    synthetic: bool
    step: int
    total_steps: int
    macs_per_sample: int  # multiply-accumulates to train on one image, the mean over the whole run
    epoch: float
    seconds: float
    best_step: int | None
    val: Result | None  # of the weights that were kept
    train: TrainResult | None
    generalisation_gap: Gap
    test: CountedResult | None
    signal: str
    error: str
