"""The command line: flags made from dataclass fields, one-line errors, and recipes overridden by options."""

import argparse
import ast
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from cifar_dist.config import GROUPS, TrainConfig, flag
from cifar_dist.errors import UserError, did_you_mean, lookup, unknown
from cifar_dist.text import shortened

SEEN = " seen"  # where a parser keeps the values it has met; no option can have this name
# options that may begin with a ~
PATHS = (
    "data",
    "data_dir",
    "output",
    "output_dir",
    "resume",
    "checkpoint",
    "init_from",
    "draw",
    "corruptions",
    "sheet",
)


ELSEWHERE = {  # what other trainers call it: our option, or what there is in its place
    name: ours
    for names, ours in {
        "arch a net network": "--model",
        "b bs batch train-batch-size": "--batch-size",
        "learning-rate base-lr": "--lr",
        "wd": "--weight-decay",
        "num-epochs n-epochs max-epochs": "--epochs",
        "max-steps": "--steps",
        "opt optim": "--optimizer",
        "sched scheduler lr-scheduler": "--schedule",
        "warmup-epochs warmup-steps warmup-ratio": "--warmup",
        "smoothing": "--label-smoothing",
        "clip-grad grad-clip clip": "--max-grad-norm",
        "ema model-ema": "--ema-decay",
        "dropout drop": "--model-options dropout=0.2",
        "dataset data-path root": "--data",
        "val-split": "--val-fraction",
        "accumulate grad-accum-steps gradient-accumulation-steps accum-iter": "--micro-batch-size",
        "amp fp16 bf16 precision": "--mixed-precision bf16",
        "cpu no-cuda": "--device cpu",
        "out output save-dir log-dir logdir": "--output-dir",
        "ckpt load": "--resume",
        "pretrained finetune": "--init-from",
        "early-stopping early-stop": "--patience",
        "time-limit": "--max-time",
        "print-freq log-interval": "--log-every",
        "sync-bn": "--batch-norm sync",
        "gpus num-gpus ngpus nproc num-processes": "accelerate launch --num_processes N train.py starts several processes",
        "workers num-workers j": "There are none: images are decoded once and each batch is made where it is used",
        "evaluate": "eval.py --checkpoint RUN does that",
        "wandb-project": "WANDB_PROJECT in the environment does that",
    }.items()
    for name in names.split()
}


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse would print its usage and exit. Words and options come in any order."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.word_is: str | None = None  # the option that a word alone means
        self.lists_all = "--help"  # the option that lists them all

    def add_word(self, name: str, metavar: str, help: str) -> None:
        """Let one word alone be the value of the option `name`."""
        self.word_is = name
        self.add_argument("word", nargs="?", metavar=metavar, default=argparse.SUPPRESS, help=help)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the options that were given, by field name; `--batch_size` is taken as `--batch-size`.

        Values may be written as a W&B agent does: `--nesterov=False`, `--augment=['crop', 'flip']`, `--epochs=None`.
        """
        switches = {a.option_strings[0] for a in self._actions if isinstance(a, argparse.BooleanOptionalAction)}
        argv = [_switch(_dashes(word), switches) for word in argv]
        known, rest = self.parse_known_intermixed_args(argv)
        if rest and rest[0].startswith("-"):
            flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            name = rest[0].split("=")[0]
            raise UserError(f"unknown option {name!r}.{_meant(name, flags)} {self.lists_all} lists them all")
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; every option starts with -- (see --help)")
        given = {name: value for name, value in vars(known).items() if name != SEEN}
        if self.word_is and "word" in given:
            if self.word_is in given:
                raise UserError(f"{given['word']} and {flag(self.word_is)} both say which; leave one out")
            given[self.word_is] = given.pop("word")
        # A shell leaves the ~ of --data=~/images to us, a sweep file too.
        return {name: _at_home(v) if name in PATHS else v for name, v in given.items()}


def _at_home(paths: Any) -> Any:
    """Return a path, or several, with the ~ that it may begin with replaced."""
    if isinstance(paths, tuple):
        return tuple(_at_home(path) for path in paths)
    return str(Path(paths).expanduser()) if str(paths).startswith("~") else paths


def _meant(name: str, flags: Sequence[str]) -> str:
    """Return the question whether an option of another trainer, or the nearest one of `flags`, was meant; empty without any."""
    ours = ELSEWHERE.get(name.lstrip("-"), "")
    if ours.startswith("--") and ours.split()[0] in flags:
        return f" Did you mean {ours!r}?"
    if ours and not ours.startswith("--") and "--batch-size" in flags:  # a command that trains
        return f" {ours}."
    return did_you_mean(name, flags)


def _dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _switch(word: str, switches: set[str]) -> str:
    name, _, value = word.partition("=")
    if name not in switches or value.lower() not in ("true", "false"):
        return word
    return name if value.lower() == "true" else name.replace("--", "--no-", 1)


def check_output(output: str | None, option: str = "--output") -> None:
    """Raise `UserError` where the option names what can't be replaced by a file, before there is anything to write."""
    path = Path(output or "")
    if not output:
        return
    if not path.parent.is_dir():
        raise UserError(f"{option} {output}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{option} {output} is {what}, which would not be replaced; give a file's name")


