import pytest

from cifar_dist.report.score_tables import last_parts


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["/x/run", "/x/run/checkpoints/step_1"], ["run", "run/checkpoints/step_1"]),
        (["a", "b/c"], ["a", "b/c"]),
        (["/x/y/run"], ["run"]),
    ],
)
def test_names_go_without_what_all_begin_with(names, shown):
    assert last_parts(names) == shown
