"""Configurations as a comparison sees them: which options decide the numbers, which differ, what to call each."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from cifar_dist.config import TrainConfig
from cifar_dist.record.repeats import REPEATS, as_text, varying
from cifar_dist.text import option_text

Options = dict[str, Any]
FIELDS = {f.name: f for f in fields(TrainConfig)}
FOREMOST = ("model", "recipe")  # what a group is called by, where that is enough
LAST = ("limit_eval", "test", "eval_every", "tta", "init_from", "schedule_start")  # say least of what was tried
DATA, COMMIT = "data", "commit"  # stand among the options: what was trained on, and by which code
UNUSED = ("log_every",)  # decides what is recorded, not what is computed


def effective_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide a run's numbers, seed and fold aside; those of a later version have their default.

    What has no effect beside the other options is None.
    """
    ours = "model" in config
    options = {name: f.default for name, f in FIELDS.items()} | dict(config) if ours else dict(config)
    for name, f in FIELDS.items():
        other, values = f.metadata["only_with"] or (None, ())
        if f.metadata["may_change"] or name in (*REPEATS, *UNUSED, DATA):
            options.pop(name, None)
        elif other and ours and options[other] not in values:
            options[name] = None
    return {name: plain(value) for name, value in options.items()}


def plain(value: Any) -> Any:
    """Return a value as it reads the same whoever wrote it: lists for tuples, 5 for 5.0."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differing_options(groups: Sequence[Options]) -> list[str]:
    """Return the options whose values are not the same in all groups, without those that only say what another does."""
    return [name for name in varying(groups) if not _follows(name, groups)]


def _follows(name: str, groups: Sequence[Options]) -> bool:
    """Whether an option is the same wherever another lets it have an effect."""
    with_effect = {as_text({name: group[name]}) for group in groups if group.get(name) is not None}
    return name in FIELDS and bool(FIELDS[name].metadata["only_with"]) and len(with_effect) == 1


def labels(groups: Sequence[Options], differing: Sequence[str]) -> list[str]:
    """Return a short name for each group, of as few of the differing options as tell it from all others."""
    chosen: list[str] = []
    for name in sorted(differing, key=lambda name: (name in LAST, (*FOREMOST, name).index(name))):
        if _kinds(groups, [*chosen, name]) > _kinds(groups, chosen):
            chosen.append(name)
    if not chosen:
        chosen = [name for name in FOREMOST if all(name in group for group in groups)]
    return [_label(group, groups, chosen) for group in groups]


def _label(group: Options, groups: Sequence[Options], names: Sequence[str]) -> str:
    count = 1
    while count < len(names) and sum(all(g.get(n) == group.get(n) for n in names[:count]) for g in groups) > 1:
        count += 1
    words = [word(name, group.get(name)) for name in names[:count] if (name, group.get(name)) != ("recipe", "default")]
    return " ".join(words) or "default"


def _kinds(groups: Sequence[Options], names: Sequence[str]) -> int:
    return len({as_text({name: group.get(name) for name in names}) for group in groups})


def word(name: str, value: Any) -> str:
    """Return an option as part of a label: `lenet`, `lr 0.05`, `augment crop flip`."""
    return option_text(value) if name in (*FOREMOST, DATA) else f"{name} {option_text(value)}"
