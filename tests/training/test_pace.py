import json

import pytest
from helpers.runs import torchrun

from cifar_dist.training.pace import Pace, slow_ranks


def test_a_rank_is_slow_beside_the_median_of_the_others():
    assert slow_ranks([1.0, 1.1, 0.9, 2.0]) == {3: 2.0}
    assert slow_ranks([1.0, 1.4]) == {}
    assert slow_ranks([1.0, 1.6]) == {1: 1.6}
    assert slow_ranks([3.0, 3.0, 1.0, 1.0, 1.0]) == {0: 3.0, 1: 3.0}
    assert slow_ranks([1.0]) == slow_ranks([1.0, None]) == slow_ranks([None, None]) == {}
    assert slow_ranks([None, 1.0, 2.0]) == {2: 2.0}


def test_it_is_named_once_after_two_validations_in_a_row():
    pace = Pace()
    said = [pace.notice(block_s) for block_s in ([1, 2], [1, 1], [1, 2], [1, 3], [1, 3], [3, 1], [3, 1])]
    assert said == [{}, {}, {}, {1: 3.0}, {}, {}, {0: 3.0}]


SLOW = """
import os, sys, time
from torch import nn
from cifar_dist.cli.train import main
from cifar_dist.exits import finish
from cifar_dist.training import evaluation
evaluation.EVAL_BLOCK = 7
blocks = evaluation.eval_blocks
def slow(*where):
    for block in blocks(*where):
        time.sleep(0.2 * (os.environ["RANK"] == "1"))
        yield block
evaluation.eval_blocks = slow
finish(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_slow_rank_is_named_on_the_console(folders, data_dir, tmp_path):
    (tmp_path / "script.py").write_text(SLOW)
    options = f"--model lenet --epochs 3 --batch-size 32 --limit-train 64 --threads 1 --data {folders} --data-dir {data_dir}".split()
    said = torchrun(2, [str(tmp_path / "script.py"), *options, "--output-dir", str(tmp_path / "run")]).stdout
    assert said.count("rank 1 on ") == 1
    assert "times as long as the others to evaluate the same number of images" in said
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
