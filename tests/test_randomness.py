import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_dist.randomness import Purpose, random_bits, random_integers, random_uniform

MASK = 2**64 - 1


def reference(seed: int, purpose: int, position: int) -> int:
    """The same hash in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & MASK
        x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
        return x ^ (x >> 33)

    golden = 0x9E3779B97F4A7C15
    key = mix((mix((seed + golden) & MASK) + purpose * golden) & MASK)
    return mix((position * golden + key) & MASK)


@settings(max_examples=200)
@given(st.integers(0, 2**63 - 1), st.sampled_from(Purpose), st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_bits_equal_a_reference_in_unbounded_integers(seed, purpose, positions):
    bits = random_bits(seed, purpose, torch.tensor(positions))
    assert [b & MASK for b in bits.tolist()] == [reference(seed, purpose, p) for p in positions]


def test_integers_are_uniform_and_neighbours_independent():
    draws = random_integers(3, Purpose.CROP_ROW, torch.arange(90_000), 9)
    counts = torch.bincount(draws, minlength=9).double()
    assert ((counts - 10_000).square() / 10_000).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001
    pairs = torch.bincount(draws[:-1] * 9 + draws[1:], minlength=81).double()
    expected = 89_999 / 81
    assert ((pairs - expected).square() / expected).sum() < 124.8  # 80 degrees of freedom, p = 0.001


def test_seeds_and_purposes_give_different_streams():
    positions = torch.arange(1000)
    streams = [random_bits(seed, purpose, positions) for seed in (0, 1) for purpose in Purpose]
    assert len(torch.cat(streams).unique()) == 1000 * len(streams)


def test_uniform_draws_are_in_the_unit_interval_and_even():
    draws = random_uniform(1, Purpose.MIX_SHARE, torch.arange(100_000))
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    counts = torch.bincount((draws * 10).long(), minlength=10).double()
    assert ((counts - 10_000).square() / 10_000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
