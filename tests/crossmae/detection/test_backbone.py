"""The encoder as ViTDet's backbone, in float64: rounding apart, it is what its definition says."""

import functools

import exports
import pytest
import torch
import torch.nn.functional as F
from plain_vitdet import last_map as plain_last_map
from torch.testing import assert_close
from vitdet import ViT

import crossmae
from crossmae.detection.backbone import backbone_config, backbone_model, global_blocks, last_map, use_windows
from crossmae.detection.pyramid import SimpleFeaturePyramid
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import named_config

WIDTH, HEADS, PATCH = 12, 3, 4
close = functools.partial(assert_close, rtol=1e-9, atol=1e-11)


def model_of(image_size=24, depth=8, drop_path=0.0, patch=PATCH):
    """A backbone of random weights, biases and norms, in float64, for a grid of 6 x 6 unless told."""
    torch.manual_seed(0)
    pretrained = named_config(
        "crossmae_vit_tiny_patch4",
        image_size=4 * patch,
        patch_size=patch,
        encoder_width=WIDTH,
        encoder_heads=HEADS,
        encoder_depth=depth,
        drop_path=drop_path,
    )
    model = MaskedAutoencoder(backbone_config(pretrained, image_size)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def with_gradients(function, weights, images):
    """Output, and gradients of all weights and the images for a fixed random gradient of the output."""
    images = images.clone().requires_grad_()
    out = function(images)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    used = {name: tensor for name, tensor in weights.items() if tensor.requires_grad and tensor.numel()}
    return out, dict(zip([*used, "images"], torch.autograd.grad(out, [*used.values(), images], upstream), strict=True))


@pytest.mark.parametrize("window", [2, 4, 5])
def test_windows_are_vitdets_with_every_gradient(window):
    model, images = model_of(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    weights = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in model.encoder.state_dict().items()}
    plain = functools.partial(
        plain_last_map, weights, heads=HEADS, grid=(6, 6), window=window, seeing_all=global_blocks(8)
    )
    expected, expected_gradients = with_gradients(lambda x: plain(x), weights, images)
    use_windows(model.encoder, window)
    out, gradients = with_gradients(
        lambda x: last_map(model.encoder, x), dict(model.encoder.named_parameters()), images
    )
    close(out, expected)
    assert set(gradients) == set(expected_gradients) - {"positions"}
    for name, gradient in gradients.items():
        close(gradient, expected_gradients[name], msg=lambda text, name=name: f"{name}: {text}")


def test_windows_that_cover_the_image_are_global_attention_alone_and_smaller_ones_are_not():
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = {}
    for window in (None, 6, 14, 3):
        model = model_of()
        if window is not None:
            use_windows(model.encoder, window)
        found[window] = with_gradients(
            functools.partial(last_map, model.encoder), dict(model.encoder.named_parameters()), images
        )
    for window in (6, 14):
        close(found[window][0], found[None][0])
        for name, gradient in found[window][1].items():
            close(gradient, found[None][1][name], msg=lambda text, name=name: f"{name}: {text}")
    assert (found[3][0] - found[None][0]).abs().max() > 0.01


def test_the_layout_that_is_exported_to_detectron2_has_the_same_features():
    pretrained = exports.model_of("mixing", image_size=(32, 32)).double()
    exported = crossmae.export(pretrained, "detectron2")
    client = ViT(**exported.config).double()
    client.load_state_dict(exported.state)
    model = backbone_model(pretrained, backbone_config(pretrained.config, 48)).double()
    use_windows(model.encoder, 14)  # which the image, resized, does not fill: the stand-in knows global attention alone
    images = torch.randn(2, model.config.channels, 48, 48, dtype=torch.float64)
    # Ours are of float32 when they are interpolated, which rounds positions by 6e-8 of their size, about 1.
    assert_close(last_map(model.encoder, images), client(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (32, [7, 15, 23, 31]), (4, [0, 1, 2, 3]), (2, [0, 1])],
)
def test_four_blocks_evenly_spaced_see_all(depth, blocks):
    assert global_blocks(depth) == blocks


def test_a_block_is_skipped_for_an_image_and_not_for_a_window():
    model = model_of(depth=7, drop_path=0.9)
    use_windows(model.encoder, 3)
    x = torch.randn(64, 36, WIDTH, dtype=torch.float64)
    block = [block for i, block in enumerate(model.encoder.blocks) if i not in global_blocks(7)][-1]
    torch.manual_seed(0)
    out = block.train()(x)
    unchanged = (out == x).flatten(2).all(2)  # (images, patches)
    assert torch.equal(unchanged.any(1), unchanged.all(1))
    assert 0 < unchanged.all(1).sum() < 64


def test_the_pretrained_encoder_is_taken_over():
    """But for class token, norm and decoder, of which there may be more kinds than the releases have."""
    torch.manual_seed(0)
    kinds = [
        named_config(
            "crossmae_vit_tiny_patch4", encoder_depth=2, last_mix_norm=False, class_tokens=3, pos_embed="learn"
        ),
        named_config("mae_vit_tiny_patch4", encoder_depth=2, decoder_class_token=False),
    ]
    for pretrained in map(MaskedAutoencoder, kinds):
        config = backbone_config(pretrained.config, 32)
        model, theirs = backbone_model(pretrained, config), pretrained.encoder.state_dict()
        theirs["positions"] = theirs["positions"][:, pretrained.config.class_tokens :]
        for name, tensor in model.encoder.state_dict().items():
            assert tensor.numel() == 0 if name == "cls_token" else torch.equal(tensor, theirs[name]), name
        assert "norm.weight" not in model.encoder.state_dict()
        larger = backbone_model(pretrained, backbone_config(pretrained.config, 48))
        assert last_map(larger.encoder, torch.randn(2, 3, 48, 48)).shape == (2, 96, 12, 12)


def test_patches_of_14_pixels_become_16_and_embed_one_colour_as_before():
    torch.manual_seed(0)
    pretrained = MaskedAutoencoder(named_config("mae_vit_tiny_patch4", image_size=28, patch_size=14, encoder_depth=1))
    with torch.no_grad():  # filters that interpolation does not change: one value for all pixels
        pretrained.encoder.patch_embed.weight.copy_(torch.randn(96, 3, 1, 1).expand(-1, -1, 14, 14))
    model = backbone_model(pretrained, backbone_config(pretrained.config, 64))
    assert model.config.patch_size == 16
    assert model.config.grid == (4, 4)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    colour = torch.randn(1, 3, 1, 1)
    before = pretrained.encoder.patch_embed(colour.expand(-1, -1, 28, 28), ids, None, None)
    after = model.encoder.patch_embed(colour.expand(-1, -1, 64, 64), ids, None, None)
    assert_close(after, before, rtol=1e-5, atol=1e-5)  # sums of 768 products in float32


def test_patches_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="patches must be square for a feature pyramid, got 32 x 2"):
        backbone_config(named_config("crossmae_vit_tiny_patch4", patch_size=(32, 2)), 64)


