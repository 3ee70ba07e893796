"""A network as people draw it: layers from top to bottom, branches beside them, blocks that repeat drawn once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from cifar_dist.models.flow import INPUT, Step

# What does its own work even where the shape stays; anything else that keeps it shares the box of what is before it.
HEAVY = ("Conv", "Linear", "matmul", "pool", "Pool")
FEWEST_REPEATS = 4  # blocks alike, in a row, of which only the first is drawn


@dataclass(frozen=True)
class Box:
    """One or more steps that are drawn together."""

    names: tuple[str, ...]
    title: str
    more: tuple[str, ...]  # what follows on the same numbers: batch norm, ReLU
    kinds: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    inputs: tuple[int, ...]  # boxes
    block: str
    block_kind: str

    def alike(self) -> tuple[object, ...]:
        """Return what a reader sees of it."""
        return self.title, self.more, self.shape, self.parameters, self.block_kind


@dataclass(frozen=True)
class Skip:
    """A way around some of the path: an arc, with the boxes that are on it."""

    source: int  # place in the path; INPUT is the image
    target: int
    boxes: tuple[Box, ...] = ()
    block: str = ""


@dataclass(frozen=True)
class Frame:
    """Boxes of the path that belong to one block, or to none; `repeats` blocks like it follow one another."""

    first: int
    last: int
    block: str = ""
    kind: str = ""
    repeats: int = 1
    last_block: str = ""


@dataclass(frozen=True)
class Architecture:
    """What is drawn."""

    path: tuple[Box, ...]
    skips: tuple[Skip, ...]
    frames: tuple[Frame, ...]
    parameters: int = 0


def architecture(steps: Sequence[Step]) -> Architecture:
    """Return how the steps of `trace` are drawn."""
    boxes = join(steps)
    path = longest_path(boxes)
    places = {INPUT: INPUT} | {number: place for place, number in enumerate(path)}
    skips = sorted(find_skips(boxes, places), key=lambda skip: (skip.target, skip.source))
    whole = Architecture(tuple(boxes[number] for number in path), tuple(skips), (), sum(s.parameters for s in steps))
    return collapse(replace(whole, frames=tuple(find_frames(whole))))


def join(steps: Sequence[Step]) -> list[Box]:
    """Put steps that don't change the shape into the box of the step before, where nobody else takes from that."""
    takers = [sum(number in step.inputs for step in steps) for number in range(len(steps))]
    boxes: list[Box] = []
    box_of = {INPUT: INPUT}
    for number, step in enumerate(steps):
        before = step.inputs[0] if len(step.inputs) == 1 else INPUT
        light = not any(word in step.kind for word in HEAVY)
        if before != INPUT and light and takers[before] == 1 and steps[before].shape == step.shape:
            place, box = box_of[before], boxes[box_of[before]]
            if box.block == step.block:
                boxes[place] = replace(
                    box,
                    names=(*box.names, step.name),
                    more=(*box.more, step.text),
                    kinds=(*box.kinds, step.kind),
                    parameters=box.parameters + step.parameters,
                )
                box_of[number] = place
                continue
        inputs = tuple(dict.fromkeys(box_of[source] for source in step.inputs))
        boxes.append(
            Box(
                (step.name,),
                step.text,
                (),
                (step.kind,),
                step.shape,
                step.parameters,
                inputs,
                step.block,
                step.block_kind,
            )
        )
        box_of[number] = len(boxes) - 1
    return boxes


def longest_path(boxes: Sequence[Box]) -> list[int]:
    """Return the boxes on the way from the image to the logits that has most layers with parameters, then most boxes."""
    best: dict[int, tuple[int, int]] = {INPUT: (0, 0)}
    before: dict[int, int] = {}
    for number, box in enumerate(boxes):
        before[number] = max(box.inputs, key=lambda source: best[source])
        weighty, count = best[before[number]]
        best[number] = (weighty + (box.parameters > 0), count + 1)
    path = [len(boxes) - 1]
    while before[path[0]] != INPUT:
        path.insert(0, before[path[0]])
    return path


def find_skips(boxes: Sequence[Box], places: dict[int, int]) -> Iterator[Skip]:
    """Yield the ways around the path: from it straight back to it, or through boxes of their own.

    Boxes that hang together are one way, in the order they run.
    """
    branches: list[set[int]] = []
    for number, box in enumerate(boxes):
        if number in places:
            for source in box.inputs:
                if source in places and places[source] != places[number] - 1:
                    yield Skip(places[source], places[number], (), box.block)
            continue
        joined = [branch for branch in branches if branch & set(box.inputs)]
        branches = [branch for branch in branches if branch not in joined] + [{number}.union(*joined)]
    for branch in branches:
        sources = [places[source] for number in branch for source in boxes[number].inputs if source in places]
        targets = [places[number] for number in places if number != INPUT and branch & set(boxes[number].inputs)]
        if sources and targets:  # else nothing comes of it
            chain = tuple(boxes[number] for number in sorted(branch))
            yield Skip(min(sources), max(targets), chain, chain[0].block)


def find_frames(whole: Architecture) -> Iterator[Frame]:
    """Yield the stretches of the path that are of one block."""
    for (block, kind), members in groupby(
        range(len(whole.path)), key=lambda i: (whole.path[i].block, whole.path[i].block_kind)
    ):
        places = list(members)
        yield Frame(places[0], places[-1], block, kind, last_block=block)


def collapse(whole: Architecture) -> Architecture:
    """Draw only the first of FEWEST_REPEATS or more blocks that look alike and follow one another."""

    def look(frame: Frame) -> object:
        if not frame.block:
            return frame.first  # like no other
        boxes = [box.alike() for box in whole.path[frame.first : frame.last + 1]]
        ways = [
            (skip.source - frame.first, skip.target - frame.first, [box.alike() for box in skip.boxes])
            for skip in whole.skips
            if frame.first <= skip.target <= frame.last
        ]
        return repr((boxes, ways))

    path: list[Box] = []
    frames: list[Frame] = []
    new_place, dropped = {INPUT: INPUT}, set()
    for _, group in groupby(whole.frames, key=look):
        alike = list(group)
        drawn = alike[:1] if len(alike) >= FEWEST_REPEATS else alike
        for frame in drawn:
            shift = len(path) - frame.first
            path += whole.path[frame.first : frame.last + 1]
            new_place |= {place: place + shift for place in range(frame.first, frame.last + 1)}
            frames.append(replace(frame, first=frame.first + shift, last=frame.last + shift))
        if len(drawn) < len(alike):
            frames[-1] = replace(frames[-1], repeats=len(alike), last_block=alike[-1].block)
        for frame in alike[len(drawn) :]:  # what leaves the last of them is drawn from the first
            for offset in range(frame.last - frame.first + 1):
                new_place[frame.first + offset] = new_place[drawn[0].first + offset]
                dropped.add(frame.first + offset)
    skips = [
        replace(skip, source=new_place[skip.source], target=new_place[skip.target])
        for skip in whole.skips
        if skip.target not in dropped
    ]
    return Architecture(tuple(path), tuple(skips), tuple(frames), whole.parameters)
