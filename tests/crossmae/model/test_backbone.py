"""The encoder as a backbone: features, maps of chosen blocks, images of any size; as timm has them."""

import re

import pytest
import torch
import torch.nn.functional as F

import crossmae

SIZES = {"patch_size": 4, "encoder_width": 16, "encoder_depth": 3, "encoder_heads": 2, "decoder": None}


def encoder_alone(**overrides):
    """In float64, with random values in every parameter and in the rows of class tokens."""
    torch.manual_seed(0)
    model = crossmae.MaskedAutoencoder(crossmae.Config(**{"image_size": (12, 20), **SIZES, **overrides})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
        model.encoder.positions += 0.3 * torch.randn_like(model.encoder.positions)
    return model


def images_of(height=12, width=20):
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def every_map(model, images):
    """The output of each block, by the forward pass that pretraining runs, of all patches."""
    ids = torch.arange(model.config.patches).expand(len(images), -1)
    x, maps = model.encoder._tokens(images, ids, model.encoder.positions, None, None), []
    for block in model.encoder.blocks:
        x = block(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("class_tokens", [1, 8, 0])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_maps_are_the_blocks_outputs(class_tokens, norm, output_fmt):
    model, images = encoder_alone(class_tokens=class_tokens), images_of()
    final, maps = model.forward_intermediates(images, [0, -1], norm=norm, output_fmt=output_fmt)
    outputs = every_map(model, images)
    assert torch.equal(final, model.forward_features(images))
    torch.testing.assert_close(final, model.encoder.norm(outputs[-1]))
    for found, expected in zip(maps, (outputs[0], outputs[-1]), strict=True):
        patches = (model.encoder.norm(expected) if norm else expected)[:, class_tokens:]
        if output_fmt == "NCHW":
            assert found.shape == (2, 16, 3, 5)
            found = torch.stack([found[:, :, i // 5, i % 5] for i in range(15)], dim=1)
        torch.testing.assert_close(found, patches)
    pairs = model.forward_intermediates(images, [1], return_prefix_tokens=True, intermediates_only=True)
    torch.testing.assert_close(pairs[0][1], outputs[1][:, :class_tokens])


@pytest.mark.parametrize(
    ("indices", "blocks"), [(None, [0, 1, 2]), (1, [2]), (2, [1, 2]), ([2, 0], [0, 2]), ([-2], [1]), ((1, 1), [1])]
)
def test_indices(indices, blocks):
    model, images = encoder_alone(), images_of()
    maps = model.forward_intermediates(images, indices, output_fmt="NLC", intermediates_only=True)
    outputs = every_map(model, images)
    assert len(maps) == len(blocks)
    for found, block in zip(maps, blocks, strict=True):
        torch.testing.assert_close(found, outputs[block][:, 1:])


def test_no_block_runs_behind_the_last_that_is_asked_for():
    model, called = encoder_alone(), []
    for place, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(lambda *_, place=place: called.append(place))
    maps = model.forward_intermediates(images_of(), [1], intermediates_only=True)
    assert called == [0, 1]
    maps[0].sum().backward()
    trained = {name for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert {name for name in trained if name.startswith("blocks.1.")}
    assert not {name for name in trained if name.startswith(("blocks.2.", "norm."))}
    model.forward_intermediates(images_of(), [1])
    assert called == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("pos_embed", ["sincos", "learn"])
def test_positions_are_interpolated_for_other_sizes_on_request(pos_embed):
    """Features are those of a model of that size whose table is the interpolated one, and gradients reach the table."""
    model, images = encoder_alone(pos_embed=pos_embed), images_of(24, 8)
    table = model.encoder.positions
    patches = table[:, 1:].reshape(1, 3, 5, 16).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(6, 2), mode="bicubic", align_corners=False)
    other = encoder_alone(image_size=(24, 8), pos_embed=pos_embed)
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("positions")}
    other.load_state_dict(weights, strict=False)
    with torch.no_grad():
        other.encoder.positions.copy_(torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, 12, 16)], 1))
    found = model.encode(images, dynamic_img_size=True)
    torch.testing.assert_close(found, other.encode(images))
    assert torch.equal(found, model.forward_features(images, dynamic_img_size=True))
    final, maps = model.forward_intermediates(images, dynamic_img_size=True)
    assert torch.equal(final, found)
    assert maps[0].shape == (2, 16, 6, 2)
    found.square().sum().backward()
    assert pos_embed == "sincos" or table.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("shape", "dynamic", "message"),
    [
        ((2, 3, 24, 8), False, "(batch, 3, 12, 20), got (2, 3, 24, 8); dynamic_img_size=True interpolates positions"),
        ((2, 3, 24, 10), True, "(batch, 3, a multiple of 4, a multiple of 4), got (2, 3, 24, 10)"),
        ((2, 1, 24, 8), True, "got (2, 1, 24, 8)"),
        ((2, 3, 0, 8), True, "got (2, 3, 0, 8)"),
        ((3, 24, 8), True, "got (3, 24, 8)"),
    ],
)
def test_wrong_sizes(shape, dynamic, message):
    model, images = encoder_alone(), torch.zeros(shape, dtype=torch.float64)
    for call in (model.encode, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(images, dynamic_img_size=dynamic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"indices": 4},
            "indices must be a number of blocks from 1 to 3 or list blocks from -3 to 2, at least one, got 4",
        ),
        ({"indices": 0}, "got 0"),
        ({"indices": []}, "got []"),
        ({"indices": [3]}, "got [3]"),
        ({"indices": [-4]}, "got [-4]"),
        ({"output_fmt": "NHWC"}, "output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder_alone().forward_intermediates(images_of(), **arguments)


def test_a_norm_that_is_not_there_is_refused():
    model = encoder_alone(feature_maps=(3,))
    with pytest.raises(ValueError, match=r"norm=True needs a final norm, which this encoder does not have"):
        model.forward_intermediates(images_of(), norm=True)


@pytest.mark.parametrize("overrides", [{}, {"no_embed_class": True}, {"final_norm": False}])
def test_features_are_those_of_timm(overrides):
    """The same weights in timm's ViT, at their own size and, with positions interpolated as here, at another."""
    timm = pytest.importorskip("timm")
    model = encoder_alone(**overrides)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=(12, 20), patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=0, dynamic_img_size=True,
        no_embed_class=overrides.get("no_embed_class", False), final_norm=overrides.get("final_norm", True),
    ).double().eval()  # fmt: skip
    state = crossmae.to_release(model.state_dict())
    if overrides.get("no_embed_class"):
        state["pos_embed"] = state["pos_embed"][:, 1:]
    theirs.load_state_dict(state)
    images = images_of()
    torch.testing.assert_close(model.forward_features(images), theirs.forward_features(images))
    for arguments in (
        {},
        {"indices": 2, "output_fmt": "NLC"},
        {"indices": [0, -1], "norm": overrides.get("final_norm", True)},
        {"indices": [1, 0], "intermediates_only": True},
        {"indices": 1, "return_prefix_tokens": True},
    ):
        ours, expected = (m.forward_intermediates(images, **arguments) for m in (model, theirs))
        torch.testing.assert_close(ours, expected)
    resample, larger = timm.layers.resample_abs_pos_embed, images_of(24, 28)
    theirs.pos_embed = torch.nn.Parameter(
        resample(theirs.pos_embed, (6, 7), (3, 5), num_prefix_tokens=theirs.pos_embed.shape[1] - 15, antialias=False)
    )
    theirs.patch_embed.set_input_size((24, 28))
    expected = theirs.forward_intermediates(larger)
    # timm interpolates in float32.
    torch.testing.assert_close(
        model.forward_intermediates(larger, dynamic_img_size=True), expected, rtol=1e-4, atol=1e-5
    )
