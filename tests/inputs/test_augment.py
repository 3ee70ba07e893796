import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from cifar_dist.errors import UserError
from cifar_dist.inputs.augment import AUGMENTATIONS, Visits, augment, check_augmentations
from cifar_dist.inputs.augment.colour import grey, jitter
from cifar_dist.inputs.augment.geometry import alternate, crop, cutout, flip, rotate, shift, shrunk
from cifar_dist.inputs.augment.mix import MIXES, cutmix, mixup, partner_places
from cifar_dist.inputs.augment.pipeline import ALTERNATE, COLOURS, GEOMETRY
from cifar_dist.inputs.augment.policy import BINS, OPERATIONS, trivial
from cifar_dist.inputs.normalize import Normalize, normalize_as
from cifar_dist.randomness import Purpose, random_integers, random_uniform

COUNT = 67
PIXELS = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(1000, 1000 + COUNT)
NUMBERS = torch.arange(5000, 5000 + COUNT)
VISITS = Visits(POSITIONS, NUMBERS, epoch=2)
NORMALIZE = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), torch.device("cpu"))
SINGLE = [name for name in AUGMENTATIONS if name not in MIXES]


def smooth(size: int = 32) -> torch.Tensor:
    """An image (1, 3, size, size) that bilinear interpolation reproduces well, in [0, 255]."""
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 3, size), indexing="ij")
    return (127 + 120 * torch.stack((x.sin() * y.cos(), (x * y).sin(), (x - y).cos()))).unsqueeze(0)


