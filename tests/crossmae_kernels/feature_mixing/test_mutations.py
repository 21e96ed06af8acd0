"""Broken kernels must not pass."""

import pytest
from mutation import broken

MIXING = "crossmae_kernels.feature_mixing"
NORM = "crossmae_kernels.common.normalization"

ANYWHERE = {
    "weight's rows and columns exchanged": ("mixes[:, None] * MAPS + rows[None, :]", "rows[None, :] * num_mixes + mixes[:, None]"),
    "maps off by one": ("rows == index,", "rows == index + 1,"),
    "image's stride": ("token // tokens_per_image * map_image", "token // tokens_per_image * map_row"),
    "image's stride going back": ("image * map_image + place", "image * map_row + place"),
    "row's stride": ("token % tokens_per_image * map_row", "token % tokens_per_image * width"),
    "row's stride going back": ("+ place * map_row", "+ place * width"),
    "mix's stride of the upstream gradient": ("mixes.to(tl.int64) * dout_mix", "mixes.to(tl.int64) * dout_image"),
    "gradients of the first maps for the others": ("tl.sum(dweights[first // BLOCK]", "tl.sum(dweights[0]"),
}  # fmt: skip

# Where a token is normalised on chip, in 16 bits.
ON_CHIP = {
    "biased variance": ("mean_of_slices(squares, width)", "mean_of_slices(squares, width - 1)"),
    "variance of the padding": ("panels[panel] - mean, 0.0)", "panels[panel] - mean, panels[panel] - mean)"),
    "half of eps": ("squares, width) + eps", "squares, width) + 0.5 * eps"),
    "gradient along the row": ("- slope * x_hats", "- 0.0 * slope * x_hats"),
    "mean of the gradient": (".to(tl.float32) - shift -", ".to(tl.float32) -"),
    "first panel's rows for the others": ("rows = kept_rows[panel]", "rows = kept_rows[0]"),
}

# Where LayerNorm is a pass of its own, in float32.
OWN_PASS = {
    "biased variance": ("axis=1) / WIDTH + eps)", "axis=1) / (WIDTH - 1) + eps)"),
    "gradient along the row": ("- normalized * along[:, None]", "- 0.0 * along[:, None]"),
}

MUTATIONS = [
    *((name, MIXING, *change, 0) for name, change in ANYWHERE.items()),
    *((name, MIXING, *change, 2) for name, change in ON_CHIP.items()),
    *((name, NORM, *change, 4) for name, change in OWN_PASS.items()),
]


@pytest.mark.parametrize(("name", "folder", "good", "bad", "item_size"), MUTATIONS, ids=lambda v: None)
def test_a_broken_kernel_fails_the_budget(problem, by, place, tmp_path, name, folder, good, bad, item_size):
    device, dtype = place
    if item_size not in (0, dtype.itemsize):
        pytest.skip("nothing of this runs in this dtype")

    def strided(solve):
        # Rows that are not dense, and all maps alike.
        return lambda **given: solve(**{n: t[..., :136] if "map" in n else t for n, t in given.items()})

    task = problem((2, 2), 18, 3, 136)
    for index in range(18):
        task.arguments[f"map {index}"] = task.arguments[f"map {index}"].repeat(1, 1, 2)
    how = [strided(by["kernels"]())], strided(by["eager"]()), strided(by["oracle"]())
    task.judge(*how, device, dtype)
    with broken(folder, tmp_path, good, bad), pytest.raises(AssertionError, match="errs by"):
        task.judge(*how, device, dtype)
