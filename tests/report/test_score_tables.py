import pytest

from cifar_dist.report.score_tables import calibration_line, checkpoint_table, class_table, last_parts, top_line


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


RECORD = {  # no two numbers are alike
    "name": "runs/a",
    "top": {
        "1": {"accuracy": 0.61, "interval": (0.582, 0.637)},
        "2": {"accuracy": 0.83, "interval": (0.801, 0.855)},
    },
    "per_class": {
        "cat": {"images": 1200, "true_positives": 800, "false_negatives": 400, "false_positives": 300}
        | {"precision": 8 / 11, "recall": 2 / 3, "f1": 16 / 23},
        "dog": {"images": 50, "true_positives": 0, "false_negatives": 50, "false_positives": 0}
        | {"precision": None, "recall": 0.0, "f1": 0.0},
    },
    "mean_over_classes": {"precision": 4 / 11, "recall": 1 / 3, "f1": 8 / 23},
    "calibration": {"nll": 1.25, "ece": 0.11},
    "temperature": {
        "value": 1.75,
        "fitted_on_images": 1500,
        "validation_nll_before": 1.5,
        "validation_nll_after": 1.125,
        "after": {"nll": 1.0625, "ece": 0.03},
    },
}


def cells(table) -> list[list[str]]:
    """The columns of a table: head, then rows."""
    return [[" ".join(str(column.header).split()), *map(str, column.cells)] for column in table.columns]


def test_scores_of_classes_stand_under_their_names_and_counts_are_summed():
    assert cells(class_table(RECORD, "title")) == [
        ["class", "cat", "dog", "all"],
        ["images", "1,200", "50", "1,250"],
        ["correct", "800", "0", "800"],
        ["false neg.", "400", "50", "450"],
        ["false pos.", "300", "0", "300"],
        ["precision", "72.73 %", "–", "36.36 %"],
        ["recall", "66.67 %", "0.00 %", "33.33 %"],
        ["F1", "69.57 %", "0.00 %", "34.78 %"],
    ]


def test_each_set_of_weights_has_its_scores_before_and_after_its_temperature():
    uncalibrated = {**RECORD, "name": "runs/b", "temperature": None}
    assert cells(checkpoint_table([RECORD, uncalibrated], "title")) == [
        ["weights", "a", "b"],
        ["accuracy in %", "61.00", "61.00"],
        ["95 % interval", "58.2–63.7", "58.2–63.7"],
        ["F1 in %", "34.78", "34.78"],
        ["loss", "1.2500", "1.2500"],
        ["ECE in %", "11.00", "11.00"],
        ["T", "1.750", "–"],
        ["loss at T", "1.0625", "–"],
        ["ECE at T", "3.00", "–"],
    ]


def test_lines_hold_both_ends_of_intervals_and_what_a_temperature_changes():
    assert top_line(RECORD) == "accuracy 61.00 % (58.20 to 63.70 %), top-2 83.00 % (80.10 to 85.50 %)"
    before = "loss 1.2500, calibration error 11.00 %"
    after = "at temperature 1.750, fitted on 1,500 validation images: loss 1.0625, calibration error 3.00 %"
    assert calibration_line(RECORD) == f"{before}; {after}"
    assert calibration_line({**RECORD, "temperature": None}) == before