@pytest.mark.parametrize("side", [0, 20, 31])
def test_an_image_size_that_the_pyramid_cannot_halve_is_refused(side):
    with pytest.raises(ValueError, match=f"a multiple of two patches, 2 x 4 pixels, got {side}"):
        backbone_config(named_config("crossmae_vit_tiny_patch4"), side)


def test_the_pyramid_is_the_papers():
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(8, 6).double()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    w = dict(pyramid.named_parameters())

    def norm(x, name):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][
            :, None, None
        ]

    def doubled(x, name):
        """Each pixel becomes 2 x 2."""
        spread = torch.einsum("bchw,cdij->bdhiwj", x, w[f"{name}.weight"])
        return spread.flatten(4, 5).flatten(2, 3) + w[f"{name}.bias"][:, None, None]

    four = doubled(F.gelu(norm(doubled(x, "scales.0.0"), "scales.0.1")), "scales.0.3")
    halved = x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).amax((3, 5))
    maps = pyramid(x)
    for level, scaled in enumerate([four, doubled(x, "scales.1"), x, halved]):
        narrow = norm(
            torch.einsum("bchw,dc->bdhw", scaled, w[f"outputs.{level}.0.0.weight"][:, :, 0, 0]), f"outputs.{level}.0.1"
        )
        close(
            maps[str(level)],
            norm(F.conv2d(narrow, w[f"outputs.{level}.1.0.weight"], padding=1), f"outputs.{level}.1.1"),
        )
    close(maps["pool"], maps["3"][:, :, ::2, ::2])
    assert [*maps] == ["0", "1", "2", "3", "pool"]
