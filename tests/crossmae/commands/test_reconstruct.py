"""``crossmae reconstruct`` from picture files to the picture it writes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import crossmae
from crossmae.commands.cli import main
from crossmae.figures import GAP, TITLE
from crossmae.masking import random_masking
from crossmae.reconstruction import block_predictions, reconstruct

STATISTICS = {1: {"pixel_mean": (0.4,), "pixel_std": (0.3,)}}
STATISTICS[3] = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.3, 0.25)}
STATISTICS[5] = {"pixel_mean": (0.5,) * 5, "pixel_std": (0.3,) * 5}
SIDE = 160  # of a picture of 32 pixels, enlarged five times


def checkpoint(path, channels=3, family="crossmae", **settings):
    """A small model with random weights, saved; and its path as a word of the command line."""
    torch.manual_seed(0)
    model = crossmae.create_model(
        f"{family}_vit_tiny_patch4", channels=channels, encoder_depth=2, decoder_depth=3,
        **{**STATISTICS[channels], **settings},
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    crossmae.save(model, path)
    return model.eval(), str(path)


def image_file(path, channels=3, size=(32, 32), seed=0):
    """Noise as a picture file; its pixels ``(C, H, W)`` and its path."""
    pixels = torch.randint(0, 256, (channels, *size), generator=torch.Generator().manual_seed(seed)).byte()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    return pixels, str(path)


def drawn(path, row=0, column=0):
    """One picture of the grid, not enlarged: ``(3, 32, 32)``, uint8."""
    canvas = np.asarray(Image.open(path))
    top, left = TITLE + row * (SIDE + GAP), GAP + column * (SIDE + GAP)
    return torch.from_numpy(canvas[top : top + SIDE : 5, left : left + SIDE : 5].copy()).permute(2, 0, 1)


def hidden_patches(picture):
    """Ids of the patches that are grey all over."""
    patches = picture.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(64, -1)
    return (patches == 128).all(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_original_masked_and_reconstruction(normalize, channels, tmp_path, capsys):
    model, saved = checkpoint(tmp_path / "model.safetensors", channels, normalize_targets=normalize)
    pixels, name = image_file(tmp_path / "image.png", channels)
    out = tmp_path / "out.png"
    assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(out), "--seed", "7", "--blocks"]) == 0
    text = capsys.readouterr().out

    masking = random_masking(1, 64, 0.75, 0.75, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn(out), pixels.expand(3, -1, -1))
    masked = drawn(out, column=1)
    assert hidden_patches(masked) == masking.predicted_ids[0].tolist()
    kept = (masked != 128).any(dim=0)
    assert torch.equal(masked[:, kept], pixels.expand(3, -1, -1)[:, kept])

    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[channels].values())
    image = (pixels[None] / 255 - mean) / std
    with torch.no_grad():
        output = model(image, masking=masking)
        predictions = block_predictions(model, model.encoder(image, masking.visible_ids), masking)
    for column, prediction in enumerate(predictions, start=2):
        expected = reconstruct(image, prediction, masking, model.config)[0] * std + mean
        difference = drawn(out, column=column) - 255 * expected.clamp(0, 1)
        assert difference.abs().max() < 0.51
    assert f"{name}: loss {output.loss:.4f} on the 48 masked patches of 64" in text
    assert ("interpolated from the visible patches, so nothing hidden is used" in text) == normalize
    assert ("plain pixels: brightness and contrast are its own" in text) == (not normalize)
    assert f"Picture: {out}" in text


def test_masks_that_have_a_shape(tmp_path, capsys):
    _, saved = checkpoint(tmp_path / "model.safetensors")
    _, name = image_file(tmp_path / "image.png")
    out = tmp_path / "out.png"
    words = ["reconstruct", name, "--checkpoint", saved, "--out", str(out)]
    assert main([*words, "--masking", "grid"]) == 0
    corners = [8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)]
    assert hidden_patches(drawn(out, column=1)) == sorted(set(range(64)) - set(corners))
    assert main([*words, "--masking", "block", "--mask-ratio", "0.25"]) == 0
    hidden = hidden_patches(drawn(out, column=1))
    rows, columns = ({divmod(place, 8)[axis] for place in hidden} for axis in (0, 1))
    assert len(hidden) == 16
    assert len(rows) * len(columns) - 16 < max(len(rows), len(columns))
    capsys.readouterr()
    assert main([*words, "--masking", "grid", "--mask_ratio", "0.5"]) == 1
    assert re.fullmatch(r"crossmae reconstruct: a grid mask of 8 x 8 .*; got mask_ratio 0.5\n", capsys.readouterr().err)


def test_true_statistics_are_owned_up_to(tmp_path, capsys):
    _, saved = checkpoint(tmp_path / "model.safetensors")
    _, name = image_file(tmp_path / "image.png")
    pictures = {}
    for statistics in ("visible", "true"):
        out = tmp_path / f"{statistics}.png"
        assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(out), "--statistics", statistics]) == 0
        pictures[statistics] = drawn(out, column=2)
        text = capsys.readouterr().out
        assert ("which leaks it" in text) == (statistics == "true")
    assert not torch.equal(pictures["visible"], pictures["true"])


def test_masks_follow_the_seed_and_differ_between_images(tmp_path):
    _, saved = checkpoint(tmp_path / "model.safetensors")
    (_, one), (_, two) = (image_file(tmp_path / f"{seed}.png", seed=seed) for seed in (0, 1))

    def masks(seed, *names, ratio="0.75"):
        out = tmp_path / "out.png"
        words = ["--checkpoint", saved, "--out", str(out), "--seed", str(seed), "--mask_ratio", ratio]
        assert main(["reconstruct", *names, *words]) == 0
        return [hidden_patches(drawn(out, row, 1)) for row in range(len(names))]

    (first,) = masks(0, one)
    assert masks(0, one) == [first]
    assert masks(1, one) != [first]
    pair = masks(0, one, two)
    assert pair[0] == first  # whatever follows
    assert pair[1] != first
    assert len(masks(0, one, ratio="0.5")[0]) == 32


def test_any_size_is_covered_and_cropped_at_the_centre(tmp_path):
    _, saved = checkpoint(tmp_path / "model.safetensors")
    wide = torch.zeros(3, 96, 288, dtype=torch.uint8)
    wide[0], wide[1, :, 96:192] = 255, 255  # red, yellow, red
    Image.fromarray(wide.permute(1, 2, 0).numpy()).save(tmp_path / "wide.png")
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(tmp_path / "wide.png"), "--checkpoint", saved, "--out", str(out)]) == 0
    assert (drawn(out) == torch.tensor([255, 255, 0])[:, None, None]).all()


def test_resizing_leaves_black_black_and_white_white(tmp_path):
    _, saved = checkpoint(tmp_path / "model.safetensors", channels=1)
    half = np.zeros((96, 96), np.uint8)
    half[:, 45:] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(tmp_path / "half.png"), "--checkpoint", saved, "--out", str(out)]) == 0
    assert (drawn(out)[..., :10] == 0).all()
    assert (drawn(out)[..., 20:] == 255).all()


def test_five_channels_show_the_first_three(tmp_path, capsys):
    _, saved = checkpoint(tmp_path / "model.safetensors", channels=5)
    pixels = torch.randint(0, 256, (5, 32, 32), dtype=torch.uint8)
    np.save(tmp_path / "image.npy", pixels.numpy())
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(tmp_path / "image.npy"), "--checkpoint", saved, "--out", str(out)]) == 0
    assert "Only the first three of 5 channels are drawn" in capsys.readouterr().out
    assert torch.equal(drawn(out), pixels[:3])


def test_checkpoints_that_tell_no_statistics_have_imagenets(tmp_path, capsys):
    model, saved = checkpoint(tmp_path / "model.safetensors", pixel_mean=None, pixel_std=None)
    pixels, name = image_file(tmp_path / "image.png")
    out = tmp_path / "out.png"
    assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "stores no pixel statistics; using ImageNet's" in text
    assert torch.equal(drawn(out), pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (pixels[None] / 255 - mean[:, None, None]) / std[:, None, None]
    masking = random_masking(1, 64, 0.75, 0.75, generator=torch.Generator().manual_seed(0))
    assert f"loss {model(image, masking=masking).loss:.4f} on" in text


def test_a_release_that_was_trained_on_normalised_pixels_and_does_not_tell(tmp_path, capsys):
    torch.manual_seed(0)
    model = crossmae.create_model("mae_vit_small_patch16", encoder_depth=1, decoder_depth=1)
    torch.save(crossmae.to_release(model.state_dict()), tmp_path / "mae.pth")
    _, name = image_file(tmp_path / "image.png")
    words = ["reconstruct", name, "--checkpoint", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "out.png")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "not every checkpoint says, pass --norm_pix_loss" in text
    assert "trained on plain pixels" in text
    assert main([*words, "--norm_pix_loss"]) == 0
    text = capsys.readouterr().out
    assert "give --norm_pix_loss" not in text
    assert "both are interpolated" in text


def test_a_checkpoint_that_does_not_tell_enough(tmp_path, capsys):
    model = crossmae.create_model("mae_vit_tiny_patch4", encoder_width=32, encoder_heads=2)
    torch.save({"state_dict": crossmae.to_release(model.state_dict())}, tmp_path / "narrow.pth")
    torch.save(crossmae.to_release(model.encoder.state_dict(prefix="encoder.")), tmp_path / "encoder.pth")
    _, name = image_file(tmp_path / "image.png")
    words = ["reconstruct", name, "--checkpoint", str(tmp_path / "narrow.pth"), "--out", str(tmp_path / "out.png")]
    assert main(words) == 1
    assert "(encoder width 32, decoder width 64); pass num_heads=" in capsys.readouterr().err
    assert main([*words, "--load_options.num_heads", "2", "--load_options.norm_pix_loss", "true"]) == 0
    text = capsys.readouterr().out
    assert "narrow.pth: not in the file, so assumed unless passed to load: decoder_num_heads=4" in text
    assert "trained on normalised pixels" in text
    assert main([*words, "--load_options", '{"num_heads": 2, "key": "model"}']) == 1
    assert "holds no model under 'model'" in capsys.readouterr().err
    words[3] = str(tmp_path / "encoder.pth")
    assert main([*words, "--load_options.num_heads", "2"]) == 1
    assert re.fullmatch(r"crossmae reconstruct: .* holds no decoder, .*\n", capsys.readouterr().err)


def test_the_folder_of_a_run_and_its_mixing_weights(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    checkpoint(tmp_path / "run" / "model.safetensors")
    _, name = image_file(tmp_path / "image.png")
    words = ["reconstruct", name, "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out.png")]
    assert main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "image.png", "out.png"}
    assert main([*words, "--mixing", str(tmp_path / "mixing.png")]) == 0
    assert f"Mixing weights: {tmp_path}/mixing.png" in capsys.readouterr().out
    with Image.open(tmp_path / "mixing.png") as picture:
        assert picture.format == "PNG"


def test_what_cannot_be_done_is_one_line_and_writes_nothing(tmp_path, capsys):
    _, saved = checkpoint(tmp_path / "model.safetensors")
    _, grey = checkpoint(tmp_path / "grey.safetensors", 1, pixel_mean=None, pixel_std=None)
    _, mae = checkpoint(tmp_path / "mae.safetensors", family="mae")
    _, name = image_file(tmp_path / "image.png")
    np.save(tmp_path / "two.npy", np.zeros((40, 40, 2), np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.iterdir())
    out = str(tmp_path / "out.png")
    for words, message in (
        ([str(tmp_path / "no.jpg"), "--checkpoint", saved], r"there is no image .*no\.jpg"),
        ([name, str(tmp_path / "notes.txt"), "--checkpoint", saved], r".*notes\.txt cannot be read: .*"),
        ([str(tmp_path / "two.npy"), "--checkpoint", saved], r".*two\.npy cannot be read: .*channels.*"),
        ([name, "--checkpoint", saved, "--mask_ratio", "1.5"], r"mask_ratio must lie in \(0, 1\), got 1\.5"),
        ([name, "--checkpoint", saved, "--mask_ratio", "0.999"], r"no patch would be visible: .*"),
        ([name, "--checkpoint", str(tmp_path / "no.pth")], r"there is no checkpoint file .*no\.pth"),
        ([name, "--checkpoint", str(tmp_path / "empty")], r"there is no checkpoint file .*empty/model\.safetensors"),
        ([name, "--checkpoint", name], r".*image\.png is not a checkpoint.*"),
        ([name, "--checkpoint", grey], r".*grey\.safetensors stores no pixel statistics for its 1 channels.*"),
        ([name, "--checkpoint", saved, "--norm_pix_loss"], r".*stores its configuration; remove norm_pix_loss"),
        (
            [name, "--checkpoint", mae, "--mixing", str(tmp_path / "m.png")],
            r"the model of .* mixes no feature maps.*",
        ),
        ([name, "--checkpoint", saved, "--mixing", str(tmp_path / "no" / "m.png")], r"cannot write .*m\.png: .*"),
    ):
        assert main(["reconstruct", *words, "--out", out]) == 1, words
        assert re.fullmatch(f"crossmae reconstruct: {message}\n", capsys.readouterr().err), words
    assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(tmp_path / "no" / "o.png")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def array_file(path, low, high, dtype):
    rng = np.random.default_rng(0)
    np.save(path, rng.uniform(low, high, (32, 32, 3)).astype(dtype))
    return str(path)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "said"),
    [
        (
            0,
            4000,
            np.uint16,
            r"holds uint16 from \d to 3,99\d, taken as shares of 65,535; the checkpoint does not say what",
        ),
        (
            -4,
            4,
            np.float32,
            r"holds float32 from -3\.99\d* to 3\.99\d*, taken as they are; the checkpoint does not say what",
        ),
        (0, 256, np.uint8, None),
    ],
)
def test_deep_images_are_told_where_a_checkpoint_does_not_tell_its_own(tmp_path, capsys, low, high, dtype, said):
    _, saved = checkpoint(tmp_path / "model.safetensors", pixel_mean=None, pixel_std=None)
    name = array_file(tmp_path / "image.npy", low, high, dtype)
    assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(tmp_path / "out.png")]) == 0
    text = capsys.readouterr().out
    assert "image.npy holds" not in text if said is None else re.search(said, text)
    assert ("is unlike the images" in text) == (dtype == np.float32)


@pytest.mark.parametrize(
    ("mean", "std", "image"),
    [
        (0.0, 2.3, (0, 4000, np.uint16)),
        (0.0, 2.3, (-60, 60, np.float32)),
        (0.03, 0.018, (0, 256, np.uint8)),
        (1350.0, 100.0, (0, 2, np.bool_)),
    ],
)
def test_an_image_unlike_those_of_the_training_is_told(tmp_path, capsys, mean, std, image):
    numbers = "shares" if mean == 0.03 else "values"
    _, saved = checkpoint(
        tmp_path / "model.safetensors", pixel_mean=(mean,) * 3, pixel_std=(std,) * 3, pixel_numbers=numbers
    )
    words = ["--checkpoint", saved, "--out", str(tmp_path / "out.png")]
    assert main(["reconstruct", array_file(tmp_path / "image.npy", *image), *words]) == 0
    assert "image.npy is unlike the images that the model was trained on: channel 0" in capsys.readouterr().out
    usual = (0, 2400, np.uint16) if numbers == "shares" else (mean - 2 * std, mean + 2 * std, np.float32)
    assert main(["reconstruct", array_file(tmp_path / "usual.npy", *usual), *words]) == 0
    assert "unlike the images" not in capsys.readouterr().out


def test_no_data_is_refused_in_terms_of_the_training(tmp_path, capsys):
    _, saved = checkpoint(tmp_path / "model.safetensors", pixel_numbers="values")
    name = array_file(tmp_path / "image.npy", -9999, -9999, np.float32)
    assert main(["reconstruct", name, "--checkpoint", saved, "--out", str(tmp_path / "out.png")]) == 1
    assert "looks like no data; set data.nodata=-9999 to pretrain with it filled" in capsys.readouterr().err
