"""Every kind of file against what was written into it."""

import io

import numpy as np
import pytest
import tifffile
import torch
from pictures import animation, deep_jpeg_2000, deep_png, encoded, npy, random_pixels, smooth, tiff
from PIL import Image, ImageOps

from crossmae.training.data import decoding
from crossmae.training.data.decoding import UnreadableImage, decode

RGB = random_pixels(0, 20, 30, 3)
DEEP = random_pixels(1, 20, 30, 3, dtype=np.uint16)


def pixels(content, channels=3, dtype=torch.uint8, **options):
    image = decode(content, "it", channels, dtype, **options)
    assert image.dtype == dtype
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_colours_are_as_they_were(form):
    content = encoded(RGB, form)
    assert (pixels(content) == RGB).all()
    np.testing.assert_allclose(pixels(content, dtype=torch.float32), RGB / 255, rtol=0, atol=1e-7)
    grey = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(content, channels=1)[..., 0] - grey).max() <= 1


def test_a_path_is_as_good_as_its_content(tmp_path):
    (tmp_path / "no_extension").write_bytes(encoded(RGB, "PNG"))
    assert (pixels(tmp_path / "no_extension") == RGB).all()


MODES = {"PNG": "1 L LA P RGBA", "TIFF": "1 L LA P RGBA CMYK YCbCr", "JPEG": "1 L CMYK YCbCr"}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes.split()])
def test_other_modes_become_rgb(form, mode):
    picture = Image.fromarray(smooth(0, 20, 30)).convert(mode)
    expected = np.array(picture.convert("RGB"), int)
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    difference = np.abs(pixels(encoded(picture, form, **options)) - expected)
    assert difference.mean() < 4 if form == "JPEG" else difference.max() == 0


