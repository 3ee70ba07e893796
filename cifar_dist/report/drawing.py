"""An architecture as SVG: light and dark, no script, no file besides it; also within a page."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from cifar_dist.config import SIDE
from cifar_dist.models.flow import INPUT
from cifar_dist.report.architecture import Architecture, Box, Frame, Skip
from cifar_dist.text import printable

# Pixels. A character is as wide as in the widest usual sans-serif fonts, so that text has room in all of them.
TITLE, SMALL = 13, 11  # font sizes
CHARACTER = 0.62  # of the font size
LINE, PAD, GAP = 17, 10, 20
LANE = 24  # between the path and an arc, and between arcs
FRAME_TOP, FRAME_PAD = 24, 12
MARGIN = 16
RADIUS = 8  # of an arc's corners

STYLE = """
.net { --ink: #1c1d1f; --muted: #5c6168; --line: #8a9099; --box: #ffffff; --ground: #fbfbfa; --frame: #f1f3f5;
  --conv: #0072b2; --linear: #d55e00; --pool: #009e73; --merge: #cc79a7; --skip: #a63f00;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
@media screen and (prefers-color-scheme: dark) { .net { --ink: #e8eaed; --muted: #a3a9b2; --line: #767d88; --box: #23272e;
  --ground: #14161a; --frame: #1b1e23; --conv: #56b4e9; --linear: #ff8a3d; --pool: #1fc79a; --merge: #e39cc4; --skip: #ff9a5c; } }
.net text { fill: var(--ink); font-size: 13px; }
.net .strong { font-weight: 600; }
.net .small { fill: var(--muted); font-size: 11px; }
.net .ground { fill: var(--ground); }
.net .box { fill: var(--box); stroke: var(--line); }
.net .frame { fill: var(--frame); stroke: var(--line); stroke-dasharray: 3 3; }
.net .flow, .net .skip > path { fill: none; stroke: var(--line); stroke-width: 1.5; }
.net .skip > path { stroke: var(--skip); stroke-width: 2; }
.net .tip { fill: var(--line); stroke: none; }
.net .skip > path.tip { fill: var(--skip); stroke: none; }
.net .conv { fill: var(--conv); } .net .linear { fill: var(--linear); } .net .pool { fill: var(--pool); }
.net .merge { fill: var(--merge); } .net .other { fill: var(--line); }
"""
COLOURS = (("conv", ("Conv",)), ("linear", ("Linear", "matmul")), ("pool", ("pool", "Pool", "mean")))


class Place(NamedTuple):
    """Where a box is."""

    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def right(self) -> float:
        return self.x + self.width


def draw(net: Architecture, title: str, side: int = SIDE) -> str:
    """Return the drawing as an SVG document: the path from the image to the logits downwards, branches to its right.

    `side` is that of the image, in pixels.
    """
    return _Drawing(net).document(title, side)


class _Drawing:
    """Finds a place for everything, then writes it down."""

    def __init__(self, net: Architecture) -> None:
        self.net = net
        names = [label(box) for box in net.path]
        self.left = MARGIN + max(map(_small, names), default=0) + FRAME_PAD + PAD
        titles = [frame_title(frame) for frame in net.frames]
        self.width = max([220, *(box_width(box) for box in net.path)])
        # The way down passes to the right of the blocks' names, and leaves room there for how often they come.
        self.flow_x = max([self.left + self.width / 2, *(MARGIN + 2 * PAD + _small(name) for name, _ in titles)])
        self.width = max(self.width, self.flow_x + 60 - self.left)
        self.lanes, self.lane_x = self._lanes()
        self.places, self.frame_places = self._path()
        self.parts: list[str] = []

    def _lanes(self) -> tuple[list[int], list[float]]:
        """Give each skip a lane, the short ones next to the path, so that no two share one at the same height."""
        lanes = [0] * len(self.net.skips)
        taken: list[list[tuple[int, int]]] = []
        for number in sorted(range(len(lanes)), key=lambda n: self.net.skips[n].target - self.net.skips[n].source):
            source, target = self.net.skips[number].source, self.net.skips[number].target
            free = (i for i, spans in enumerate(taken) if all(target <= a or source >= b for a, b in spans))
            lanes[number] = next(free, len(taken))
            if lanes[number] == len(taken):
                taken.append([])
            taken[lanes[number]].append((source, target))
        centres, right = [], self.left + self.width
        for lane in range(len(taken)):
            boxes = [box for skip, own in zip(self.net.skips, lanes, strict=True) if own == lane for box in skip.boxes]
            width = max(map(box_width, boxes), default=0.0)
            centres.append(right + LANE + width / 2)
            right += LANE + width
        self.right = right + FRAME_PAD
        return lanes, centres

    def _path(self) -> tuple[dict[int, Place], dict[Frame, Place]]:
        """Stack the path's boxes, each low enough for the branches that end in it, and put frames around blocks."""
        places = {INPUT: Place(self.left, MARGIN + 2 * LINE + PAD, self.width, LINE + PAD)}
        y = places[INPUT].bottom
        frames = {}
        for frame in self.net.frames:
            top = y + GAP
            y = top + FRAME_TOP - GAP if frame.block else y
            for number in range(frame.first, frame.last + 1):
                own = y + GAP
                for skip in self.net.skips:
                    if skip.target == number and skip.boxes:
                        room = sum(box_height(box) + GAP for box in skip.boxes) + GAP
                        own = max(own, places[skip.source].bottom + room)
                places[number] = Place(self.left, own, self.width, box_height(self.net.path[number]))
                y = places[number].bottom
            if frame.block:
                y += FRAME_PAD
                frames[frame] = Place(MARGIN, top, self.right - MARGIN, y - top)
        return places, frames

    def document(self, title: str, side: int) -> str:
        """Return it all."""
        net, places = self.net, self.places
        for frame, place in self.frame_places.items():
            self._frame(frame, place)
        last = len(net.path) - 1
        below = FRAME_PAD if net.path[last].block else 0
        end = Place(self.left, places[last].bottom + GAP + below, self.width, LINE + PAD)
        for number in range(last + 1):
            self._flow(places[number - 1], places[number])
        self._flow(places[last], end)
        for skip, lane in zip(net.skips, self.lanes, strict=True):
            self._skip(skip, self.lane_x[lane])
        self._pill(places[INPUT], "image", (3, side, side))
        for number, box in enumerate(net.path):
            self._box(box, places[number])
            self._text(self.left - PAD, places[number].y + LINE, label(box), "small", "end")
        self._pill(end, "logits", net.path[-1].shape)
        width, height = self.right + MARGIN, end.bottom + MARGIN
        heading = f"{printable(title)}: {net.parameters:,} parameters"
        note = "Right in a box: channels × height × width of what comes out." + " Arcs lead around layers." * bool(
            net.skips
        )
        width = max(width, 2 * MARGIN + max(1.1 * TITLE * CHARACTER * len(heading), _small(note)))
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="net" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}">',
            f"<title>{escape(heading)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{width:.0f}" height="{height:.0f}"/>',
            _text(MARGIN, MARGIN + LINE - 4, heading, "strong", "start"),
            _text(MARGIN, MARGIN + 2 * LINE - 4, note, "small", "start"),
        ]
        return "\n".join([*head, *self.parts, "</svg>"]) + "\n"

    def _frame(self, frame: Frame, place: Place) -> None:
        self.parts.append(
            f'<rect class="frame" x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}" rx="8"/>'
        )
        name, more = frame_title(frame)
        self._text(place.x + PAD, place.y + LINE - 1, name, "small", "start")
        if more:
            self._text(self.flow_x + PAD, place.y + LINE - 1, more, "strong", "start")

    def _flow(self, source: Place, target: Place) -> None:
        x = self.flow_x
        self.parts.append(f'<path class="flow" d="M{x:.1f} {source.bottom:.1f}V{target.y - 5:.1f}"/>')
        self.parts.append(f'<path class="tip" d="M{x - 4:.1f} {target.y - 6:.1f}h8l-4 6z"/>')

    def _skip(self, skip: Skip, x: float) -> None:
        source, target = self.places[skip.source], self.places[skip.target]
        start, end = source.bottom - min(9, source.height / 3), target.y + min(11, target.height / 2)
        places = self._beside(skip.boxes, x, (start + end) / 2)
        pieces = [f"M{source.right:.1f} {start:.1f}H{x - RADIUS:.1f}q{RADIUS} 0 {RADIUS} {RADIUS}"]
        for place in places:  # into a box, and out of it
            pieces[-1] += f"V{place.y:.1f}"
            pieces.append(f"M{x:.1f} {place.bottom:.1f}")
        pieces[-1] += f"V{end - RADIUS:.1f}q0 {RADIUS} -{RADIUS} {RADIUS}H{target.right + 6:.1f}"
        self.parts.append(f'<g class="skip"><path d="{"".join(pieces)}"/>')
        self.parts.append(f'<path class="tip" d="M{target.right + 7:.1f} {end - 4:.1f}v8l-7 -4z"/>')
        for box, place in zip(skip.boxes, places, strict=True):
            self._box(box, place)
        self.parts.append("</g>")

    def _beside(self, boxes: Sequence[Box], x: float, middle: float) -> list[Place]:
        """Return the places of a branch's boxes, around `x` and the height `middle`."""
        y = middle - (sum(map(box_height, boxes)) + GAP * (len(boxes) - 1)) / 2
        places = []
        for box in boxes:
            places.append(Place(x - box_width(box) / 2, y, box_width(box), box_height(box)))
            y = places[-1].bottom + GAP
        return places

    def _box(self, box: Box, place: Place) -> None:
        kind = (
            "merge"
            if len(box.inputs) > 1
            else next((name for name, words in COLOURS if any(word in box.kinds[0] for word in words)), "other")
        )
        size = f'x="{place.x:.1f}" y="{place.y:.1f}" height="{place.height:.1f}"'
        self.parts.append(f'<rect class="box" {size} width="{place.width:.1f}" rx="4"/>')
        self.parts.append(f'<rect class="{kind}" {size} width="5" rx="2"/>')
        x, right = place.x + PAD + 2, place.right - PAD
        self._text(x, place.y + LINE, pretty(box.title), "strong", "start")
        self._text(right, place.y + LINE, shape_text(box.shape), "", "end")
        for number, (text, count) in enumerate(second_lines(box)):
            y = place.y + (number + 2) * LINE - 1
            self._text(x, y, text, "small", "start")
            self._text(right, y, count, "small", "end")

    def _pill(self, place: Place, text: str, shape: Sequence[int]) -> None:
        size = f'x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}"'
        self.parts.append(f'<rect class="box" {size} rx="{place.height / 2:.1f}"/>')
        self._text(place.x + 2 * PAD, place.y + LINE + 1, text, "strong", "start")
        self._text(place.right - 2 * PAD, place.y + LINE + 1, shape_text(shape), "", "end")

    def _text(self, x: float, y: float, text: str, style: str, anchor: str) -> None:
        if text:
            self.parts.append(_text(x, y, text, style, anchor))


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(printable(text))}</text>'


