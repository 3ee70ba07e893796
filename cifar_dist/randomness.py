"""Random numbers as pure functions of (seed, purpose, position): integer hashes, equal on every device and torch version."""

from enum import IntEnum

from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment (Steele, Lea, Flood 2014)
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)  # MurmurHash3's 64-bit finaliser (Appleby)
_MASK = 2**64 - 1


class Purpose(IntEnum):
    """What a number is drawn for; each has a stream of its own. Never renumber: results would change."""

    ORDER = 1
    CROP_ROW = 2
    CROP_COLUMN = 3
    FLIP = 4
    DROPOUT = 5
    SPLIT = 6
    ROTATION = 7
    CUTOUT_ROW = 8
    CUTOUT_COLUMN = 9
    BRIGHTNESS = 10
    CONTRAST = 11
    SATURATION = 12
    POLICY_OPERATION = 13
    POLICY_MAGNITUDE = 14
    MIX_PARTNER = 15
    MIX_SHARE = 16
    MIX_ROW = 17
    MIX_COLUMN = 18
    SWEEP = 19
    SHIFT_ROW = 20
    SHIFT_COLUMN = 21
    FIRST_FLIP = 22
    GAUSSIAN_NOISE = 23
    SHOT_NOISE = 24
    IMPULSE_NOISE = 25
    SPECKLE_NOISE = 26
    MOTION_ANGLE = 27
    FOG = 28


def random_bits(seed: int, purpose: Purpose, positions: Tensor) -> Tensor:
    """Return 64 random bits for each position: int64 in, int64 of the same shape and device out."""
    key = _mix_int(_mix_int(seed + _GOLDEN) + purpose * _GOLDEN)
    x = positions * _signed(_GOLDEN) + _signed(key)  # int64 arithmetic wraps modulo 2**64
    for multiplier in _MULTIPLIERS:
        x = (x ^ _shift_right_33(x)) * _signed(multiplier)
    return x ^ _shift_right_33(x)


def random_integers(seed: int, purpose: Purpose, positions: Tensor, high: int) -> Tensor:
    """Return an integer in [0, high) for each position, uniform to within high / 2**31."""
    return _shift_right_33(random_bits(seed, purpose, positions)) % high


def random_uniform(seed: int, purpose: Purpose, positions: Tensor) -> Tensor:
    """Return a float32 in [0, 1) for each position: a multiple of 2**-24, so exact."""
    return random_integers(seed, purpose, positions, 2**24) * 2.0**-24


def _shift_right_33(x: Tensor) -> Tensor:
    return (x >> 33) & (2**31 - 1)  # int64 shifts carry the sign in; the mask takes it out


def _mix_int(x: int) -> int:
    x &= _MASK
    for multiplier in _MULTIPLIERS:
        x = ((x ^ (x >> 33)) * multiplier) & _MASK
    return x ^ (x >> 33)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
