import io
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

from cifar_dist.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from cifar_dist.corruptions.draws import Draws
from cifar_dist.corruptions.light import cloud
from cifar_dist.randomness import Purpose

PIXELS = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS[0] = 90  # grey
PIXELS[1, :, :16] = 0  # half black
NUMBERS = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 35])


def close(ours: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether images (H, W, 3) in [0, 1], cut off to whole values, are ours (3, H, W), but for rounding on an edge."""
    wanted = np.floor(expected.clip(0, 1) * 255 + 1e-6)
    return bool((np.abs(ours.permute(1, 2, 0).numpy() - wanted) <= 0).all())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_the_same_in_every_batch_and_other_with_every_severity(name):
    seen = []
    for severity in SEVERITIES:
        whole = corrupt(name, severity, PIXELS, NUMBERS)
        assert whole.dtype == torch.uint8 and whole.shape == PIXELS.shape
        order = torch.tensor([8, 2, 5, 0])
        assert torch.equal(corrupt(name, severity, PIXELS[order], NUMBERS[order]), whole[order])
        alone = [corrupt(name, severity, PIXELS[i : i + 1], NUMBERS[i : i + 1]) for i in range(9)]
        assert torch.equal(torch.cat(alone), whole)
        assert not torch.equal(whole, PIXELS)
        seen.append(whole)
    equal = 1 if name == "motion_blur" else 0  # 6 and 8 pixels of a Gaussian of 2: what is cut off is less than 1e-8
    assert len({one.numpy().tobytes() for one in seen}) == 5 - equal
    other = corrupt(name, 3, PIXELS, NUMBERS, seed=1)
    assert torch.equal(other, seen[2]) != CORRUPTIONS[name].draws


def test_noise_has_the_distribution_it_should_have():
    grey, numbers = torch.full((40, 3, 32, 32), 102, dtype=torch.uint8), torch.arange(40)
    value, many = 102 / 255, 40 * 3072
    for severity, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        drawn = (
            corrupt("gaussian_noise", severity, grey, numbers).double() + 0.5
        ) / 255  # cut off, so half a value low
        assert drawn.mean().item() == pytest.approx(value, abs=5 * scale / many**0.5)
        assert drawn.std().item() == pytest.approx(scale, rel=0.02)
    for severity, scale in enumerate((0.06, 0.1, 0.12, 0.16, 0.2), start=1):
        drawn = (corrupt("speckle_noise", severity, grey, numbers).double() + 0.5) / 255
        assert drawn.std().item() == pytest.approx(scale * value, rel=0.02)
    for severity, amount in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), start=1):
        drawn = corrupt("impulse_noise", severity, grey, numbers)
        for end in (0, 255):
            share = (drawn == end).double().mean().item()
            assert share == pytest.approx(amount / 2, abs=5 * (amount / 2 / many) ** 0.5)
        assert set(drawn.unique().tolist()) == {0, 102, 255}


@pytest.mark.parametrize("level", [0, 1, 102, 254])
def test_shot_noise_is_the_inverse_of_the_poisson_distribution(level):
    grey = torch.full((2, 3, 32, 32), level, dtype=torch.uint8)
    uniform = Draws(torch.arange(2), 0).uniform(Purpose.SHOT_NOISE, (3, 32, 32)).numpy()
    for severity, photons in enumerate((500, 250, 100, 75, 50), start=1):
        counts = stats.poisson.ppf(uniform, level / 255 * photons).clip(min=0)
        expected = np.floor((counts / photons).clip(0, 1) * 255 + 1e-6)
        assert (corrupt("shot_noise", severity, grey, torch.arange(2)).numpy() == expected).all()


def test_normal_draws_are_normal():
    draws = Draws(torch.arange(50), 7).normal(Purpose.GAUSSIAN_NOISE, (3, 32, 32)).flatten().numpy()
    assert stats.kstest(draws, "norm").pvalue > 0.001


def test_blurs_are_those_of_scipy():
    images = PIXELS.permute(0, 2, 3, 1).double().numpy() / 255
    for severity, sigma in enumerate((0.4, 0.6, 0.7, 0.8, 1.0), start=1):
        ours = corrupt("gaussian_blur", severity, PIXELS, NUMBERS)
        for image, one in zip(images, ours, strict=True):
            assert close(one, ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4))
    span = np.arange(-8, 9)
    for severity, (radius, softness) in enumerate(((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), start=1):
        disk = (span[:, None] ** 2 + span**2 <= radius**2).astype(float)
        line = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
        kernel = ndimage.correlate(disk / disk.sum(), np.outer(line, line) / line.sum() ** 2)
        ours = corrupt("defocus_blur", severity, PIXELS, NUMBERS)
        for image, one in zip(images, ours, strict=True):
            assert close(one, ndimage.correlate(image, kernel[..., None], mode="mirror"))


def test_motion_blur_smears_a_point_along_its_angle_and_keeps_its_light():
    point = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    point[:, :, 16, 20] = 255
    numbers = torch.arange(64)
    ours = corrupt("motion_blur", 3, point, numbers).numpy()
    angles = (2 * Draws(numbers, 0).uniform(Purpose.MOTION_ANGLE, (1,)) - 1).flatten().numpy() * math.pi / 4
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2**2))
    for angle, image in zip(angles, ours, strict=True):
        expected = np.zeros((32, 32))
        for i, weight in enumerate(weights / weights.sum()):
            row, column = 16 - math.ceil(i * math.sin(angle) - 0.5), 20 - math.ceil(i * math.cos(angle) - 0.5)
            expected[row, column] += weight
        assert np.abs(image[0] - np.floor(expected * 255 + 1e-6)).max() == 0
    assert np.ptp(angles) > 1.4 and abs(angles).max() <= math.pi / 4


def test_colours_are_changed_as_matplotlibs_hsv_has_it():
    images = PIXELS.permute(0, 2, 3, 1).double().numpy() / 255
    for severity, more in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), start=1):
        hsv = rgb_to_hsv(images)
        hsv[..., 2] = (hsv[..., 2] + more).clip(0, 1)
        for one, image in zip(corrupt("brightness", severity, PIXELS, NUMBERS), hsv_to_rgb(hsv), strict=True):
            assert close(one, image)
    for severity, (factor, more) in enumerate(((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), start=1):
        hsv = rgb_to_hsv(images)
        hsv[..., 1] = (hsv[..., 1] * factor + more).clip(0, 1)
        for one, image in zip(corrupt("saturate", severity, PIXELS, NUMBERS), hsv_to_rgb(hsv), strict=True):
            assert close(one, image)
    for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), start=1):
        for one, image in zip(corrupt("contrast", severity, PIXELS, NUMBERS), images, strict=True):
            means = image.mean(axis=(0, 1))
            assert close(one, (image - means) * factor + means)


def test_jpeg_and_pixelate_are_pillows():
    for name, amount in (("jpeg_compression", 40), ("pixelate", 20)):
        for pixels, one in zip(PIXELS, corrupt(name, 5, PIXELS, NUMBERS), strict=True):
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            if name == "pixelate":
                image = image.resize((amount, amount), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
            else:
                image.save(file := io.BytesIO(), "JPEG", quality=amount)
                image = Image.open(file)
            assert np.array_equal(one.permute(1, 2, 0).numpy(), np.asarray(image))


def plasma(noise: np.ndarray, smoothness: float) -> np.ndarray:
    """One image's cloud (32, 32), place by place."""
    size = len(noise)
    found, step, strength = np.zeros((size, size)), size, 1.0
    while step >= 2:
        half = step // 2
        for row in range(half, size, step):
            for column in range(half, size, step):
                around = [found[(row + a) % size, (column + b) % size] for a in (-half, half) for b in (-half, half)]
                found[row, column] = sum(around) / 4 + strength * noise[row, column]
        for row in range(0, size, half):
            for column in range(half if row % step == 0 else 0, size, step):
                near = ((0, half), (0, -half), (half, 0), (-half, 0))
                around = [found[(row + a) % size, (column + b) % size] for a, b in near]
                found[row, column] = sum(around) / 4 + strength * noise[row, column]
        step, strength = half, strength / smoothness**2
    found -= found.min()
    return found / found.max()


@pytest.mark.parametrize("side", [20, 48])
def test_every_corruption_takes_images_of_other_sizes(side):
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in CORRUPTIONS:
        changed = corrupt(name, 5, pixels, NUMBERS[:2])
        assert changed.shape == pixels.shape and changed.dtype == torch.uint8 and not changed.equal(pixels), name


def test_fog_is_diamonds_and_squares_over_an_image_darkened_to_its_maximum():
    draws = Draws(NUMBERS, 0)
    noise = 2 * draws.uniform(Purpose.FOG, (32, 32)).numpy() - 1
    clouds = [plasma(one, 2.0) for one in noise]
    assert np.allclose(cloud(draws, 2.0, 32)[:, 0].numpy(), clouds, atol=1e-12)
    for pixels, over, one in zip(PIXELS, clouds, corrupt("fog", 4, PIXELS, NUMBERS), strict=True):
        image = pixels.permute(1, 2, 0).double().numpy() / 255
        assert close(one, (image + over[..., None]) * image.max() / (image.max() + 1))
