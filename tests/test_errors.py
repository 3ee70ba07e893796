import pytest

from cifar_dist.errors import UserError, lookup


def test_a_miss_names_the_nearest_and_all_choices():
    with pytest.raises(UserError, match=r"^unknown pet 'catt'\. Did you mean 'cat'\? Choose one of: cat, dog$"):
        lookup({"cat": 1, "dog": 2}, "catt", "pet")


def test_a_hit_returns_the_entry():
    assert lookup({"cat": 1}, "cat", "pet") == 1
