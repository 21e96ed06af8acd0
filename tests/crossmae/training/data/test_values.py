"""Numbers of every type, and places without data, as they reach the model."""

import numpy as np
import pytest
import torch
from pictures import bits_12, encoded, npy, random_pixels, smooth, tiff
from PIL import Image

from crossmae.training.data.decoding import UnreadableImage, decode
from crossmae.training.data.values import Picture, with_channels


def of_type(dtype):
    """Ten bands of ``(20, 30)``, 400 levels or so, negative ones too where there are any."""
    levels = random_pixels(0, 20, 30, 10, dtype=np.uint16) % 4001
    if dtype == np.bool_:
        return levels > 2000
    if np.dtype(dtype).itemsize == 1:
        levels = levels // 32
    return (
        (levels.astype(int) - (1000 if np.dtype(dtype).itemsize > 1 else 60)).astype(dtype)
        if np.dtype(dtype).kind != "u"
        else levels.astype(dtype)
    )


TYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
FULL = {"?": 1, "u1": 255, "u2": 65535}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_keeps_every_level(kind, order):
    array = of_type(np.dtype(kind))
    expected = array / np.float64(FULL.get(kind, 1))
    contents = [npy(array.astype(np.dtype(kind).newbyteorder(order)))]
    if kind != "?":
        planes = np.moveaxis(array, 2, 0)
        contents += [
            tiff(array, photometric="minisblack", planarconfig="contig", byteorder=order),
            tiff(planes, photometric="minisblack", planarconfig="separate", byteorder=order),
            tiff(planes, photometric="minisblack", byteorder=order, compression="zlib"),
        ]
    for content in contents:
        image = decode(content, "it", 10)
        assert image.dtype == (torch.uint8 if kind in ("?", "u1") else torch.float32)
        shares = decode(content, "it", 10, torch.float32).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(shares, expected, rtol=1e-6, atol=0)
        assert len(np.unique(shares)) == len(np.unique(array))


@pytest.mark.parametrize("kind", TYPES)
def test_one_band_of_a_tiff_keeps_every_level(kind):
    """Which Pillow may read."""
    array = of_type(np.dtype(kind))[..., 0]
    found = decode(tiff(array, photometric="minisblack"), "it", 1, torch.float32)[0].numpy()
    np.testing.assert_allclose(found, array / np.float64(FULL.get(kind, 1)), rtol=1e-6, atol=0)


def test_12_bits_in_three_bytes_are_shares_of_their_own_scale():
    grey = random_pixels(1, 20, 30, dtype=np.uint16) // 16
    found = decode(bits_12(grey), "it", 1)[0].numpy()
    np.testing.assert_allclose(found, grey / 4095, rtol=1e-6, atol=0)


def test_what_the_numbers_mean_may_be_said():
    array = of_type(np.dtype("u2"))
    assert (decode(npy(array), "it", 10, numbers="values").permute(1, 2, 0).numpy() == array).all()
    small = of_type(np.dtype("u1"))
    values = decode(npy(small), "it", 10, numbers="values")
    assert values.dtype == torch.float32
    assert (values.permute(1, 2, 0).numpy() == small).all()
    for kind in ("u4", "i2", "f4"):
        with pytest.raises(UnreadableImage, match=r"has no full scale; set data.numbers=values to pretrain"):
            decode(npy(of_type(np.dtype(kind))), "it", 10, numbers="shares")


@pytest.mark.parametrize("kind", ["u4", "i4", "i8"])
def test_integers_too_close_for_float32_are_refused(kind):
    """Its spacing is 128 around 2 billion."""
    array = of_type(np.dtype("u2")).astype(kind)
    with pytest.raises(UnreadableImage, match="are too close together for float32"):
        decode(npy(array + 2_000_000_000), "it", 10)
    assert decode(npy(array * 500_000), "it", 10).unique().numel() == len(np.unique(array))
    assert (decode(npy(np.full_like(array, 2_000_000_001)), "it", 10) == 2e9).all()


