"""How values read to people: one spelling of each, on the terminal, on pages and in messages."""

import re
from collections.abc import Iterable
from typing import Any

NONE = "–"  # where there is no number
SHOWN = 4  # names listed before "and 3 more"
LONGEST = 300  # characters of somebody else's message
# What would move a terminal's cursor, colour it, answer for its user or turn the text around; and bytes that aren't UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with a � for each character that a terminal would obey, or can't show; lines and tabs stay."""
    return UNPRINTABLE.sub("\ufffd", text)


def reason(error: BaseException) -> str:
    """Return what happened, in one line: of some libraries' messages the beginning."""
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), LONGEST)


def shortened(text: str, length: int = 80) -> str:
    """Return the text, or its beginning."""
    return text if len(text) <= length else f"{text[:length]}…"


def percent(share: float | None, digits: int = 2) -> str:
    """0.5 -> 50.00 %, None -> –."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def clock(seconds: float | None) -> str:
    """125 -> 2:05, 3725 -> 1:02:05, 200,000 -> 2 days 7:33:20, None -> –."""
    if seconds is None:
        return NONE
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    before = f"{count(days, 'day')} " if days else ""
    return f"{before}{hours}:{minutes:02}:{s:02}" if days or hours else f"{minutes}:{s:02}"


def seconds_of(text: str) -> float | None:
    """90 -> 90, 90m -> 5400, 1.5h -> 5400, 1:30:00 -> 5400, 2-00:00:00 -> two days, as Slurm has it; None for anything else."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text):
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    elif match := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = ((24 * days + hours) * 60 + minutes) * 60.0 + rest
    else:
        return None
    return seconds or None


def duration(seconds: float) -> str:
    """0.0123 -> 12.3 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size(num_bytes: float) -> str:
    """1.5e9 -> 1.5 GB, 2e6 -> 2.0 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def count(number: int, thing: str) -> str:
    """2, core -> 2 cores; 2, process -> 2 processes."""
    plural = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{plural}"


def length(steps: int, steps_per_epoch: int) -> str:
    """1500, 500 -> 1,500 steps, 3 epochs of 500."""
    epochs = steps / steps_per_epoch
    return f"{steps:,} step{'s' * (steps != 1)}, {epochs:.4g} epoch{'s' * (epochs != 1)} of {steps_per_epoch:,}"


def fitting(parts: Iterable[str], width: int) -> str:
    """Return the first parts, the most important ones, as far as they fit into so many columns wholly."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def listed(names: Iterable[str]) -> str:
    """Return the names with commas, the first few of many."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN + 1 else ""
    return ", ".join(names[:SHOWN] if more else names) + more


def ranks(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> ranks 0-2, 5."""
    known = set(numbers)
    starts = sorted(n for n in known if n - 1 not in known)
    ends = sorted(n for n in known if n + 1 not in known)
    spans = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f"rank{'s' * (len(known) > 1)} {', '.join(spans)}"


def option_text(value: Any) -> str:
    """Return an option's value as the command line has it: crop flip, none, yes; - where it has none or no effect."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
