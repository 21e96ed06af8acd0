"""What is found in a data set, and the images that come of it."""

import numpy as np
import pytest
import torch
from pictures import encoded, npy, random_pixels, tiff

from crossmae.training.data.config import DataConfig
from crossmae.training.data.decoding import UnreadableImage
from crossmae.training.data.factory import open_images

BANDS = 10


def scene(seed, top=4000, shape=(BANDS, 16, 16), dtype=np.uint16):
    rng = np.random.default_rng(seed)
    return rng.integers(0, top + 1, shape).astype(dtype)


def write(folder, arrays, form=npy, extension="npy"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        content = array if isinstance(array, bytes) else form(array)
        (folder / f"{number:03}.{extension}").write_bytes(content)
    return folder


def opened(folder, channels=BANDS, size=(16, 16), strict=False, **options):
    options = {"crop_scale": None, "flip": False, **options}
    return open_images(DataConfig(str(folder), **options), channels, size, mask_noise=16, strict=strict)


def everything(dataset):
    return torch.stack([dataset[0, index].image for index in range(len(dataset))]).double().numpy()


def test_ten_bands_of_12_bits_keep_all_their_levels(tmp_path):
    arrays = [scene(seed) for seed in range(20)]
    write(tmp_path, arrays, lambda a: tiff(a, photometric="minisblack", planarconfig="separate"), "tif")
    dataset = opened(tmp_path)
    images, exact = everything(dataset), np.stack(arrays) / 65535
    np.testing.assert_allclose(images, exact, rtol=1e-6)
    assert len(np.unique(images)) == len(np.unique(exact)) > 3900  # 17 if they were cut to bytes
    np.testing.assert_allclose(dataset.data.mean, exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(dataset.data.std, exact.std((0, 2, 3)), rtol=1e-6)
    assert (dataset.data.dtype, dataset.data.numbers) == ("float32", "shares")
    assert dataset.found == "uint16 from 0 to 4,000 as shares of full scale, in float32"


def test_8_bits_travel_as_they_did(tmp_path):
    arrays = [random_pixels(seed, 16, 16, 3) for seed in range(4)]
    write(tmp_path, arrays, lambda a: encoded(a, "PNG"), "png")
    dataset = opened(tmp_path, 3)
    assert dataset[0, 0].image.dtype == torch.uint8
    assert (dataset.data.dtype, dataset.data.numbers) == ("uint8", "shares")
    assert dataset.found.endswith(" as shares of full scale, in uint8")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_other_numbers_are_values(tmp_path, dtype):
    arrays = [(scene(seed).astype(int) - 1000 * (dtype != np.uint32)).astype(dtype) for seed in range(4)]
    dataset = opened(write(tmp_path, arrays))
    assert (everything(dataset) == np.stack(arrays)).all()
    np.testing.assert_allclose(dataset.data.mean, np.stack(arrays).mean((0, 2, 3), np.float64), rtol=1e-6)
    assert dataset.data.numbers == "values"


def test_what_is_found_is_not_looked_for_again(tmp_path, monkeypatch):
    folder = write(tmp_path, [scene(seed) for seed in range(4)])
    first = opened(folder)
    monkeypatch.setattr("crossmae.training.data.factory.survey", None)
    again = open_images(first.data, BANDS, (16, 16), 16)
    assert again.data == first.data
    assert (everything(again) == everything(first)).all()
    statistics = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert opened(folder, 3, dtype="uint8", **statistics).data.numbers == "shares"


MIXED = {
    "uint16 from 0 to .* and int16": ([scene(0), scene(1, dtype=np.int16)], "values"),
    "int16 from .* and float32": ([scene(0, dtype=np.int16), scene(1, dtype=np.float32)], "values"),
    "uint8 from 0 to 255 .* and uint16 from 0 to 4,000": (
        [random_pixels(0, BANDS, 16, 16), *(scene(seed, shape=(BANDS, 64, 64)) for seed in range(2))],
        "shares",
    ),
}


@pytest.mark.parametrize("found", MIXED)
def test_numbers_that_cannot_be_compared_are_refused_until_it_is_said_how(tmp_path, found):
    arrays, numbers = MIXED[found]
    folder = write(tmp_path, arrays)
    with pytest.raises(ValueError, match=rf"the images hold {found}.*set data.numbers=values .*data.numbers=shares"):
        opened(folder)
    dataset = opened(folder, size=(16, 16), numbers=numbers)
    assert dataset.data.numbers == numbers
    full = [np.iinfo(a.dtype).max if numbers == "shares" else 1 for a in arrays]
    for index in range(2):
        image = dataset[0, index].image
        assert image.dtype == torch.float32
        if arrays[index].shape == (BANDS, 16, 16):
            np.testing.assert_allclose(image.numpy(), arrays[index] / full[index], rtol=1e-6)


def test_photographs_of_8_and_16_bits_go_together(tmp_path):
    deep = random_pixels(1, BANDS, 16, 16, dtype=np.uint16)
    dataset = opened(write(tmp_path, [random_pixels(0, BANDS, 16, 16), deep]))
    np.testing.assert_allclose(dataset[0, 1].image, deep / 65535, rtol=1e-6)
    assert dataset.data.dtype == "float32"


def test_what_comes_later_and_does_not_fit_is_refused_by_name(tmp_path):
    """A thousand images are looked at, of which the odd ones are none here."""
    known = [random_pixels(seed, BANDS, 16, 16) for seed in range(3)]
    folder = write(tmp_path, known)
    dataset = opened(folder)
    (folder / "001.npy").write_bytes(npy(scene(1)))
    sample = dataset[0, 1]
    assert (sample.image.numpy() == known[2]).all()
    (message,) = sample.unreadable
    assert message.endswith("it holds uint16, which uint8 cannot represent; data.dtype=float32 can")
    dataset = opened(folder, numbers="shares")
    (folder / "002.npy").write_bytes(npy(scene(1, dtype=np.int16)))
    assert "it holds int16, which has no full scale; set data.numbers=values" in dataset[0, 2].unreadable[0]


def test_bytes_that_were_asked_for_refuse_what_they_cannot_hold(tmp_path):
    with pytest.raises(UnreadableImage, match=r"3 images in a row .*it holds uint16, which uint8 cannot represent"):
        opened(write(tmp_path, [scene(seed) for seed in range(3)]), dtype="uint8")


def test_held_out_images_of_other_numbers_are_refused_before_any_work(tmp_path):
    training = write(tmp_path / "training", [scene(seed) for seed in range(3)])
    other = write(tmp_path / "other", [scene(seed, dtype=np.int16) for seed in range(3)])
    with pytest.raises(UnreadableImage, match=r"other.000.npy cannot be read: it holds int16, which has no full scale"):
        opened(training, evaluation=str(other))
    assert opened(training, evaluation=str(training)).evaluation[0].image.dtype == torch.float32


def test_statistics_of_other_images_are_refused_for_deep_ones(tmp_path):
    """Those of ImageNet, which recipes give, would leave 12 bits that lie in 16 all but black."""
    arrays = [scene(seed, shape=(3, 16, 16)) for seed in range(3)]
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    with pytest.raises(
        ValueError, match=r"data.std do not fit these images, uint16 from 1 to 3,999 as .*data.mean=null and"
    ):
        opened(write(tmp_path / "dim", arrays), 3, **imagenet)
    bright = write(tmp_path / "bright", [random_pixels(0, 3, 16, 16, dtype=np.uint16)])
    assert opened(bright, 3, **imagenet).data.mean == imagenet["mean"]


def with_holes(value, dtype):
    """Images of which the left part of the first band is missing, and where."""
    arrays = [scene(seed, dtype=dtype) + dtype(1) for seed in range(6)]
    for array in arrays:
        array[0, :, :5] = value
    holes = np.zeros((6, BANDS, 16, 16), np.bool_)
    holes[:, 0, :, :5] = True
    return arrays, holes


@pytest.mark.parametrize(
    ("value", "dtype", "tagged"),
    [(-9999, np.int16, False), (-9999, np.float32, True), (np.nan, np.float32, False), (0, np.uint16, False)],
)
def test_no_data_is_neither_brightness_nor_mixed_with_it(tmp_path, value, dtype, tagged):
    arrays, holes = with_holes(value, dtype)
    tags = [(42113, 2, 0, str(value), True)] if tagged else None
    write(tmp_path, arrays, lambda a: tiff(a, photometric="minisblack", planarconfig="separate", extratags=tags), "tif")
    dataset = opened(tmp_path, **({} if tagged else {"nodata": value}))
    exact = np.stack(arrays).astype(np.float64) / (65535 if dtype == np.uint16 else 1)
    known = np.ma.array(exact, mask=holes)
    np.testing.assert_allclose(dataset.data.mean, known.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(dataset.data.std, known.std((0, 2, 3)), rtol=1e-6)
    mean = np.array(dataset.data.mean)[:, None, None]
    np.testing.assert_allclose(everything(dataset), np.where(holes, mean, exact), rtol=1e-6)
    assert "no data in 3.12% of the pixels, filled with the mean" in dataset.found
    # Resized, nothing is darker or brighter than what is there.
    low, high = known.min(), known.max()
    crops = opened(tmp_path, crop_scale=(0.3, 0.9), flip=True, size=(8, 8), **({} if tagged else {"nodata": value}))
    spread = high - low
    assert all(low - spread < crops[0, i].image.min() <= crops[0, i].image.max() < high + spread for i in range(6))


def test_statistics_are_those_of_what_is_there_before_it_is_resized(tmp_path):
    arrays = [scene(seed).astype(np.float32) for seed in range(3)]
    for array in arrays:
        array[:, ::2, ::2] = array[:, 1::2, 1::2] = np.nan  # which leaves nothing that has all neighbours
    dataset = opened(write(tmp_path, arrays), size=(8, 8), nodata="nan")
    np.testing.assert_allclose(dataset.data.mean, np.nanmean(arrays, (0, 2, 3), np.float64), rtol=1e-6)
    assert np.isfinite(everything(dataset)).all()


def test_no_data_that_nobody_named_is_refused_before_any_work(tmp_path):
    for name, value, setting in (("number", -9999, "-9999"), ("nan", np.nan, "nan")):
        arrays, _ = with_holes(value, np.float32)
        folder = write(tmp_path / name, arrays)
        with pytest.raises(
            UnreadableImage, match=rf"6 images in a row .*; set data.nodata={setting} to pretrain with (it|them) filled"
        ):
            opened(folder)
        write(folder, [scene(0, dtype=np.float32)])  # the first is whole
        dataset = opened(folder)
        assert f"5 of the inspected images cannot be read, such as {folder / '001.npy'}" in dataset.found
        assert len(dataset[0, 1].unreadable) == 5
        assert (dataset[0, 1].image.numpy() == scene(0)).all()


def grey(low, high, dtype, images=6, side=24):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return [rng.uniform(low, high, (side, side)).astype(dtype) for _ in range(images)]
    return [rng.integers(low, high, (side, side), endpoint=True).astype(dtype) for _ in range(images)]


def marked(value, low, high, dtype, share=5):
    arrays = grey(low, high, dtype)
    for array in arrays[: len(arrays) // 2]:  # others are whole
        array[:share] = value
    return arrays


LONELY = [
    (-32767, -300, 3000, np.int16),
    (-999, 0, 3000, np.int16),
    (-2147483647, 0, 3000, np.int32),
    (-28672, -100, 16000, np.int16),
    (32767, 0, 3000, np.int16),
    (65535, 0, 4000, np.uint16),
    (0, 20000, 21000, np.uint16),
    (-999, 0, 40, np.float32),
    (999.25, -4, 4, np.float64),
]


@pytest.mark.parametrize(("value", "low", "high", "dtype"), LONELY)
def test_a_value_far_from_all_others_is_refused_until_it_is_said_what_it_is(tmp_path, value, low, high, dtype):
    arrays = marked(value, low, high, dtype)
    folder = write(tmp_path, arrays)
    with pytest.raises(ValueError, match=r"looks like no data; set data.nodata=") as refusal:
        opened(folder, 1, (24, 24))
    assert "10.42% of channel 0's values lie far from all others, at " in str(refusal.value)
    named = float(str(refusal.value).partition("data.nodata=")[2].partition(" ")[0])
    assert named == value
    known = np.ma.masked_equal(np.stack(arrays).astype(np.float64), value) / (65535 if dtype == np.uint16 else 1)
    assert opened(folder, 1, (24, 24), nodata=named).data.mean == pytest.approx((known.mean(),), rel=1e-6)
    if np.dtype(dtype).kind != "u":  # 32 bits around a value far off leave too little of the others
        assert opened(folder, 1, (24, 24), nodata="nan").data.mean[0] == pytest.approx(np.mean(arrays), rel=1e-5)


def test_one_channel_of_many_may_hold_it(tmp_path):
    arrays = [scene(seed, 50_000, dtype=np.int32) for seed in range(4)]
    for array in arrays:
        array[7] %= 100
        array[7, 0] = -999  # which is no outlier among the other channels
    with pytest.raises(ValueError, match=r"6.25% of channel 7's values lie"):
        opened(write(tmp_path, arrays))


USUAL = {
    "clipped": [a.clip(-4, 4) for a in grey(-9, 9, np.float32)],
    "rain": [a.clip(0) for a in grey(-40, 20, np.float32)],
    "logarithms of counts": [np.log1p(a).astype(np.float32) for a in grey(0, 20, np.int16)],
    "labels": grey(0, 3, np.int16),
    "a soft mask": grey(0, 1, np.float32, 2) + [a.round() for a in grey(0, 1, np.float32)][2:],
    "two values": [a.round() * 7 for a in grey(0, 1, np.float32)],
    "a background of 0": marked(0, 1, 4000, np.uint16),
    "pictures": marked(0, 250, 255, np.uint8),
    "masks of bool": [a > 0 for a in grey(0, 1, np.int8)],
    "dead pixels": [
        np.where(np.arange(48**2).reshape(48, 48) == 5, np.float32(9e4), a) for a in grey(0, 1, "f4", side=48)
    ],
}


@pytest.mark.parametrize("name", USUAL)
def test_what_has_neighbours_or_is_rare_is_a_value(tmp_path, name):
    opened(write(tmp_path, USUAL[name]), 1, (24, 24))


def test_a_channel_that_hardly_varies_is_refused(tmp_path):
    """As float32 tells it from a constant, which has a deviation of 1."""
    rng = np.random.default_rng(0)
    kelvin = [(280 + rng.normal(0, 1e-4, (16, 16))).astype(np.float32) for _ in range(4)]
    with pytest.raises(
        ValueError, match=r"channel 0 of the images holds 279\.999\d* to 280\.000\d*, too close together"
    ):
        opened(write(tmp_path / "kelvin", kelvin), 1)
    constant = write(tmp_path / "constant", [np.full((20, 20), 280.1, np.float32)] * 3)
    assert opened(constant, 1).data.std == (1.0,)
    assert opened(write(tmp_path / "less", [a - 280 for a in kelvin]), 1).data.std[0] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("top", [10_000, 2**14 - 1])
def test_statistics_whose_mean_is_of_other_images_are_refused(tmp_path, top):
    """12 to 14 bits that lie in 16 spread nearly as wide as photographs, and are all dark."""
    folder = write(tmp_path, [scene(seed, top, (3, 16, 16)) for seed in range(3)])
    with pytest.raises(ValueError, match=r"channel 0 has mean 0\.\d+ and deviation 0\.0\d+, not 0\.485 and 0\.229"):
        opened(folder, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_nan_is_a_name_that_equals_itself():
    assert DataConfig(nodata=float("nan")) == DataConfig(nodata="nan")