def test_alpha_is_a_channel_if_four_are_asked_for():
    alpha = random_pixels(2, 20, 30, 4)
    assert (pixels(encoded(alpha, "PNG"), 4) == alpha).all()
    assert (pixels(encoded(alpha, "PNG"), 3) == alpha[..., :3]).all()
    assert (pixels(tiff(alpha, photometric="rgb", extrasamples=["unassalpha"])) == alpha[..., :3]).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(form):
    options = {"lossless": True} if form == "WEBP" else {}
    first, found = smooth(0, 30, 40).astype(int), pixels(animation(form, **options))
    assert np.abs(found - first).max() <= (40 if form == "GIF" else 0)  # a palette
    assert np.abs(found - smooth(1, 30, 40).astype(int)).mean() > 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = {form: encoded(RGB, form, exif=exif) for form in ("PNG", "JPEG", "TIFF")}
    content["tifffile"] = tiff(RGB, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    for form in content:
        # Pillow's own way round, on the picture as it lies in the file.
        lying = Image.fromarray(pixels(encoded(RGB, form)) if form != "tifffile" else RGB)
        lying.getexif()[0x0112] = orientation
        assert (pixels(content[form]) == np.array(ImageOps.exif_transpose(lying))).all(), form


def test_notes_that_are_broken_do_no_harm():
    content = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\xff\xff")
    assert (pixels(content) == pixels(encoded(RGB, "JPEG"))).all()


@pytest.mark.parametrize(
    "content",
    [
        tiff(DEEP, photometric="rgb"),
        tiff(DEEP, photometric="rgb", compression="zlib", byteorder=">"),
        tiff(np.moveaxis(DEEP, 2, 0), photometric="rgb", planarconfig="separate"),
        tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack"),  # pages
        npy(DEEP),
        npy(DEEP.astype(">u2")),
        npy(np.moveaxis(DEEP, 2, 0)),
        npy(np.asfortranarray(DEEP)),
    ],
)
def test_16_bits(content):
    np.testing.assert_allclose(pixels(content, dtype=torch.float32), DEEP / 65535, rtol=0, atol=1e-7)
    assert torch.equal(decode(content, "it", 3), decode(content, "it", 3, torch.float32))
    with pytest.raises(UnreadableImage, match=r"it holds uint16, which uint8 cannot represent; data.dtype=float32"):
        decode(content, "it", 3, torch.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_of_grey(form):
    grey = DEEP[..., 0]
    options = {"irreversible": False} if form == "JPEG2000" else {}
    found = pixels(encoded(grey, form, **options), dtype=torch.float32)
    np.testing.assert_allclose(found, np.repeat(grey[..., None] / 65535, 3, 2), rtol=0, atol=1e-7)
    assert (decode(encoded(grey, form, **options), "it", 1)[0].numpy() == found[..., 0]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_may_be_zero(dtype):
    grey, full = DEEP[..., 0].astype(dtype), np.iinfo(dtype).max
    found = pixels(tiff(full - grey, photometric="miniswhite"), 1, torch.float32)
    np.testing.assert_allclose(found[..., 0], grey / full, rtol=0, atol=1e-7)
    with pytest.raises(UnreadableImage, match="white is declared to be 0, but int16 has no value for black"):
        decode(tiff(grey.astype(np.int16), photometric="miniswhite"), "it", 1)


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_many_channels(channels):
    planes = random_pixels(3, channels, 20, 30)
    for content in (
        tiff(planes, photometric="minisblack", planarconfig="separate"),
        tiff(np.moveaxis(planes, 0, 2), photometric="minisblack", planarconfig="contig"),
        tiff(planes, photometric="minisblack"),
        tiff(np.stack([planes, planes + 1]), imagej=True, metadata={"axes": "TCYX"}),
        npy(planes),
        npy(np.moveaxis(planes, 0, 2)),
    ):
        assert (decode(content, "it", channels).numpy() == planes).all()
        with pytest.raises(UnreadableImage, match=r"it cannot be read: its .*7"):
            decode(content, "it", 7)


def test_floats_stay_as_they_are():
    values = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    for content in (npy(values), npy(values.astype(np.float64)), tiff(values), tiff(values, compression="zlib")):
        assert (pixels(content, 1, torch.float32)[..., 0] == values).all()
        assert torch.equal(decode(content, "it", 1)[0], torch.from_numpy(values))
        with pytest.raises(UnreadableImage, match=r"it holds float\d\d, which uint8 cannot represent"):
            decode(content, "it", 1, torch.uint8)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_wide_pictures_come_reduced(form):
    wide = np.array(Image.fromarray(smooth(0, 400, 20_000)))
    content = encoded(wide, form)
    reduced = decode(content, "it", 3, at_least=(45, 50))
    assert reduced.shape == (3, 100, 5000)
    assert decode(content, "it", 3, at_least=(51, 50)).shape == ((3, 200, 10_000) if form == "JPEG" else (3, 134, 6667))
    assert decode(content, "it", 3, at_least=(101, 20)).shape == (3, 400, 20_000)
    assert decode(content, "it", 3).shape == (3, 400, 20_000)
    exact = wide.reshape(100, 4, 5000, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced.permute(1, 2, 0).numpy() - exact).mean() < 3


def test_pictures_beyond_pillows_limit_are_read_and_its_limit_stays():
    limit = Image.MAX_IMAGE_PIXELS
    content = encoded(Image.new("1", (20_000, 10_000), 1), "PNG")
    assert decode(content, "it", 1).shape == (1, 10_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_size_has_a_limit(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 599)
    for content in (encoded(RGB, "PNG"), encoded(RGB, "JPEG"), tiff(DEEP, photometric="rgb"), npy(RGB)):
        with pytest.raises(UnreadableImage, match="20 x 30 pixels; at most 599 are supported"):
            decode(content, "it", 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "its format is unknown"),
        (encoded(RGB, "PNG")[:200], "truncated"),
        (encoded(RGB, "JPEG")[:100], "."),
        (tiff(DEEP, photometric="rgb")[:400], "."),
        (tiff(RGB)[:200], "."),
        (npy(RGB)[:50], "EOF"),
        (npy(RGB)[:300], "EOF"),
        (npy(np.array([["a", 1]], object)), "allow_pickle"),
        (npy(RGB.astype(np.complex64)), "it holds complex64; integers and floats"),
        (npy(RGB[0, 0]), r"its shape is \(3,\)"),
        (npy(RGB[:0]), "0 x 30 pixels"),
        (random_pixels(5, 1000).tobytes(), "is unknown"),
    ],
)
def test_what_cannot_be_read_says_why(content, reason):
    with pytest.raises(UnreadableImage, match=rf"some/name\.jpg cannot be read: .*{reason}"):
        decode(content, "some/name.jpg", 3)


@pytest.mark.parametrize("filtering", range(5))
@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_of_16_bits_keeps_them_in_colours(channels, filtering):
    deep = random_pixels(6, 20, 30, channels, dtype=np.uint16)
    found = pixels(deep_png(deep, filtering), channels, torch.float32)
    np.testing.assert_allclose(found, deep / 65535, rtol=0, atol=1e-7)
    assert (pixels(deep_png(deep, filtering), 3, torch.float32) == found[..., :3]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (deep_png(DEEP[..., :2], 0), "16-bit greyscale PNG with alpha, and Pillow reads only 8 bits"),
        (b"P6\n30 20\n65535\n" + DEEP.astype(">u2").tobytes(), "colours go up to 65535, and Pillow reads only 8 bits"),
        (b"P3\n1 1\n1023\n1 2 3\n", "colours go up to 1023"),
        (deep_jpeg_2000(), "it has 12 bits per channel, and Pillow reads only 8"),
    ],
)
def test_what_pillow_would_cut_to_8_bits_is_refused(content, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(content, "it", 3)


def pages(images, byteorder="<", **options):
    """A TIFF of one page after another, each described on its own."""
    content = io.BytesIO()
    with tifffile.TiffWriter(content, byteorder=byteorder) as file:
        for image in images:
            file.write(image, photometric="minisblack", contiguous=False, **options)
    return content.getvalue()


@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("channels", [3, 4])
def test_pages_that_were_written_one_by_one_are_channels_too(channels, dtype, options):
    planes = random_pixels(7, channels, 20, 30).astype(dtype)
    found = decode(pages(planes, **options), "it", channels, torch.float32).numpy()
    full = np.iinfo(dtype).max if dtype in (np.uint8, np.uint16) else 1
    np.testing.assert_allclose(found, planes / full, rtol=0, atol=1e-7)


def test_pages_of_different_sizes_are_pictures():
    content = pages([DEEP[..., 0], DEEP[:10, :15, 0], DEEP[:5, :7, 0]])
    np.testing.assert_allclose(pixels(content, 1, torch.float32), DEEP[..., :1] / 65535, rtol=0, atol=1e-7)


def test_channels_that_pillow_does_not_know_are_counted():
    four = tiff(random_pixels(8, 20, 30, 4), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImage, match=r"its number of channels is 4, but 3 were requested"):
        decode(four, "it", 3)
    mosaic = tiff(DEEP[..., 0], photometric="cfa")
    np.testing.assert_allclose(pixels(mosaic, 1, torch.float32), DEEP[..., :1] / 65535, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["ycbcr", "cielab", "separated", "palette"])
def test_colours_of_other_kinds_are_not_taken_for_red_green_and_blue(kind):
    options = {"colormap": np.zeros((3, 65536), np.uint16)} if kind == "palette" else {}
    values = {"palette": DEEP[..., 0], "separated": random_pixels(9, 20, 30, 4, dtype=np.uint16)}.get(kind, DEEP)
    with pytest.raises(UnreadableImage, match=f"its colours are {kind.upper()} of 16 bits; save it as RGB"):
        decode(tiff(values, photometric=kind, **options), "it", 3)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_colours_multiplied_by_alpha_are_divided_again(dtype, full):
    """Of alpha 1, 1/2, 1/4 and nothing; products of integers are rounded by up to a half, four times that at 1/4."""
    alpha = np.array([full, full / 2, full / 4, 0])[:, None].astype(dtype).astype(np.float64)
    colours = np.array([[0.2, 0.4, 0.6], [0.0, 0.3, 1.0], [1.0, 0.5, 0.1], [0.5, 0.5, 0.5]])
    products = np.concatenate([colours * alpha, alpha], axis=-1)
    stored = products.astype(dtype) if dtype == np.float32 else np.rint(products).astype(dtype)
    content = tiff(stored.reshape(2, 2, 4), photometric="rgb", extrasamples=["assocalpha"])
    found = pixels(content, 3, torch.float32).reshape(4, 3)
    np.testing.assert_allclose(found, np.where(alpha > 0, colours, 0), rtol=0, atol=1e-6 if full == 1 else 3 / full)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match=r"nothing cannot be read: .*No such file"):
        decode(tmp_path / "nothing", "nothing", 3)