def add_flags(
    parser: argparse.ArgumentParser,
    config_class: type,
    names: Sequence[str] = (),
    values: Any = None,
    explained: Sequence[str] = (),
) -> None:
    """Add one flag a field (of `names`, or all), those of a `TrainConfig` in groups; flags that aren't given stay out of the result.

    The help shows the `values` that are in force unless they are given (default: the class's), of the fields `explained` (or all).
    """
    hints = get_type_hints(config_class)
    titles = (
        {name: title for title, members in GROUPS.items() for name in members} if config_class is TrainConfig else {}
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS} if titles and not names else {}
    for f in fields(config_class):
        if names and f.name not in names:
            continue
        place = groups.get(titles.get(f.name, ""), parser)
        shown = _help(f.metadata["help"], getattr(values, f.name, f.default))
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": shown}
        if explained and f.name not in explained:
            keywords["help"] = argparse.SUPPRESS
        if hints[f.name] is bool:
            keywords["action"] = _Switch
        elif get_origin(hints[f.name]) is tuple:
            keywords |= {"action": _Words, "nargs": "+", "element": get_args(hints[f.name])[0]}
        else:
            keywords["type"] = _reader(f.name, hints[f.name])
            keywords["metavar"] = f.name.rpartition("_")[2].upper()
        place.add_argument(flag(f.name), **keywords)


def _help(text: str, default: Any) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return text.replace("%", "%%") + ("" if default is None or "(default" in text else f" [{shown}]")


def _reader(name: str, hint: Any) -> Any:
    """Return the function that turns a word into a value of type `hint`: int, float, str, Literal or one of them | None."""
    optional = get_origin(hint) in (types.UnionType, Union)
    named: tuple[str, ...] = ()  # words in place of a number
    if optional:
        hint, *others = (t for t in get_args(hint) if t is not type(None))
        named = tuple(word for other in others for word in get_args(other))
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint

    def read(word: str) -> Any:
        if optional and word.lower() == "none":
            return None
        if not word:
            raise UserError(f"{flag(name)} is empty; give a value, or leave it out")
        if word in named:
            return word
        if choices:
            word = word.replace("-", "_")
        try:
            value = kind(word)
        except ValueError:
            what = {int: "a whole number", float: "a number"}[kind]
            raise UserError(
                f"{flag(name)} must be {' or '.join((what, *named))}, got {shortened(repr(word))}"
            ) from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{flag(name)} must be a number of at most 64 bits, got {shortened(word)}")
        if choices and value not in choices:
            raise unknown(flag(name), word, choices)
        return value

    return read


def _set_once(namespace: argparse.Namespace, name: str, value: Any, option: str | None) -> None:
    """Give an option its value; raises `UserError` where it already has another: one of them would be silently lost."""
    seen = vars(namespace).setdefault(SEEN, {})
    if option and seen.setdefault(name, value) != value:
        shown = [" ".join(map(str, v)) if isinstance(v, tuple) else v for v in (seen[name], value)]
        raise UserError(f"{flag(name)} is given twice, as {shown[0]} and as {shown[1]}; leave one out")
    setattr(namespace, name, value)