def test_floats_beyond_float32_are_refused():
    with pytest.raises(UnreadableImage, match="beyond float32"):
        decode(npy(np.array([[1e300, 0.0]])), "it", 1, nodata=-9999.0)


def holed(kind, value):
    """Ten bands of a type with ``value`` in a corner of all and a place of one; and where."""
    array, holes = of_type(np.dtype(kind)), np.zeros((20, 30, 10), np.bool_)
    holes[:7, :5], holes[12, 13, 4] = True, True
    array[array == value] = 1
    array[holes] = value
    return array, holes


HOLES = [("f4", np.nan), ("f4", -9999), ("f8", -1.7976931348623157e308), ("i2", -9999), ("i2", -(2**15))]
HOLES += [("i4", -(2**31)), ("f4", float(np.finfo(np.float32).min)), ("f4", np.inf), ("f8", 1e20)]


@pytest.mark.parametrize(("kind", "value"), HOLES)
def test_no_data_that_nobody_named_is_refused(kind, value):
    array, _ = holed(kind, value)
    for content in (npy(array), tiff(array, photometric="minisblack", planarconfig="contig")):
        with pytest.raises(UnreadableImage, match=r"it cannot be read: it holds .*; set data.nodata="):
            decode(content, "it", 10)


def test_the_value_that_a_refusal_names_is_exact():
    """-2147483648, where six digits would name another."""
    array, holes = holed("i4", -(2**31))
    with pytest.raises(UnreadableImage, match=r"data.nodata=") as refusal:
        decode(npy(array), "it", 10)
    named = float(str(refusal.value).partition("data.nodata=")[2].partition(" ")[0])
    found = decode(npy(array), "it", 10, nodata=named).permute(1, 2, 0).numpy()
    assert (np.isnan(found) == holes).all()


def test_bits_as_numbers_are_0_and_1():
    bits = of_type(np.dtype("?"))
    values = decode(npy(bits), "it", 10, numbers="values")
    assert values.dtype == torch.float32
    assert (values.permute(1, 2, 0).numpy() == bits).all()


def test_a_setting_takes_other_channels():
    for content, message in (
        (
            tiff(of_type(np.dtype("u2")), photometric="minisblack", planarconfig="contig"),
            r"is 10, but 3 .* model_options.channels=10",
        ),
        (npy(of_type(np.dtype("u2"))), r"is \(20, 30, 10\), but 3 channels .* model_options.channels to pretrain"),
    ):
        with pytest.raises(UnreadableImage, match=message):
            decode(content, "it", 3)


