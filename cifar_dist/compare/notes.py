"""What a reader of a comparison must know besides its numbers: one sentence each."""

from collections.abc import Callable, Iterator
from typing import Any

from cifar_dist.compare.configuration import COMMIT, DATA
from cifar_dist.compare.groups import Comparison, value_of
from cifar_dist.compare.groups import repeat_of as seed_of
from cifar_dist.text import count, listed


def notes(comparison: Comparison) -> list[str]:
    """Return the sentences, the weightiest first."""
    return [*_data(comparison), *_not_counted(comparison), *_metric(comparison), *_circumstances(comparison)]


def _data(comparison: Comparison) -> Iterator[str]:
    synthetic = [group.label for group in comparison.groups if group.synthetic]
    if synthetic:
        which = "all runs" if len(synthetic) == len(comparison.groups) else listed(synthetic)
        yield f"SYNTHETIC DATA: {which}. Drawn shapes, which say nothing about CIFAR-10."
    if DATA in comparison.differing:
        names = dict.fromkeys(str(group.options[DATA]) for group in comparison.groups)
        yield f"The data differ ({listed(names)}), so accuracies can't be compared."


def _not_counted(comparison: Comparison) -> Iterator[str]:
    finished = [run for run in comparison.unaveraged if run.record.status == "finished"]
    unmeasured = [run.name for run in finished if value_of(run, comparison.metric) is None]
    if unmeasured:
        yield f"Finished without {comparison.metric.name}, so left out of the means: {listed(unmeasured)}."
    repeats = [f"{run.name} ({seed_of(run)})" for run in finished if value_of(run, comparison.metric) is not None]
    if repeats:
        yield f"The same seed again, which counts once: {listed(repeats)}."
    unfinished = len(comparison.unaveraged) - len(finished)
    if unfinished:
        yield f"{unfinished} of {count(len(comparison.runs), 'run')} not finished, and left out of the means."


def _metric(comparison: Comparison) -> Iterator[str]:
    several = sum(group.mean is not None for group in comparison.groups) > 1
    if comparison.metric.split == "val":
        yield "Validation chose each run's weights, so it is optimistic; the final number is the test's."
    elif several:
        yield "Choose by --metric val/accuracy: the best of many on the test images is best partly by luck."
    if any(len({run.config.get("fold") for run in group.counted}) > 1 for group in comparison.groups):
        yield "Folds share training images, so intervals and tests over folds are too confident."


def _circumstances(comparison: Comparison) -> Iterator[str]:
    if len(comparison.groups) == 1:
        yield "All runs have the same configuration; nothing differs but the seed or fold."
    facts: dict[str, tuple[str, Callable[[Any], str]]] = {
        "git_commit": ("The code differs", lambda commit: commit[:8] + "+" * commit.endswith("+")),
        "world_size": (
            "The number of processes differs, without --exact-shards, so sums round differently and batch norm sees other batches",
            str,
        ),
        "device": ("The devices differ, so times are not comparable", str),
    }
    if all(run.config.get("exact_shards") for group in comparison.groups for run in group.runs):
        del facts["world_size"]
    for name, (sentence, shown) in facts.items():
        where: dict[str, list[str]] = {}
        for group in comparison.groups:
            for value in group.facts(name):
                where.setdefault(shown(value), []).append(group.label)
        if len(where) > 1 and not (name == "git_commit" and COMMIT in comparison.differing):
            yield f"{sentence}: " + "; ".join(f"{value} ({listed(labels)})" for value, labels in where.items()) + "."