class _Once(argparse.Action):
    """One value."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        _set_once(namespace, self.dest, values, option_string)


class _Switch(argparse.BooleanOptionalAction):
    """--this or --no-this."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        _set_once(namespace, self.dest, not (option_string or "").startswith("--no-"), option_string)


class _Words(argparse.Action):
    """One or more words; the single word `none` gives an empty tuple."""

    def __init__(self, *args: Any, element: type, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.element = element

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        try:
            if len(values) == 1 and values[0].startswith("["):  # a list, as a W&B agent writes it
                values = [str(item) for item in ast.literal_eval(values[0])] or ["none"]
            items = (
                () if [word.lower() for word in values] == ["none"] else tuple(self.element(word) for word in values)
            )
        except (ValueError, SyntaxError):
            raise UserError(
                f"{option_string} takes {'words' if self.element is str else 'numbers'}, got {' '.join(values)!r}"
            ) from None
        _set_once(namespace, self.dest, items, option_string)


def option_value(words: Sequence[str], name: str) -> str | None:
    """Return the value of an option of train.py, its last one, in any of its spellings: --output-dir X, --output_dir=X."""
    value = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        option, equals, rest = word.partition("=")
        if option.replace("_", "-") == flag(name):
            value = rest if equals else following
    return value


def to_words(options: Mapping[str, Any]) -> list[str]:
    """Return the words that give these options: {"lr": 0.1, "nesterov": False, "augment": []} -> --lr 0.1 --no-nesterov --augment none."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, list | tuple):
            words += [flag(name), *(map(str, value) if value else ["none"])]
        else:
            words += [flag(name), "none" if value is None else str(value)]
    return words


def with_launchers(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` with what `accelerate launch` was asked for, unless our own options are there; raises `UserError`.

    So it is in the record, and nothing acts that isn't: Accelerate itself would compile by --dynamo_backend alone.
    """
    asked: dict[str, Any] = {}
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        if precision not in ("bf16", "fp16"):
            raise UserError(f"accelerate launch --mixed_precision {precision} is not supported; use no, bf16 or fp16")
        asked["mixed_precision"] = precision
    if (backend := os.environ.pop("ACCELERATE_DYNAMO_BACKEND", "NO").lower()) != "no":
        if backend != "inductor":
            raise UserError(
                f"accelerate launch --dynamo_backend {backend} is not supported; use inductor, or --compile here"
            )
        asked["compile"] = True
    return {**asked, **given}


def resolve_train_config(given: dict[str, Any]) -> TrainConfig:
    """Return the recipe's configuration with the `given` options on top; raises `UserError`."""
    from cifar_dist.recipes import RECIPES  # imports torch, which commands without a model can do without

    name = given.get("recipe", "default")
    base = lookup(RECIPES, name, "recipe")(given.get("model"))
    given = {**given, "model": base.model}  # the recipe resolves aliases
    if given.get("model_options"):  # those not given stay as in the recipe
        keys = {word.partition("=")[0] for word in given["model_options"]}
        kept = [word for word in base.model_options if word.partition("=")[0] not in keys]
        given["model_options"] = tuple(sorted([*kept, *given["model_options"]]))
    if "epochs" in given and "steps" not in given:
        given["steps"] = None
    if "steps" in given and "epochs" not in given:
        given["epochs"] = None
    config = replace(base, **given)
    for f in fields(TrainConfig):
        other, values = f.metadata["only_with"] or (None, ())
        if other and f.name in given and getattr(config, other) not in values:
            chosen = getattr(config, other)
            raise UserError(f"{flag(f.name)} has no effect with {flag(other)} {chosen}; it needs {' or '.join(values)}")
    if config.folds is not None and "val_fraction" in given:
        raise UserError("--val-fraction has no effect with --folds; leave one out")
    return config
