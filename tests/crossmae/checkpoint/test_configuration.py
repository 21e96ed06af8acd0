"""What a file tells of its model, what is asked for, and what is assumed aloud."""

import argparse

import pytest
import torch
from checkpoint_files import HEADS, agrees_with_the_release, heard, saved
from golden_cases import Case

import crossmae
from crossmae.checkpoint.release import feature_maps
from crossmae.checkpoint.shapes import _ratio

INTERBLOCK, SUBSET = "crossmae_interblock_input", "crossmae_subset_maps"


def file_of(name, path, **arguments):
    return saved({"model": Case(name).weights, "args": argparse.Namespace(**arguments)}, path)


def rectangular(image_size, family="crossmae", **overrides):
    overrides = {"patch_size": 8, "encoder_width": 384, "encoder_heads": 6, "encoder_depth": 1, **overrides}
    return crossmae.create_model(f"{family}_vit_small_patch16", image_size, decoder_depth=1, **overrides)


@pytest.mark.parametrize(("name", "assumed"), [(INTERBLOCK, True), ("mae", False)])
def test_normalised_pixels(name, assumed, tmp_path):
    model, (message,) = heard(saved(Case(name).weights, tmp_path / "bare.pth"), **HEADS)
    assert model.config.normalize_targets is assumed
    assert message.endswith(f"not in the file, so assumed unless passed to load: norm_pix_loss={assumed}")
    for value in (True, False):
        model, messages = heard(tmp_path / "bare.pth", norm_pix_loss=value, **HEADS)
        assert model.config.normalize_targets is value
        assert not messages
        model, messages = heard(file_of(name, tmp_path / "told.pth", norm_pix_loss=value), **HEADS)
        assert model.config.normalize_targets is value
        assert not messages


