import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from cifar_dist.augment import AUGMENTATIONS, Normalize, augment, crop, flip
from cifar_dist.randomness import Purpose, random_integers

IMAGES = torch.randn(67, 3, 32, 32, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(1000, 1067)


@pytest.mark.parametrize("cuts", [(67,), (1, 66), (10, 0, 20, 30, 7), (1,) * 67])
@pytest.mark.parametrize("names", [*[(name,) for name in AUGMENTATIONS], tuple(AUGMENTATIONS)])
def test_pixels_are_the_same_however_a_batch_is_cut(names, cuts):
    whole = augment(IMAGES, POSITIONS, names, seed=3)
    pieces = zip(IMAGES.split(cuts), POSITIONS.split(cuts), strict=True)
    assert torch.equal(torch.cat([augment(i, p, names, seed=3) for i, p in pieces]), whole)
    assert whole.shape == IMAGES.shape
    assert whole.dtype == IMAGES.dtype


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_seed_and_position_change_the_draw_and_history_does_not(name):
    torch.manual_seed(1)
    first = augment(IMAGES, POSITIONS, (name,), seed=3)
    torch.manual_seed(2)
    assert torch.equal(augment(IMAGES, POSITIONS, (name,), seed=3), first)
    assert not torch.equal(augment(IMAGES, POSITIONS, (name,), seed=4), first)
    assert not torch.equal(augment(IMAGES, POSITIONS + 1, (name,), seed=3), first)


def test_crop_equals_padding_and_slicing_each_image():
    cropped = crop(IMAGES, POSITIONS, seed=5).numpy()
    tops = random_integers(5, Purpose.CROP_ROW, POSITIONS, 9).tolist()
    lefts = random_integers(5, Purpose.CROP_COLUMN, POSITIONS, 9).tolist()
    for image, result, top, left in zip(IMAGES.numpy(), cropped, tops, lefts, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        assert np.array_equal(result, padded[:, top : top + 32, left : left + 32])
    assert set(tops) == set(lefts) == set(range(9))


def test_flip_mirrors_about_half_of_the_images_and_keeps_the_rest():
    many, positions = IMAGES.repeat(30, 1, 1, 1), torch.arange(67 * 30)
    flipped = flip(many, positions, seed=0)
    mirrored = (flipped == many.flip(-1)).all(dim=(1, 2, 3))
    kept = (flipped == many).all(dim=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 0.45 < mirrored.double().mean() < 0.55


def test_normalize_equals_torchvisions():
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(pixels)
    torch.testing.assert_close(Normalize(mean, std, torch.device("cpu"))(pixels), reference, atol=1e-6, rtol=1e-6)


def test_half_maps_bytes_to_minus_one_and_one():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert Normalize((0.5,), (0.5,), torch.device("cpu"))(ends).flatten().tolist() == pytest.approx([-1, 1])
