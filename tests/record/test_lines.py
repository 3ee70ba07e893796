"""What fixes lines of metrics.jsonl: all in them but what a clock says."""

import pytest
from helpers.pages import train_line, val_line

from cifar_dist.record.lines import fixed

LINES = [train_line(5), val_line(10)]


@pytest.mark.parametrize("line", range(2))
def test_any_other_value_is_another_digest_but_those_of_a_clock(line):
    unnoticed = []
    for name in LINES[line]:
        changed = [*LINES]
        changed[line] = {**LINES[line], name: "another"}
        if fixed(changed) == fixed(LINES):
            unnoticed.append(name)
    assert unnoticed == [["images_per_second", "seconds"], ["seconds"]][line]


def test_order_and_number_count():
    assert [number for number, _ in map(fixed, ([], LINES[:1], LINES))] == [0, 1, 2]
    assert len({fixed(lines)[1] for lines in ([], LINES[:1], LINES, LINES[::-1], LINES * 2)}) == 5