def test_heads_by_width_are_said(tmp_path):
    model = rectangular((16, 16), "mae")
    path = saved(crossmae.to_release(model.state_dict()), tmp_path / "small.pth")
    loaded, (message,) = heard(path)
    assert (loaded.config.encoder_heads, loaded.config.decoder_heads) == (6, 8)
    assert "num_heads=6, decoder_num_heads=8" in message
    loaded, (message,) = heard(path, num_heads=12, norm_pix_loss=False)
    assert (loaded.config.encoder_heads, loaded.config.decoder_heads) == (12, 8)
    assert message.endswith("unless passed to load: decoder_num_heads=8")


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (64, 16), (16, 64), (32, 32), (8, 128), (8, 8)])
@pytest.mark.parametrize("family", ["crossmae", "mae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grid_is_read_off_fixed_positions(family, size, dtype, tmp_path):
    model = rectangular(size, family)
    state = {name: tensor.to(dtype) for name, tensor in crossmae.to_release(model.state_dict()).items()}
    loaded, messages = heard(saved(state, tmp_path / "file.pth"), num_heads=6, decoder_num_heads=8, norm_pix_loss=True)
    assert loaded.config == model.config
    assert not messages
    with pytest.raises(
        ValueError, match=r"image_size is .* according to its tensors, but \(8, 1024\) according to the arguments"
    ):
        crossmae.load(tmp_path / "file.pth", img_size=(8, 1024))


def test_grids_that_contradict_each_other(tmp_path):
    model, other = rectangular((16, 64)), rectangular((64, 16))
    state = crossmae.to_release(model.state_dict())
    state["decoder_pos_embed"] = other.decoder.positions
    with pytest.raises(ValueError, match=r"different grids for encoder and decoder: \[\(2, 8\), \(8, 2\)\]"):
        crossmae.load(saved(state, tmp_path / "file.pth"))


@pytest.mark.parametrize(
    ("depth", "columns", "use_fm", "use_input", "expected"),
    [
        (3, 4, None, None, (0, 1, 2, 3)),
        (3, 4, [-1], True, (0, 1, 2, 3)),
        (4, 4, [1, 2, 3], True, (0, 2, 3, 4)),
        (4, 4, [1, 2, 3], None, (0, 2, 3, 4)),
        (4, 3, [1, 2, 3], None, (2, 3, 4)),
        (12, 4, [1, 2, 3], True, (0, 2, 3, 4)),
        (12, 3, [-1, 0, 5], False, (1, 6, 12)),
        (4, 4, [-1], False, (1, 2, 3, 4)),
        (4, 4, None, False, (1, 2, 3, 4)),
        (4, 1, [-1], False, (4,)),
        (4, 2, [-1], True, (0, 4)),
        (4, 2, [-1], None, (0, 4)),
        (1, 1, None, None, (1,)),
        (1, 2, None, None, (0, 1)),
        # More than one choice is possible.
        (4, 4, None, None, None),
        (4, 4, None, True, None),
        (4, 3, None, None, None),
        (4, 1, None, False, None),
        (2, 2, [-1], None, None),
    ],
)
def test_feature_maps_from_columns_and_arguments(depth, columns, use_fm, use_input, expected):
    assert feature_maps(depth, columns, use_fm, use_input) == expected


@pytest.mark.parametrize(
    ("columns", "use_fm", "use_input"),
    [
        (4, [1, 2, 3], False),
        (4, [0, 1, 2, 3], True),
        (3, [-1], None),
        (2, [2, -2], False),
        (6, None, None),
        (3, [4], True),
    ],
)
def test_feature_maps_that_cannot_be(columns, use_fm, use_input):
    with pytest.raises(ValueError, match=r"maps are mixed, which|use_fm counts the 4 blocks"):
        feature_maps(4, columns, use_fm, use_input)


def mixing_three_blocks(tmp_path, **arguments):
    """A CrossMAE of depth 4 that mixes its input and the blocks 1, 2, 3, counted from 0."""
    model = rectangular((16, 16), encoder_depth=4, feature_maps=(0, 2, 3, 4)).eval()
    content = {"model": crossmae.to_release(model.state_dict()), "args": argparse.Namespace(**arguments)}
    return model, saved(content, tmp_path / "file.pth")


def test_some_maps_are_read_right_or_asked_for(tmp_path):
    model, path = mixing_three_blocks(tmp_path)
    with pytest.raises(ValueError, match=r"which 4 feature maps of its encoder it mixes; pass use_fm= and use_input="):
        crossmae.load(path)
    for given in ({"use_fm": [1, 2, 3]}, {"use_fm": [1, 2, 3], "use_input": True}, {"feature_maps": (0, 2, 3, 4)}):
        loaded, _ = heard(path, **given)
        assert loaded.config == model.config
        images = torch.randn(1, 3, 16, 16)
        noise = torch.rand(1, 4)
        assert torch.equal(loaded(images, 0.5, noise=noise).prediction, model(images, 0.5, noise=noise).prediction)
    model, path = mixing_three_blocks(tmp_path, use_fm=[1, 2, 3], use_input=True)
    assert heard(path)[0].config == model.config
    assert heard(path, use_fm=[1, 2, 3], use_input=True)[0].config == model.config
    with pytest.raises(
        ValueError, match=r"use_fm is \(1, 2, 3\) according to its args, but \(0, 1, 2\) according to the arguments"
    ):
        crossmae.load(path, use_fm=[0, 1, 2])


def test_our_own_state_dict_of_some_maps(tmp_path):
    model = rectangular((16, 16), encoder_depth=4, feature_maps=(0, 2, 3, 4))
    path = saved(model.state_dict(), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"which 4 feature maps of its encoder it mixes; pass feature_maps="):
        crossmae.load(path)
    assert heard(path, feature_maps=(0, 2, 3, 4))[0].config == model.config
    with pytest.raises(ValueError, match=r"decoder.mixing.weight must have shape \(1, 2\), got \(1, 4\)"):
        crossmae.load(path, feature_maps=(0, 4))
    state = {**model.state_dict(), "decoder.extra": torch.ones(1)}
    with pytest.raises(ValueError, match=r"unexpected decoder.extra \(1,\)"):
        crossmae.load(saved(state, path), feature_maps=(0, 2, 3, 4))


@pytest.mark.parametrize(
    "given", [{"use_fm": [0, -1]}, {"use_fm": (0, 2), "use_input": False}, {"feature_maps": [1, 3]}]
)
def test_the_release_agrees_on_maps(given, tmp_path):
    path = saved(Case(SUBSET).weights, tmp_path / "bare.pth")
    assert agrees_with_the_release(heard(path, norm_pix_loss=False, **given, **HEADS)[0], SUBSET)
    with pytest.raises(ValueError, match="pass use_fm= and use_input="):
        crossmae.load(path, norm_pix_loss=False, **HEADS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 2}, "encoder_depth is 3 according to its tensors, but 2 according to the arguments"),
        ({"encoder_depth": 2}, "encoder_depth is 3 according to its tensors, but 2 according to the arguments"),
        ({"patch_size": 16}, "patch_size is 8 according to its tensors, but 16 according to the arguments"),
        (
            {"norm_pix_loss": False},
            "normalize_targets is True according to its args, but False according to the arguments",
        ),
        (
            {"img_size": 64},
            r"image_size is \(32, 32\) according to its tensors, but \(64, 64\) according to the arguments",
        ),
        ({"use_fm": [1]}, r"use_fm is \(-1,\) according to its tensors, but \(1,\) according to the arguments"),
        ({"weight_fm": True}, "weight_fm is False according to its tensors, but True according to the arguments"),
        (
            {"self_attn": True},
            "decoder_self_attention is False according to its tensors, but True according to the arguments",
        ),
        ({"num_heads": 5}, "encoder_heads must divide encoder_width 24, got 5"),
        ({"drop_path": 1.5}, r"drop_path must be in \[0, 1\), got 1.5"),
    ],
)
def test_arguments_that_contradict_the_file_are_refused(arguments, message, tmp_path):
    # MAE's decoder is one without self-attention between queries: all its tokens attend to each other anyway.
    with pytest.raises(ValueError, match=message):
        crossmae.load(file_of("mae", tmp_path / "file.pth", norm_pix_loss=True), **{**HEADS, **arguments})


