from benchmarks.launches import measure
from benchmarks.throughput import Case


def test_a_replayed_step_starts_what_its_batch_needs_and_nothing_of_the_model():
    eager, replayed, _, python_us = (float(cell) for cell in measure(Case("lenet", 4), steps=6))
    assert eager > 30  # five layers forward and backward
    assert 1 <= replayed <= 5  # copies of the batch, the learning rate and the share of the run
    assert python_us > 0
