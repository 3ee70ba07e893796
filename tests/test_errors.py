import pytest
import torch

from cifar_dist.errors import UserError, lookup
from cifar_dist.exits import guarded


def test_a_miss_names_the_nearest_and_all_choices():
    with pytest.raises(UserError, match=r"^unknown pet 'catt'\. Did you mean 'cat'\? Choose one of: cat, dog$"):
        lookup({"cat": 1, "dog": 2}, "catt", "pet")


def test_a_hit_returns_the_entry():
    assert lookup({"cat": 1}, "cat", "pet") == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError("9 TB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_no_memory_left_is_one_line_that_says_what_needs_less(capsys, error):
    def command():
        raise error

    assert guarded(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("failed: out of memory (") and line.endswith("a smaller --micro-batch-size needs less")