def test_arguments_that_agree_with_the_file_are_taken(tmp_path):
    path = file_of("mae", tmp_path / "file.pth", norm_pix_loss=True, input_size=32, use_fm=[-1], use_input=False)
    agreeing = {"norm_pix_loss": True, "img_size": 32, "patch_size": 8, "mlp_ratio": 4, "weight_fm": False}
    model, messages = heard(path, **agreeing, use_input=False, encoder_heads=3, decoder_heads=2, pixel_mean=[0.5] * 3,
                            pixel_std=[0.2] * 3)  # fmt: skip
    assert not messages
    assert agrees_with_the_release(model, "mae")
    assert torch.equal(model.pixel_std, torch.full((3,), 0.2))


@pytest.mark.parametrize("learned", [False, True])
def test_an_input_size_of_something_else_is_not_the_image_size(learned, tmp_path):
    weights = dict(Case("mae").weights)
    if learned:
        weights = {name: torch.rand_like(t) if "pos_embed" in name else t for name, t in weights.items()}
    path = saved(
        {"model": weights, "args": argparse.Namespace(input_size=64, norm_pix_loss=True)}, tmp_path / "file.pth"
    )
    model, messages = heard(path, **HEADS)
    assert model.config.image_size == (32, 32)
    assert ["img_size=(32, 32)" in message for message in messages] == [True] * learned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_heads": 3, "encoder_heads": 6},
            "load: num_heads=3 and encoder_heads=6 disagree: both are the same setting",
        ),
        (
            {"encoder_heads": 6, "num_heads": 3},
            "load: encoder_heads=6 and num_heads=3 disagree: both are the same setting",
        ),
        (
            {"norm_pix_loss": True, "normalize_targets": False},
            "norm_pix_loss=True and normalize_targets=False disagree",
        ),
        (
            {"decoder_num_heads": 2, "decoder_heads": 4},
            "decoder_num_heads=2 and decoder_heads=4 disagree: both are the same setting",
        ),
        ({"norm_pix_loss": "False"}, "load: norm_pix_loss must be True or False, got 'False'"),
        ({"norm_pix_loss": 1}, "load: norm_pix_loss must be True or False, got 1"),
        ({"normalize_targets": None}, "load: normalize_targets must be True or False, got None"),
        ({"use_input": "False"}, "load: use_input must be True or False, got 'False'"),
        ({"use_fm": 0}, "load: use_fm must be a tuple of integers, got 0"),
        ({"use_fm": ["1"]}, r"load: use_fm must be a tuple of integers, got \['1'\]"),
        ({"num_heads": True}, "load: num_heads must be an integer, got True"),
        ({"num_heads": "3"}, "load: num_heads must be an integer, got '3'"),
        (
            {"num_heads": 3.0, "img_size": "big"},
            "num_heads must be an integer, got 3.0; img_size must be an integer or",
        ),
        ({"img_size": [32.0, 32.0]}, r"load: img_size must be an integer or \(height, width\).*, got \[32.0, 32.0\]"),
        ({"drop_path": "a"}, "load: drop_path must be a number, got 'a'"),
        ({"norm_eps": "a"}, "load: norm_eps must be a number, got 'a'"),
        ({"hidden_layer": None}, "load: hidden_layer must be 'recompute' or 'save', got None"),
        ({"pixel_mean": 0.5}, "load: pixel_mean must be a tuple of numbers or None, got 0.5"),
    ],
)
def test_arguments_that_contradict_themselves_or_their_type(arguments, message, tmp_path):
    path = saved(Case("mae").weights, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.load(path, **arguments, **{name: n for name, n in HEADS.items() if name not in arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(64,), (64, 64, 3), "64", "big", 64.0, True, [64, "64"], torch.tensor(64)])
@pytest.mark.parametrize("name", ["image_size", "img_size"])
def test_sizes_that_are_none(name, size, tmp_path):
    message = rf"load: {name} must be an integer or \(height, width\), 2 integers, got "
    with pytest.raises(ValueError, match=message):
        crossmae.load(saved(Case("mae").weights, tmp_path / "file.pth"), **{name: size}, **HEADS)


def test_both_spellings_may_agree(tmp_path):
    path = saved(Case("mae").weights, tmp_path / "file.pth")
    told = {"norm_pix_loss": True, "normalize_targets": True, "encoder_heads": 3}
    assert agrees_with_the_release(heard(path, **told, **HEADS)[0], "mae")


def test_arguments_of_another_type_for_the_release():
    case = Case("mae")
    for wrong in ({"norm_pix_loss": "False"}, {"depth": "3"}, {"use_fm": 1}, {"weight_fm": 1}, {"img_size": "32"}):
        with pytest.raises(ValueError, match=f"from_release: {next(iter(wrong))} must be"):
            crossmae.from_release(case.weights, **{**case.arguments, **wrong})


def test_unknown_arguments(tmp_path):
    with pytest.raises(TypeError, match="load: no argument heads; choose from channels, class_tokens, decoder"):
        crossmae.load(file_of("mae", tmp_path / "file.pth"), heads=3)


RUNNING = {"drop_path": 0.25, "gradient_checkpointing": True, "hidden_layer": "save", "residual": "autocast"}


@pytest.mark.parametrize("kind", ["ours", "release", "state dict"])
def test_how_a_model_runs_is_chosen_for_every_file(kind, tmp_path):
    model = rectangular((16, 16), drop_path=0.1)
    path = tmp_path / "model.safetensors"
    if kind == "ours":
        crossmae.save(model, path)
    else:
        state = model.state_dict()
        saved(crossmae.to_release(state) if kind == "release" else state, path)
    loaded, _ = heard(path, image_size=32, **RUNNING)
    assert {name: getattr(loaded.config, name) for name in RUNNING} == RUNNING
    assert loaded.config.image_size == (32, 32)
    assert heard(path)[0].config.drop_path == (0.1 if kind == "ours" else 0)


@pytest.mark.parametrize(
    ("hidden", "width"), [(width * 5 // 2 + odd, width) for width in (24, 196, 384) for odd in range(9)]
)
def test_ratios_give_their_hidden_channels_back(hidden, width):
    assert int(width * _ratio(hidden, width)) == hidden


def test_messages_name_five_tensors_and_count_the_rest(tmp_path):
    case = Case("mae")
    short = {name: tensor for name, tensor in case.weights.items() if "blocks.1" not in name}
    with pytest.raises(ValueError, match=r"missing .*; and \d+ more$") as caught:
        crossmae.load(saved({**short, "blocks.7.norm1.bias": torch.ones(24)}, tmp_path / "short.pth"), **HEADS)
    assert len(str(caught.value)) < 500
    assert str(caught.value).count("missing") == 5
