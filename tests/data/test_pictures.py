"""Pictures of every format, mode and size, as a model sees them."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cifar_dist.data.pictures import PictureError, as_model_sees, opened

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
SMOOTH = np.rint(127 + 120 * np.sin(np.arange(32) / 7))[:, None, None] + np.zeros((32, 32, 3))


def seen(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    """What a model sees of the file that an image is written to."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    with opened(io.BytesIO(file.getvalue())) as read:
        return as_model_sees(read, 32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_what_loses_nothing_is_seen_as_it_is(kind, options):
    assert (seen(Image.fromarray(PIXELS), kind, **options) == PIXELS).all()


def test_jpeg_is_seen_as_far_as_it_goes():
    assert np.abs(seen(Image.fromarray(SMOOTH.astype(np.uint8)), "JPEG", quality=95) - SMOOTH).max() <= 3


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})])
def test_of_several_frames_the_first_is_seen(kind, options):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ((200, 10, 30), (0, 0, 255)))
    shown = seen(first, kind, save_all=True, append_images=[second], **options)
    assert (shown == np.array([200, 10, 30])).all()


def test_grey_black_and_white_and_palettes_become_rgb():
    grey = PIXELS[..., 0]
    assert (seen(Image.fromarray(grey)) == grey[..., None]).all()
    assert (seen(Image.fromarray(grey > 128)) == np.where(grey > 128, 255, 0)[..., None]).all()
    palette = Image.fromarray(grey // 64, "P")
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    palette.putpalette(colours.tobytes())
    assert (seen(palette) == colours[grey // 64]).all()


def test_what_is_transparent_lies_on_white():
    def on_white(colours, alpha):
        share = alpha[..., None] / 255
        return share * colours + (1 - share) * 255

    rgba = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    assert np.abs(seen(rgba) - on_white(PIXELS.astype(float), ALPHA)).max() <= 1
    grey = Image.merge("LA", (Image.fromarray(PIXELS[..., 0]), Image.fromarray(ALPHA)))
    assert np.abs(seen(grey) - on_white(PIXELS[..., :1].astype(float), ALPHA)).max() <= 1
    palette = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) % 2, (32, 1)), "P")
    palette.putpalette([9, 9, 9, 100, 0, 0])
    assert (seen(palette, transparency=1)[0, :2] == [[9, 9, 9], [255, 255, 255]]).all()
    one_colour = seen(Image.fromarray(PIXELS), transparency=tuple(map(int, PIXELS[3, 4])))
    assert (one_colour[3, 4] == 255).all() and (one_colour[3, 5] == PIXELS[3, 5]).all()


def test_inks_become_light():
    inks = np.dstack([PIXELS, ALPHA]).astype(float)
    expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(seen(Image.fromarray(inks.astype(np.uint8), "CMYK"), "TIFF") - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_rounded_to_8_not_cut_off(kind):
    values = RNG.integers(0, 65536, (32, 32), dtype=np.uint16)
    assert (seen(Image.fromarray(values), kind) == np.floor(values / 257 + 0.5)[..., None]).all()


def test_values_without_a_known_white_are_refused():
    with pytest.raises(PictureError, match="floating-point values"):
        seen(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF")
    for odd in (-1, 65536):
        with pytest.raises(PictureError, match="more than 16 bits"):
            seen(Image.fromarray(np.full((32, 32), odd, np.int32)), "TIFF")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pictures_are_turned_upright(kind):
    upright = {  # EXIF 2.32, 4.6.5.1.5: what lies where the 0th row and the 0th column should
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, 1),
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert (seen(Image.fromarray(PIXELS), kind, exif=exif) == expected).all(), orientation


def test_of_a_rectangle_the_middle_square_is_seen():
    wide = RNG.integers(0, 256, (32, 100, 3), dtype=np.uint8)
    assert (seen(Image.fromarray(wide)) == wide[:, 34:66]).all()
    tall = wide.transpose(1, 0, 2).copy()
    assert (seen(Image.fromarray(tall)) == tall[34:66]).all()


@pytest.mark.parametrize("side", [8, 31, 33, 200, 1000])
def test_other_sizes_are_resized_bicubically_and_smoothed(side):
    """As torch's own antialiased operator does, within rounding, away from black and white, which cut overshoots off."""
    pixels = np.random.default_rng(side).integers(70, 186, (side, side, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    expected = expected[0].permute(1, 2, 0).clamp(0, 255).numpy()
    assert np.abs(seen(Image.fromarray(pixels)) - expected).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 31)])
def test_the_smallest_and_thinnest_are_seen(size):
    assert (seen(Image.new("RGB", size, (1, 2, 3))) == [1, 2, 3]).all()


def test_a_huge_picture_is_refused_by_its_size():
    with pytest.raises(PictureError, match=r"has 9000x9000 pixels, more than 67,108,864; resize it first"):
        seen(Image.new("1", (9000, 9000)))


def test_other_formats_and_torn_files_are_named():
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n"):
        with (
            pytest.raises(PictureError, match="is no image in one of the formats PNG, JPEG"),
            opened(io.BytesIO(content)),
        ):
            pass
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    with (
        pytest.raises(PictureError, match="can't be decoded"),
        opened(io.BytesIO(file.getvalue()[:500])) as image,
    ):
        as_model_sees(image, 32)