def _small(text: str) -> float:
    return SMALL * CHARACTER * len(text)


def label(box: Box) -> str:
    """Return the layer's name within its block."""
    return box.names[0].removeprefix(f"{box.block}.") if box.names else ""


def frame_title(frame: Frame) -> tuple[str, str]:
    """Return what stands over a block: which it is, and how often."""
    if frame.repeats == 1:
        return f"{frame.block}: {frame.kind}", ""
    return f"{frame.block} to {frame.last_block}: {frame.kind}", f"× {frame.repeats}"


def second_lines(box: Box) -> Iterator[tuple[str, str]]:
    """Yield what stands under a box's title: what follows in it, and its parameters."""
    count = f"{box.parameters:,} parameters" if box.parameters else ""
    if box.more or count:
        yield " · ".join(map(pretty, box.more)), count


def box_height(box: Box) -> float:
    return LINE * (1 + len(list(second_lines(box)))) + PAD


def box_width(box: Box) -> float:
    """Return how wide its lines are, with a space between what is left and what is right."""
    first = TITLE * CHARACTER * (len(pretty(box.title)) * 1.08 + len(shape_text(box.shape)))
    others = [_small(text) + _small(count) for text, count in second_lines(box)]
    return max([first, *others]) + 4 * PAD


def pretty(text: str) -> str:
    """Return `Conv2d 3->16 3x3` with an arrow and a times sign."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text.replace("->", "→"))


def shape_text(shape: Sequence[int]) -> str:
    """Return channels × height × width; a single number is 1."""
    return "×".join(map(str, shape)) or "1"
