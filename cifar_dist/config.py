"""The whole configuration of a training run: one frozen dataclass, one flag a field, no other source of defaults."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from cifar_dist.errors import UserError
from cifar_dist.text import seconds_of


class Bound(NamedTuple):
    """What a number must be."""

    text: str
    holds: Callable[[float], bool]


POSITIVE = Bound("greater than 0", lambda x: x > 0)
NOT_NEGATIVE = Bound("0 or greater", lambda x: x >= 0)
SEED = Bound("in [0, 2**63)", lambda x: 0 <= x < 2**63)
SHARE = Bound("in [0, 1)", lambda x: 0 <= x < 1)
SIDE = 32  # pixels: of CIFAR's images, and of all others unless --image-size says otherwise
SMALLEST = 20  # side; below, batch norm may see a single value
EARLY_SIZE = Bound(f"{SMALLEST} or greater", lambda x: x >= SMALLEST)
# Evaluation takes 500 images at once: at 128 pixels, 2 GB for each layer of 64 channels that keeps the size.
IMAGE_SIZE = Bound(f"in [{SMALLEST}, 128]", lambda x: SMALLEST <= x <= 128)
FOLDS = Bound("2 or greater", lambda x: x >= 2)


def option(
    default: Any,
    help: str,
    *,
    must_be: Bound | None = None,
    may_change: bool = False,
    only_with: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """Declare one field and its flag.

    `may_change`: a resumed run may use another value: it decides how the work is done, as the number of processes does.
    `only_with`: (field, values) without which the flag has no effect, so giving it is an error.
    """
    return field(
        default=default,
        metadata={"help": help, "must_be": must_be, "may_change": may_change, "only_with": only_with},
    )


def default_data_dir() -> str:
    """Return one folder for all that a user does, in XDG_CACHE_HOME; `data` where an earlier version has put something there."""
    if Path("data/cache").is_dir() or Path("data/cifar-10-python.tar.gz").is_file():
        return "data"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):  # a user without a home
        return str((caches if caches.is_absolute() else Path("~/.cache").expanduser()) / "cifar_dist")
    return "data"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a recipe or the command line may set. Units are in the name or the help."""

    model: str = option("resnet20", "which network, of those listed below")
    model_options: tuple[str, ...] = option((), "KEY=VALUE settings of the model, such as dropout=0.2; none for none")
    recipe: str = option("default", "named settings that the other options override, of those listed below")

    data: str = option(
        "cifar10",
        "cifar10, cifar100, synthetic, auto (cifar10 if there is one, else synthetic), or a folder of train/ and test/CLASS/*",
    )
    image_size: int | None = option(
        None,
        "side in pixels that the square in an image's middle is resized to, once (default: refuse images that aren't 32x32)",
        must_be=IMAGE_SIZE,
    )
    data_dir: str = option(default_data_dir(), "where downloads and decoded caches are kept", may_change=True)
    val_fraction: float = option(
        0.1,
        "share of the training images held out for validation; 0 trains on all of them and keeps the last weights",
        must_be=SHARE,
    )
    test_fraction: float | None = option(
        None, "pool all images and draw this share of them as test images (default: the set's own)", must_be=SHARE
    )
    folds: int | None = option(
        None, "cross-validate: cut the training images into this many folds, in place of --val-fraction", must_be=FOLDS
    )
    fold: int | None = option(None, "which fold is held out for validation, from 0", must_be=NOT_NEGATIVE)
    split_seed: int = option(0, "seed of the splits and folds, so that runs with other --seed share them", must_be=SEED)
    limit_train: int | None = option(None, "train on this many images only, classes balanced", must_be=POSITIVE)
    limit_eval: int | None = option(
        None, "validate and test on this many images only, classes balanced", must_be=POSITIVE
    )
    normalize: Literal["mean_std", "half", "none"] = option(
        "mean_std", "inputs: (x - mean) / std of the training images; half: x in [-1, 1]; none: x in [0, 1]"
    )
    augment: tuple[str, ...] = option(("crop", "flip"), "augmentations in order, of those listed below; none for none")

    early_size: int | None = option(
        None,
        "progressive resizing: side in pixels of the images of the first half of the epochs (default: as they are)",
        must_be=EARLY_SIZE,
    )

    epochs: int | None = option(None, "passes over the training images", must_be=POSITIVE)
    steps: int | None = option(None, "optimizer steps, in place of --epochs", must_be=POSITIVE)
    batch_size: int = option(128, "images per optimizer step, over all processes together", must_be=POSITIVE)
    micro_batch_size: int | Literal["auto"] | None = option(
        None,
        "most images a process holds at once; more are accumulated; auto: as many as fit (default: all of its share)",
        may_change=True,
        must_be=POSITIVE,
    )
    drop_last: bool = option(False, "leave out an epoch's last batch when it is short")
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = option(
        "sgd", "sgd, adam, adamw, or muon: for convolutions, with sgd for the rest"
    )
    lr: float = option(0.1, "peak learning rate", must_be=POSITIVE)
    momentum: float = option(0.9, "momentum of SGD", only_with=("optimizer", ("sgd", "muon")), must_be=NOT_NEGATIVE)
    nesterov: bool = option(False, "Nesterov's momentum", only_with=("optimizer", ("sgd",)))
    bias_lr_per_image: float = option(
        0.001,
        "peak learning rate of biases and norms over --batch-size; --lr is that of convolutions",
        only_with=("optimizer", ("muon",)),
        must_be=POSITIVE,
    )
    head_lr_per_image: float = option(
        0.001,
        "peak learning rate of linear layers over --batch-size",
        only_with=("optimizer", ("muon",)),
        must_be=POSITIVE,
    )
    weight_decay: float = option(
        0.0,
        "weight decay (L2 for sgd and adam, decoupled for adamw; for muon a share of each weight but the convolutions')",
        must_be=NOT_NEGATIVE,
    )
    decay_all: bool = option(
        False,
        "decay biases and batch-norm parameters too, not only weights of two or more dimensions",
        only_with=("optimizer", ("sgd", "adam", "adamw")),
    )
    label_smoothing: float = option(0.0, "probability spread evenly over all classes, in [0, 1)", must_be=SHARE)
    max_grad_norm: float | None = option(
        None, "clip the gradient of the global batch to this L2 norm", must_be=POSITIVE
    )
    ema_decay: float | None = option(
        None, "evaluate and keep an exponential moving average of the weights with this decay", must_be=SHARE
    )
    schedule: Literal["constant", "step", "multistep", "linear", "cosine", "one_cycle"] = option(
        "constant", "learning-rate schedule over the run"
    )
    warmup: float = option(0.0, "share of the run with a linearly rising learning rate, in [0, 1)", must_be=SHARE)
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "shares of the run at which multistep multiplies the lr", only_with=("schedule", ("multistep",))
    )
    step_epochs: int = option(
        30, "epochs between two multiplications of the lr by step", only_with=("schedule", ("step",)), must_be=POSITIVE
    )
    schedule_start: int = option(
        0,
        "step at which the schedule begins: of a run that is trained further, where it goes on; 0 for one over all of it",
        must_be=NOT_NEGATIVE,
    )
    lr_factor: float = option(
        0.1,
        "what step and multistep multiply the lr by",
        only_with=("schedule", ("step", "multistep")),
        must_be=POSITIVE,
    )

    exact_shards: int | None = option(
        None,
        "the same bits on any number of processes up to this one: a batch in so many parts, summed in one order",
        must_be=POSITIVE,
    )
    batch_norm: Literal["process", "sync"] = option(
        "process", "statistics over: each process's micro-batch (or exact shard), or all processes together"
    )

    init_from: str | None = option(
        None, "begin with the weights of this run or file, as far as they fit: a head for other classes is new"
    )
    seed: int = option(0, "seed of initial weights, order, augmentation and dropout", must_be=SEED)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = option(
        "no",
        "arithmetic of the forward and backward pass; auto is bf16 where all processors compute in it (default: the launcher's)",
    )
    gradient_compression: Literal["no", "bf16"] = option(
        "no", "how processes send one another gradients; bf16 halves the bytes, and rounds"
    )
    device: Literal["auto", "cpu", "gpu"] = option("auto", "auto takes GPUs where there are any", may_change=True)
    threads: int | None = option(
        None,
        "CPU threads per process (default: the cores shared out, or fewer for steps too small to share)",
        may_change=True,
        must_be=POSITIVE,
    )
    compile: bool = option(
        False, "compile the model: faster steps after a minute or so, most of which the next run saves (torch.compile)"
    )
    capture: Literal["auto", "on", "off"] = option(
        "auto",
        "capture a whole step as a CUDA graph, and replay it: small models' steps are faster; auto does it on one GPU",
        may_change=True,
    )
    deterministic: bool = option(False, "only deterministic GPU kernels, slower (a CPU is deterministic anyway)")

    output_dir: str | None = option(None, "the run folder (default: runs/MODEL-RECIPE-TIME)", may_change=True)
    resume: str = option(
        "auto",
        "auto: go on if the run folder has a checkpoint; never: start over; or a run or checkpoint folder",
        may_change=True,
    )
    eval_every: int | None = option(
        None, "epochs between two validations (default: 1, or a 50th of the run where that is more)", must_be=POSITIVE
    )
    patience: int | None = option(
        None, "end after so many validations without a better one, test the best weights", must_be=POSITIVE
    )
    tta: bool = option(
        False, "test-time augmentation: test with the mean over six views of an image, mirrored and moved by a pixel"
    )
    test: bool = option(True, "evaluate on the test images, once, at the end", may_change=True)
    log_every: int = option(50, "steps between two training lines, counted from each epoch's start", must_be=POSITIVE)
    checkpoint_minutes: float = option(
        5.0,
        "a checkpoint at least this often, besides one after each validation",
        may_change=True,
        must_be=NOT_NEGATIVE,
    )
    max_time: str | None = option(
        None,
        "stop with a checkpoint before so much time is over, start and end included: 90m, 2h, 1:30:00",
        may_change=True,
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best", may_change=True, must_be=POSITIVE)
    keep_every: int | None = option(
        None,
        "keep those for good, too, that end an epoch which this divides, to verify parts of the run later",
        may_change=True,
        must_be=POSITIVE,
    )

    wandb: Literal["auto", "online", "offline", "disabled"] = option(
        "auto",
        "Weights & Biases; auto: online where a key works, else offline (WANDB_MODE beats auto)",
        may_change=True,
    )
    wandb_group: str | None = option(
        None, "group of the run (default: a name for its configuration, which its other seeds share)", may_change=True
    )
    wandb_tags: tuple[str, ...] = option((), "tags of the run; none for none", may_change=True)
    tensorboard: bool = option(False, "write event files for TensorBoard too, into the run folder", may_change=True)
    wandb_weights: bool = option(False, "upload the best weights as an artifact", may_change=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        for holds, message in self._rules():
            if not holds:
                raise UserError(message)

    def _rules(self) -> list[tuple[bool, str]]:
        """Rules that join several options: (what must hold, what to say when it doesn't)."""
        exact = self.exact_shards is not None
        rising = list(self.milestones) == sorted(set(self.milestones)) and all(0 < m < 1 for m in self.milestones)
        return [
            (
                self.epochs is None or self.steps is None,
                f"--epochs {self.epochs} and --steps {self.steps} both set the length; use one",
            ),
            (
                self.epochs is not None or self.steps is not None,
                "the length of the run is not set; use --epochs or --steps",
            ),
            (
                (self.folds is None) == (self.fold is None) and (self.fold or 0) < (self.folds or 1),
                f"--folds {self.folds} --fold {self.fold}: one run holds out one fold, --fold 0 to {(self.folds or 5) - 1} "
                f"of --folds {self.folds or 5}; python -m cifar_dist sweep runs them all",
            ),
            (
                self.model != "som" or not (self.label_smoothing or {"mixup", "cutmix"} & set(self.augment)),
                "--model som sees no labels while it trains; leave --label-smoothing, mixup and cutmix out",
            ),
            (
                self.early_size is None or self.early_size < self.side,
                f"--early-size must be in [{SMALLEST}, {self.side}), smaller than the images, got {self.early_size}",
            ),
            (
                self.patience is None or self.val_fraction > 0 or self.folds is not None,
                f"--patience {self.patience} looks at validation, of which --val-fraction 0 has none; leave one out",
            ),
            (
                self.max_time is None or seconds_of(self.max_time) is not None,
                f"--max-time must be a time such as 90m, 2h or 1:30:00, got {self.max_time}",
            ),
            (rising, f"--milestones must rise within (0, 1), got {' '.join(map(str, self.milestones))}"),
            (not self.nesterov or self.momentum > 0, "--nesterov needs a --momentum greater than 0"),
            (
                not exact or self.micro_batch_size is None,
                "with --exact-shards the shards are the micro-batches; leave --micro-batch-size out",
            ),
            (
                not exact or self.gradient_compression == "no",
                "--gradient-compression bf16 has no effect with --exact-shards, whose sums are in float32; leave one out",
            ),
            (
                not exact or self.batch_norm == "process",
                "--batch-norm sync has no effect with --exact-shards, where each shard is normalised; leave one out",
            ),
            (
                (self.exact_shards or 1) <= self.batch_size,
                f"--batch-size {self.batch_size} can't be cut into --exact-shards {self.exact_shards}; use fewer",
            ),
        ]

    @property
    def side(self) -> int:
        """The side of the images, in pixels."""
        return self.image_size or SIDE

    @property
    def most_at_once(self) -> int | None:
        """--micro-batch-size as a number; None until `auto` is one."""
        return None if self.micro_batch_size == "auto" else self.micro_batch_size

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values (tuples as lists)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> "TrainConfig":
        """Return what `to_dict` wrote, perhaps in another version: names that aren't known any more are left out.

        Raises `UserError` for a value that no version wrote.
        """
        known = {f.name for f in fields(cls)}
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k in known}
        for name in ("bias_lr", "head_lr"):  # until November 2026, for the whole batch
            if name in recorded and f"{name}_per_image" not in recorded:
                with suppress(TypeError, KeyError, ZeroDivisionError):
                    options[f"{name}_per_image"] = recorded[name] / recorded["batch_size"]
        if recorded.get("batch_norm") == "virtual":
            options |= {"batch_norm": "process", "exact_shards": recorded.get("virtual_shards")}
        hints = get_type_hints(cls)
        for name, value in options.items():
            if not fits(value, hints[name]):
                raise UserError(f"config.json is damaged: it has {flag(name)} {value!r}; use another --output-dir")
        return cls(**options)


GROUPS = {  # of --help: every field once, the everyday ones first
    "everyday options": (
        *("model", "recipe", "data", "epochs", "batch_size", "lr", "augment", "seed", "init_from", "patience"),
        *("max_time", "output_dir", "resume"),
    ),
    "model": ("model_options", "batch_norm", "exact_shards", "ema_decay"),
    "data": (
        *("data_dir", "val_fraction", "test_fraction", "folds", "fold", "split_seed", "limit_train", "limit_eval"),
        *("image_size", "normalize", "early_size"),
    ),
    "optimisation": (
        *("optimizer", "momentum", "nesterov", "bias_lr_per_image", "head_lr_per_image", "weight_decay", "decay_all"),
        *("label_smoothing", "max_grad_norm", "steps", "drop_last", "schedule", "warmup", "milestones", "step_epochs"),
        *("lr_factor", "schedule_start"),
    ),
    "devices and speed": (
        *(
            "device",
            "threads",
            "micro_batch_size",
            "mixed_precision",
            "gradient_compression",
            "compile",
            "capture",
            "deterministic",
        ),
    ),
    "evaluation": ("eval_every", "tta", "test"),
    "record": (
        *("log_every", "checkpoint_minutes", "keep_checkpoints", "keep_every"),
        *("wandb", "wandb_group", "wandb_tags", "wandb_weights", "tensorboard"),
    ),
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an option."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in inner
    if kind is tuple:
        return isinstance(value, tuple) and all(fits(part, inner[0]) for part in value)
    if kind in (UnionType, Union):
        return any(fits(value, one) for one in inner)
    return type(value) in ((int, float) if hint is float else (hint,)) and not (
        type(value) is int and abs(value) >= 2**63
    )


def check_bounds(options: Any) -> None:
    """Raise `UserError` for the first number of a dataclass of options that is out of bounds."""
    for f in fields(options):
        value, bound = getattr(options, f.name), f.metadata["must_be"]
        if bound and isinstance(value, int | float) and not (math.isfinite(value) and bound.holds(value)):
            raise UserError(f"{flag(f.name)} must be {bound.text}, got {value}")


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def changed_fields(recorded: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Return the fields a resumed run may not change but did, given a `to_dict()` read back from config.json.

    A field that the run's version didn't have yet is as if it had had its default.
    """
    then, now = TrainConfig.from_dict(recorded).to_dict(), config.to_dict()
    fixed = [f.name for f in fields(TrainConfig) if not f.metadata["may_change"]]
    return [name for name in fixed if then[name] != now[name]]