@pytest.mark.parametrize(("kind", "value"), [*HOLES, ("u2", 0), ("u2", 65535), ("u1", 0), ("f4", -3.4), ("f2", -0.1)])
def test_no_data_that_is_named_is_filled(kind, value):
    array, holes = holed(kind, value)
    fill = np.arange(10) / 16
    expected = np.where(holes, fill, array / np.float64(FULL.get(kind, 1)))
    name = value if np.isfinite(value) else np.nan
    for options in ({}, {"byteorder": ">"}, {"compression": "zlib"}):
        content = tiff(array, photometric="minisblack", planarconfig="contig", **options)
        found = decode(content, "it", 10, torch.float32, nodata=name, fill=fill).permute(1, 2, 0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = decode(npy(array), "it", 10, nodata=name).permute(1, 2, 0).numpy()
    assert (np.isnan(found) == holes).all()


@pytest.mark.parametrize("text", ["-9999", " -9999.0\0", "-9.999e3", "-9999,0"])
def test_a_tiffs_own_tag_names_it(text):
    array, holes = holed("i2", -9999)
    tag = [(42113, 2, 0, text, True)]
    for content in (
        tiff(array, photometric="minisblack", planarconfig="contig", extratags=tag),
        tiff(np.moveaxis(array, 2, 0), photometric="minisblack", extratags=tag),
    ):
        found = decode(content, "it", 10).permute(1, 2, 0).numpy()
        assert (np.isnan(found) == holes).all()
        assert (found[~holes] == array[~holes]).all()
    found = decode(tiff(array[..., 4], extratags=tag), "it", 3).permute(1, 2, 0).numpy()  # as RGB
    assert (np.isnan(found) == holes[..., 4:5]).all()


def test_a_tag_that_is_no_number_is_refused(caplog):
    with pytest.raises(UnreadableImage, match="GDAL_NODATA tag is not a number: 'water'"):
        decode(tiff(of_type(np.dtype("u2")), extratags=[(42113, 2, 0, "water", True)]), "it", 10)
    assert not caplog.records  # tifffile has its own opinion


def test_a_tag_of_8_bits_counts_where_pillow_reads_too():
    """Before the picture is reduced or its channels are mixed."""
    picture = np.maximum(smooth(0, 200, 300), 1)
    picture[:50, :50] = 0
    picture[120, 130, 1] = 0
    content = tiff(picture, photometric="rgb", extratags=[(42113, 2, 0, "0", True)])
    found = decode(content, "it", 3, at_least=(10, 10)).permute(1, 2, 0).numpy()
    assert (np.isnan(found) == (picture == 0)).all()
    grey = decode(content, "it", 1, at_least=(10, 10))[0].numpy()
    assert (np.isnan(grey) == (picture == 0).any(-1)).all()
    assert decode(tiff(picture, photometric="rgb"), "it", 3, at_least=(10, 10)).shape == (3, 20, 30)


def test_in_a_palette_the_colour_is_meant_or_for_a_tiff_the_index():
    indices = random_pixels(0, 20, 30) % 4
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([9, 9, 9, 50, 60, 70, 0, 0, 0, 200, 210, 220])
    found = decode(encoded(picture, "PNG"), "it", 3, nodata=0.0)[0].numpy()
    assert (np.isnan(found) == (indices == 2)).all()
    content = encoded(picture, "TIFF", tiffinfo={42113: "0"})
    assert (np.isnan(decode(content, "it", 3)[0].numpy()) == (indices == 0)).all()


def test_values_that_look_like_no_data_may_be_said_to_be_values():
    array, _ = holed("i2", -9999)
    assert (decode(npy(array), "it", 10, nodata=float("nan")).permute(1, 2, 0).numpy() == array).all()


def test_an_image_without_any_data_is_refused():
    for content in (npy(np.full((20, 30), np.nan)), npy(np.full((20, 30, 3), -9999))):
        with pytest.raises(UnreadableImage, match="all of its data are missing"):
            decode(content, "it", 3, nodata=-9999.0)
    half = np.dstack([np.full((20, 30), -9999), np.ones((20, 30), int), np.ones((20, 30), int)])
    assert decode(npy(half), "it", 3, nodata=-9999.0, fill=(0.5, 0.0, 0.0)).flatten(1).mean(1).tolist() == [0.5, 1, 1]


def test_8_bits_have_no_room_for_no_data():
    array, _ = holed("u1", 0)
    with pytest.raises(UnreadableImage, match=r"it holds missing data, which uint8 cannot represent"):
        decode(npy(array), "it", 10, torch.uint8, nodata=0.0)


def test_no_data_turns_with_its_picture():
    missing = np.zeros((2, 3, 1), np.bool_)
    missing[0, 2] = True
    picture = Picture("it", np.arange(6, dtype=np.uint16).reshape(2, 3, 1), 6, 65535, missing)
    turned = picture.tensor(1, numbers="values")[0]
    assert torch.equal(turned.nan_to_num(-1), torch.tensor([[3.0, 0], [4, 1], [5, -1]]))


def test_channels_of_deep_images():
    deep = torch.tensor([0.01, 0.02, 0.03])[:, None, None]
    torch.testing.assert_close(with_channels(deep, 1), torch.full((1, 1, 1), 0.01815))
