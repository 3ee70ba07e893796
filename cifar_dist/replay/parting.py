"""Where and why two runs part: the first step after which they differ, and what of it was another one's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar_dist.config import TrainConfig, changed_fields, flag
from cifar_dist.record.lines import ConfigRecord, Digests, Start
from cifar_dist.text import count, listed, option_text

Testimony = Mapping[str, Any]  # a line of a replay that looked closely


@dataclass(frozen=True)
class Reason:
    """Why a step was another one."""

    kind: str  # weights, samples, pixels, lr, outputs, gradient or update
    text: str
    tensors: list[str] = field(default_factory=list)  # of the model, that are the first to differ
    ranks: list[int] = field(default_factory=list)  # of the first run, that hold the images which differ


def first_difference(a: Mapping[int, Digests], b: Mapping[int, Digests]) -> tuple[int, int | None]:
    """Return the last step up to which two runs are known to be the same, and the first at which they differ, None if nowhere."""
    same = 0
    for step in sorted(a.keys() & b.keys()):
        if a[step] != b[step]:
            return same, step
        same = step
    return same, None


def parting_step(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the first step after which two replays of the same steps differ; None where they don't."""
    for one, other in zip(a, b, strict=True):
        if any(one[name] != other[name] for name in ("weights_digest", "optimizer_digest")):
            return int(one["step"])
    return None


def reason(a: Testimony, b: Testimony) -> Reason:
    """Say what the same step of two runs saw otherwise first: in the order in which one thing follows from the other."""
    if tensors := unlike(a["before"], b["before"]):
        return Reason("weights", f"they begin with other weights: {listed(tensors)}", tensors)
    if a["lr"] != b["lr"]:
        return Reason("lr", f"another learning rate: {a['lr']:g}, {b['lr']:g}")
    ours, theirs = ({image["position"]: image for image in run["images"]} for run in (a, b))
    if ours.keys() != theirs.keys():
        only = [len(one.keys() - other.keys()) for one, other in ((ours, theirs), (theirs, ours))]
        return Reason("samples", f"other samples: {only[0]} that the second hasn't, {only[1]} that the first hasn't")
    for kind, what in (("pixels", "other pixels"), ("outputs", "other outputs for the same pixels and weights")):
        if differing := [image for at, image in sorted(ours.items()) if image[kind] != theirs[at][kind]]:
            return Reason(kind, f"{what}: {where(differing, theirs)}", ranks=sorted({i["rank"] for i in differing}))
    if tensors := unlike(a["gradient"], b["gradient"]):
        sizes = [sorted({image["together"] for image in run["images"]}) for run in (a, b)]
        cut = "" if sizes[0] == sizes[1] else f" over micro-batches of {sizes[0][-1]} and {sizes[1][-1]} images"
        ranks = [1 + max(image["rank"] for image in run["images"]) for run in (a, b)]
        return Reason(
            "gradient",
            f"the same outputs and another gradient, summed{cut} on {count(ranks[0], 'process')} and {ranks[1]}: {listed(tensors)}",
            tensors,
        )
    tensors = unlike(a["after"], b["after"])
    return Reason(
        "update", f"the same gradient and another update: {listed(tensors) or 'of the optimizer alone'}", tensors
    )


def unlike(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [name for name in a if a[name] != b.get(name)]


def where(images: Sequence[Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]) -> str:
    """Say which images differ, who holds them, and what they were computed together with."""
    first = images[0]
    other = theirs[first["position"]]
    ranks = " and ".join(dict.fromkeys([str(first["rank"]), str(other["rank"])]))
    text = f"{count(len(images), 'image')}, the first at position {first['position']}, held by rank {ranks}"
    if first["together"] != other["together"]:
        text += f", computed together with {first['together'] - 1} and {other['together'] - 1} others"
    return text


def circumstances(a: ConfigRecord, b: ConfigRecord, starts: tuple[Start, Start]) -> list[str]:
    """Return in what two runs differ that may be the cause, from their records."""
    ours, theirs = TrainConfig.from_dict(a["config"]), TrainConfig.from_dict(b["config"])
    names = changed_fields(a["config"], theirs)
    notes = [f"{flag(n)} {option_text(getattr(ours, n))}, {option_text(getattr(theirs, n))}" for n in names]
    facts = [{**start, **start.get("packages", {}), **start.get("kernels", {})} for start in starts]
    known = ("world_size", "threads_per_process", "device", "torch", "cpu", "bf16", "onednn", "git_commit")
    notes += [f"{n} {facts[0].get(n)}, {facts[1].get(n)}" for n in known if facts[0].get(n) != facts[1].get(n)]
    if a["dataset"]["fingerprint"] != b["dataset"]["fingerprint"]:
        notes.append("data with other fingerprints")
    return notes