@pytest.mark.parametrize("size", [8, 20, 24, 31])
def test_images_are_shrunk_as_pillow_does_it_however_a_batch_is_cut(size):
    small = shrunk(IMAGES, size)
    assert torch.equal(torch.cat([shrunk(piece, size) for piece in IMAGES.split((1, 40, 26))]), small)
    for image, ours in zip(IMAGES[:5], small, strict=False):
        for channel, shown in zip(image.numpy(), ours, strict=True):
            theirs = np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR))
            torch.testing.assert_close(shown, torch.tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cuts", [(67,), (1, 66), (10, 0, 20, 30, 7), (1,) * 67])
@pytest.mark.parametrize("names", [*[(name,) for name in SINGLE], tuple(SINGLE)])
def test_pixels_are_the_same_however_a_batch_is_cut(names, cuts):
    whole = augment(PIXELS, VISITS, names, 3, NORMALIZE)
    pieces = zip(PIXELS.split(cuts), POSITIONS.split(cuts), NUMBERS.split(cuts), strict=True)
    assert torch.equal(torch.cat([augment(i, Visits(p, n, 2), names, 3, NORMALIZE) for i, p, n in pieces]), whole)
    assert whole.shape == PIXELS.shape
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("name", SINGLE)
def test_seed_and_position_change_the_draw_and_history_does_not(name):
    torch.manual_seed(1)
    first = augment(PIXELS, VISITS, (name,), 3, NORMALIZE)
    torch.manual_seed(2)
    assert torch.equal(augment(PIXELS, VISITS, (name,), 3, NORMALIZE), first)
    assert not torch.equal(augment(PIXELS, VISITS, (name,), 4, NORMALIZE), first)
    other = Visits(POSITIONS, NUMBERS + 1, 2) if name == ALTERNATE else Visits(POSITIONS + 1, NUMBERS, 2)
    assert not torch.equal(augment(PIXELS, other, (name,), 3, NORMALIZE), first)


@pytest.mark.parametrize("name", SINGLE)
def test_nothing_is_written_into_what_came_in(name):
    source = PIXELS.float() if name in COLOURS else IMAGES.clone()
    kept = source.clone()
    if name == ALTERNATE:
        alternate(source, NUMBERS, 2, 3)
    else:
        ({**COLOURS, **GEOMETRY}[name])(source, POSITIONS, 3)
    assert torch.equal(source, kept)


def test_colours_come_before_normalisation_and_geometry_after_whatever_the_order_of_names():
    assert torch.equal(
        augment(PIXELS, VISITS, ("crop", "jitter"), 3, NORMALIZE),
        crop(NORMALIZE(jitter(PIXELS.float(), POSITIONS, 3)), POSITIONS, 3),
    )


def test_crop_equals_padding_and_slicing_each_image():
    cropped = crop(IMAGES, POSITIONS, seed=5).numpy()
    tops = random_integers(5, Purpose.CROP_ROW, POSITIONS, 9).tolist()
    lefts = random_integers(5, Purpose.CROP_COLUMN, POSITIONS, 9).tolist()
    for image, result, top, left in zip(IMAGES.numpy(), cropped, tops, lefts, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        assert np.array_equal(result, padded[:, top : top + 32, left : left + 32])
    assert set(tops) == set(lefts) == set(range(9))


@pytest.mark.parametrize(("side", "pad", "most", "hidden"), [(24, 3, 1, 12), (64, 8, 4, 32)])
def test_distances_grow_with_the_images(side, pad, most, hidden):
    positions = torch.arange(3000)
    ramp = torch.arange(1.0, side + 1).expand(3000, 1, side, side)  # a pixel says its column
    assert crop(ramp, positions, 0)[:, 0, side // 2, side // 2].unique().tolist() == [
        side // 2 + 1 + offset for offset in range(-pad, pad + 1)
    ]
    moved = shift(ramp, positions, 0)[:, 0, 0, side // 2]
    assert (moved.unique() - side // 2 - 1).tolist() == list(range(-most, most + 1))
    assert (cutout(ramp, positions, 0) == 0).any(dim=2).sum(dim=2).max() == hidden


def test_flip_mirrors_about_half_of_the_images_and_keeps_the_rest():
    many, positions = IMAGES.repeat(30, 1, 1, 1), torch.arange(COUNT * 30)
    flipped = flip(many, positions, seed=0)
    mirrored = (flipped == many.flip(-1)).all(dim=(1, 2, 3))
    kept = (flipped == many).all(dim=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 0.45 < mirrored.double().mean() < 0.55


def test_a_shift_equals_reflecting_and_slicing_each_image_and_every_offset_occurs():
    shifted = shift(IMAGES, POSITIONS, seed=5).numpy()
    tops = random_integers(5, Purpose.SHIFT_ROW, POSITIONS, 5).tolist()
    lefts = random_integers(5, Purpose.SHIFT_COLUMN, POSITIONS, 5).tolist()
    for image, result, top, left in zip(IMAGES.numpy(), shifted, tops, lefts, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        assert np.array_equal(result, padded[:, top : top + 32, left : left + 32])
    many = shift(IMAGES[:1].expand(500, -1, -1, -1), torch.arange(500), seed=5)
    padded = np.pad(IMAGES[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    offsets = {(top, left): padded[:, top : top + 32, left : left + 32] for top in range(5) for left in range(5)}
    assert {image.numpy().tobytes() for image in many} == {window.tobytes() for window in offsets.values()}


def mirrored(indices: torch.Tensor, epoch: int, seed: int = 3) -> torch.Tensor:
    """Which of `indices` `alternate` mirrors, seen in the pixels."""
    images = torch.arange(6.0).view(1, 1, 2, 3).expand(len(indices), -1, -1, -1)
    results = alternate(images, indices, epoch, seed)
    flipped = (results == images.flip(-1)).flatten(1).all(dim=1)
    assert torch.equal(flipped, ~(results == images).flatten(1).all(dim=1))
    return flipped


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_of_two_epochs_in_a_row_exactly_one_mirrors_an_image(epoch):
    indices = torch.arange(10_000)
    assert torch.equal(mirrored(indices, epoch), ~mirrored(indices, epoch + 1))
    assert 4800 < mirrored(indices, epoch).sum() < 5200  # 5,000 give or take four standard deviations


def test_which_images_alternate_depends_on_the_seed_and_the_image_and_not_on_the_order():
    indices = torch.arange(10_000)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mirrored(indices[order], 4), mirrored(indices, 4)[order])
    agreeing = (mirrored(indices, 4, seed=8) == mirrored(indices, 4)).sum()
    assert 4800 < agreeing < 5200
    pixels, positions = PIXELS[:1].expand(50, -1, -1, -1), torch.arange(50)
    elsewhere = [
        augment(pixels, Visits(p, NUMBERS[:50], 4), (ALTERNATE,), 3, NORMALIZE) for p in (positions, 9 - positions)
    ]
    assert torch.equal(*elsewhere)


def test_rotation_equals_torchvisions_by_the_same_angles():
    rotated = rotate(IMAGES, POSITIONS, seed=5)
    degrees = (random_integers(5, Purpose.ROTATION, POSITIONS, 301) - 150) / 10
    assert degrees.min() < -13
    assert degrees.max() > 13
    for image, result, angle in zip(IMAGES, rotated, degrees.tolist(), strict=True):
        expected = tv.rotate_image(image, angle, interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_cutout_zeroes_one_clipped_square_of_16_pixels_per_image():
    ones = torch.ones(4000, 1, 32, 32)
    hidden = cutout(ones, torch.arange(4000), seed=0) == 0
    rows, columns = hidden.any(dim=3).sum(dim=2), hidden.any(dim=2).sum(dim=2)
    assert torch.equal(hidden.sum(dim=(1, 2, 3)), (rows * columns).flatten())  # a full rectangle
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 16, 8, 16)
    assert abs(hidden.float().mean().item() - (14 / 32) ** 2) < 0.01  # by hand: a side keeps 14 of 16 pixels on average
    assert (hidden[:, 0].float().mean(dim=0) > 0.05).all()  # every pixel is hidden now and then


def test_jitter_equals_torchvisions_functions_with_the_same_factors():
    jittered = jitter(PIXELS.float(), POSITIONS, seed=5)
    purposes = (Purpose.BRIGHTNESS, Purpose.CONTRAST, Purpose.SATURATION)
    factors = [(random_uniform(5, p, POSITIONS) * 0.8 + 0.6).tolist() for p in purposes]
    for image, result, b, c, s in zip(PIXELS, jittered, *factors, strict=True):
        expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image / 255, b), c), s)
        torch.testing.assert_close(result / 255, expected, atol=1e-4, rtol=0)
    assert all(0.6 <= min(f) < 0.65 < 1.35 < max(f) <= 1.4 for f in factors)


SIGNED = torch.arange(-(BINS - 1), BINS)


def apply(name: str, image: torch.Tensor) -> torch.Tensor:
    """Operation `name` on copies of one image at every signed strength."""
    return OPERATIONS[name](image.float().repeat(len(SIGNED), 1, 1, 1), SIGNED)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", lambda x, s: tv.adjust_brightness(x, 1 + 0.99 * s)),
        ("saturation", lambda x, s: tv.adjust_saturation(x, 1 + 0.99 * s)),
        ("contrast", lambda x, s: tv.adjust_contrast(x, 1 + 0.99 * s)),
        ("sharpness", lambda x, s: tv.adjust_sharpness(x, 1 + 0.99 * s)),
        ("solarize", lambda x, s: tv.solarize(x, 1 - abs(s))),
        ("autocontrast", lambda x, _: tv.autocontrast(x)),
        ("posterize", lambda x, s: tv.posterize((x * 255).round().to(torch.uint8), 8 - round(6 * abs(s))) / 255),
        ("equalize", lambda x, _: tv.equalize((x * 255).round().to(torch.uint8)) / 255),
        ("identity", lambda x, _: x),
    ],
)
def test_every_colour_operation_of_the_policy_equals_torchvisions_at_every_strength(name, reference):
    image = PIXELS[0] // 2 + 30  # not already of full contrast
    for result, signed in zip(apply(name, image), SIGNED.tolist(), strict=True):
        if name == "posterize" and abs(signed) % 5 == 0 and abs(signed) % 10:
            continue  # halfway between two numbers of bits, which Python and we round differently
        torch.testing.assert_close(result / 255, reference(image / 255, signed / (BINS - 1)), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [  # as torchvision.transforms.v2.TrivialAugmentWide calls it; it counts shifts and angles the other way round
        ("shear_x", lambda s: {"shear": [math.degrees(math.atan(0.99 * s)), 0.0], "center": [0, 0]}),
        ("shear_y", lambda s: {"shear": [0.0, math.degrees(math.atan(0.99 * s))], "center": [0, 0]}),
        ("translate_x", lambda s: {"translate": [-32.0 * s, 0.0]}),
        ("translate_y", lambda s: {"translate": [0.0, -32.0 * s]}),
        ("rotate", lambda s: {"angle": -135.0 * s}),
    ],
)
def test_every_geometric_operation_of_the_policy_equals_torchvisions_at_every_strength(name, keywords):
    image = smooth()
    still = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
    for result, signed in zip(apply(name, image), SIGNED.tolist(), strict=True):
        matrix = {**still, **keywords(signed / (BINS - 1))}
        expected = tv.affine_image(image - 128, **matrix, interpolation=v2.InterpolationMode.BILINEAR)[0] + 128
        torch.testing.assert_close(result, expected, atol=0.1, rtol=0)


def test_the_policy_draws_every_operation_and_strength_about_equally_often():
    positions = torch.arange(14_000)
    operations = random_integers(7, Purpose.POLICY_OPERATION, positions, len(OPERATIONS))
    counts = torch.bincount(operations, minlength=14).double()
    assert ((counts - 1000).square() / 1000).sum() < 34.5  # chi-square, 13 degrees of freedom, p = 0.001
    image = PIXELS[:1].float().repeat(400, 1, 1, 1)
    assert len({tuple(row) for row in trivial(image, positions[:400], 7).flatten(1)[:, ::97].tolist()}) > 200


def test_mixup_blends_with_the_partner_by_its_share():
    partners = IMAGES.flip(0)
    mixed, share = mixup(IMAGES, partners, POSITIONS, seed=2)
    for i in range(COUNT):
        torch.testing.assert_close(mixed[i], torch.lerp(partners[i], IMAGES[i], share[i]))
    _, many = mixup(IMAGES[:1].expand(5000, -1, -1, -1), IMAGES[:1].expand(5000, -1, -1, -1), torch.arange(5000), 0)
    assert 0 <= many.min() < 0.01 < 0.99 < many.max() <= 1
    assert abs(many.mean() - 0.5) < 0.02


def test_cutmix_pastes_a_square_and_counts_its_pixels():
    zeros, ones = torch.zeros(3000, 3, 32, 32), torch.ones(3000, 3, 32, 32)
    mixed, share = cutmix(zeros, ones, torch.arange(3000), seed=2)
    torch.testing.assert_close(1 - mixed.mean(dim=(1, 2, 3)), share)
    rows, columns = mixed[:, 0].amax(dim=2).sum(dim=1), mixed[:, 0].amax(dim=1).sum(dim=1)
    torch.testing.assert_close(1 - rows * columns / 1024, share)  # a full rectangle
    assert 0.2 < mixed.mean() < 0.5
    assert (mixed[:, 0].mean(dim=0) > 0.1).all()  # every pixel is replaced now and then


def test_partners_are_places_of_the_same_epoch_independent_of_the_batch():
    places = partner_places(torch.arange(20_000), 0, 500)
    assert torch.equal(places[7:9], partner_places(torch.tensor([7, 8]), 0, 500))
    counts = torch.bincount(places, minlength=500).double()
    assert ((counts - 40).square() / 40).sum() < 603  # chi-square, 499 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("crop", "flop"), "unknown augmentation 'flop'. Did you mean 'flip'?"),
        (("mixup", "crop", "cutmix"), "--augment mixup crop cutmix: an image is mixed once; use mixup or cutmix"),
        (("crop", "crop"), "names crop twice"),
        (("alternate", "flip"), "--augment alternate flip mirrors images twice; use flip or alternate"),
    ],
)
def test_wrong_names_are_one_line(names, message):
    with pytest.raises(UserError) as error:
        check_augmentations(names)
    assert message in str(error.value)


def test_normalize_equals_torchvisions():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(PIXELS)
    torch.testing.assert_close(Normalize(mean, std, torch.device("cpu"))(PIXELS), reference, atol=1e-6, rtol=1e-6)


def test_half_maps_bytes_to_minus_one_and_one():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert Normalize((0.5,), (0.5,), torch.device("cpu"))(ends).flatten().tolist() == pytest.approx([-1, 1])


def test_without_normalisation_inputs_are_bytes_as_shares():
    ends = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    normalize = normalize_as("none", (0.49,), (0.25,), torch.device("cpu"))
    assert normalize(ends).flatten().tolist() == pytest.approx([0, 0.2, 1])
    reference = v2.ToDtype(torch.float32, scale=True)(PIXELS)
    ours = normalize_as("none", (0.49,) * 3, (0.25,) * 3, torch.device("cpu"))
    torch.testing.assert_close(ours(PIXELS), reference, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(ours.undo(ours(PIXELS)), reference, atol=1e-7, rtol=1e-6)


def test_grey_weighs_the_channels_as_torchvision_does():
    torch.testing.assert_close(grey(PIXELS.float()), tv.rgb_to_grayscale(PIXELS.float()), atol=1e-3, rtol=0)
