"""The models as wholes: every configuration against an independent formulation, and what a user may do with them."""

import re

import plain_autoencoder
import pytest
import torch

import crossmae
from crossmae.masking import Masking, random_masking

SMALL = {"patch_size": 4, "encoder_width": 16, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 8}
SMALL |= {"decoder_depth": 2, "decoder_heads": 2}

VARIANTS = {
    "inter-block attention": ("crossmae", {}),
    "some maps": ("crossmae", {"feature_maps": (0, 2)}),
    "one map": ("crossmae", {"feature_maps": None}),
    "decoder self-attention": ("crossmae", {"decoder_self_attention": True}),
    "plain pixels": ("crossmae", {"normalize_targets": False}),
    "other shapes": ("crossmae", {"decoder_depth": 3, "mlp_ratio": 2.5, "decoder_heads": 4, "encoder_heads": 4}),
    "patch 5, 7 channels": ("crossmae", {"patch_size": 5, "image_size": (15, 20), "channels": 7}),
    "another eps": ("crossmae", {"norm_eps": 0.1, "decoder_self_attention": True}),
    "MAE": ("mae", {}),
    "MAE, another eps": ("mae", {"norm_eps": 0.1}),
    "MAE, greyscale": ("mae", {"channels": 1, "normalize_targets": False}),
    "patches of 2 x 5": ("crossmae", {"patch_size": (2, 5), "image_size": (8, 20)}),
    "a signal": ("mae", {"patch_size": (1, 5), "image_size": (1, 60), "channels": 2}),
    "as birder": (
        "crossmae",
        {"final_norm": True, "last_mix_norm": False, "no_embed_class": False, "pos_embed": "learn"},
    ),
    "one block without a norm": ("crossmae", {"last_mix_norm": False, "decoder_depth": 1, "feature_maps": (1,)}),
    "as stable-pretraining": ("crossmae", {"norm_eps": 0.03, "decoder_norm_eps": 0.1, "pixel_order": "chw"}),
    "MAE as stable-pretraining": (
        "mae",
        {"norm_eps": 0.03, "decoder_norm_eps": 0.1, "pixel_order": "chw", "decoder_class_token": False},
    ),
    "as Pixio": ("mae", {"class_tokens": 8, "pos_embed": "learn", "decoder_pos_embed": "learn"}),
    "as Pixio, decoded by CrossMAE": (
        "crossmae",
        {"class_tokens": 8, "pos_embed": "learn", "decoder_pos_embed": "learn"},
    ),
    "no class token": ("crossmae", {"class_tokens": 0}),
    "MAE, no class token": ("mae", {"class_tokens": 0, "decoder_pos_embed": "learn"}),
    "one map without a norm": ("crossmae", {"feature_maps": None, "final_norm": False}),
    "MAE, class token without position": ("mae", {"no_embed_class": True, "pos_embed": "learn"}),
}


def create(family="crossmae", image_size=(12, 20), **overrides):
    """A small model in float64 with random values in every parameter, norms and biases too."""
    torch.manual_seed(0)
    overrides = {**SMALL, **overrides}
    model = crossmae.create_model(f"{family}_vit_base_patch16", overrides.pop("image_size", image_size), **overrides)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    # Fresh tables hold zeros for class tokens, which would hide whether they are added.
    for module in (model.encoder, model.decoder):
        if not isinstance(module.positions, torch.nn.Parameter):
            module.positions += 0.3 * torch.randn_like(module.positions)
    return model


@pytest.mark.parametrize("prediction_ratio", [0.25, 0.75])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_prediction_and_gradients(variant, prediction_ratio):
    family, overrides = VARIANTS[variant]
    model = create(family, **overrides)
    images = torch.randn(2, model.config.channels, *model.config.image_size, dtype=torch.float64)
    masking = random_masking(2, model.config.patches, 0.75, prediction_ratio)
    out = model(images, masking=masking)
    loss, prediction = plain_autoencoder.plain(model, images, masking)
    torch.testing.assert_close(out.loss, loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(out.prediction, prediction, rtol=1e-9, atol=1e-11)
    parameters = dict(model.named_parameters())
    # Of positions that class tokens do not get, and of class tokens that are not there, nothing depends.
    ours = torch.autograd.grad(out.loss, parameters.values(), materialize_grads=True)
    theirs = torch.autograd.grad(loss, parameters.values(), materialize_grads=True)
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_subsets_of_the_predicted_patches_decode_alike():
    model = create()
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    whole = random_masking(2, 15, 0.8, 0.8)
    part = Masking(whole.visible_ids, whole.predicted_ids[:, [7, 2]])
    torch.testing.assert_close(
        model(images, masking=part).prediction,
        model(images, masking=whole).prediction[:, [7, 2]],
        rtol=1e-12,
        atol=1e-12,
    )


def test_features_of_whole_images():
    model, images = create(), torch.randn(2, 3, 12, 20, dtype=torch.float64)
    everything = torch.arange(15).expand(2, -1)
    features = model.encode(images)
    assert features.shape == (2, 16, 16)
    torch.testing.assert_close(features, model.encoder(images, everything)[-1], rtol=1e-12, atol=1e-12)


def test_encoder_hands_out_the_chosen_maps():
    model, images = create(feature_maps=(0, 2)), torch.randn(2, 3, 12, 20, dtype=torch.float64)
    maps = model.encoder(images, torch.tensor([[1, 5], [0, 14]]))
    assert [tuple(m.shape) for m in maps] == [(2, 3, 16)] * 2


@pytest.mark.parametrize("name", crossmae.list_models())
def test_named_models_have_their_shapes(name):
    with torch.device("meta"):
        model = crossmae.create_model(name)
    config = model.config
    size = name.split("_vit_")[1]
    widths = {"tiny_patch4": (96, 4, 64), "small_patch16": (384, 12, 256), "base_patch16": (768, 12, 512)}
    widths |= {"large_patch16": (1024, 24, 512), "huge_patch14": (1280, 32, 512)}
    assert (config.encoder_width, config.encoder_depth, config.decoder_width) == widths[size]
    assert config.patch_size == int(size.split("patch")[1])
    if name.startswith("crossmae"):
        assert config.feature_maps == tuple(range(config.encoder_depth + 1))


def test_base_model_has_the_release_s_state():
    with torch.device("meta"):
        model = crossmae.create_model("crossmae_vit_base_patch16")
    state = crossmae.to_release(model.state_dict())
    assert len(state) == 347
    shapes = {
        "wfm.linear.weight": (12, 13), "dec_norms.11.bias": (768,), "decoder_pred.weight": (768, 512),
        "decoder_blocks.11.cross_attn.kv.weight": (1024, 768), "decoder_blocks.0.norm1.weight": (512,),
        "patch_embed.proj.weight": (768, 3, 16, 16), "cls_token": (1, 1, 768), "decoder_pos_embed": (1, 197, 512),
        "blocks.0.attn.qkv.weight": (2304, 768), "decoder_norm.bias": (512,), "mask_token": (1, 1, 512),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_initialisation():
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_small_patch16")
    state = model.state_dict()
    mixing = state["decoder.mixing.weight"]
    assert mixing.abs().max() <= (6 / (12 + 13)) ** 0.5
    torch.testing.assert_close(mixing.std().item(), (2 / (12 + 13)) ** 0.5, rtol=0.15, atol=0)
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
    qkv = state["encoder.blocks.3.attn.qkv.weight"]
    torch.testing.assert_close(qkv.std().item(), (2 / (384 + 3 * 384)) ** 0.5, rtol=0.02, atol=0)
    torch.testing.assert_close(state["decoder.mask_token"].std().item(), 0.02, rtol=0.2, atol=0)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 28), ValueError, "(batch, 3, 32, 32), got (2, 3, 32, 28)"),
        (torch.zeros(2, 1, 32, 32), ValueError, "got (2, 1, 32, 32)"),
        (torch.zeros(3, 32, 32), ValueError, "got (3, 32, 32)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "images must be floating point, got torch.uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), TypeError, "images must be torch.float32 like the model"),
        ([1, 2], TypeError, "images must be a tensor, got list"),
    ],
)
def test_wrong_images(images, error, message):
    model = crossmae.create_model("crossmae_vit_tiny_patch4")
    for call in (model, model.encode):
        with pytest.raises(error, match=re.escape(message)):
            call(images)


def test_no_image_has_no_loss_and_no_features():
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=1, decoder_depth=1, feature_maps=(1,))
    for masking in (None, random_masking(0, 64)):
        with pytest.raises(ValueError, match="images must hold at least one image, got none"):
            model(torch.zeros(0, 3, 32, 32), masking=masking)
    assert model.encode(torch.zeros(0, 3, 32, 32)).shape == (0, 65, 96)


def test_masks_for_other_images_are_refused():
    model, images = crossmae.create_model("crossmae_vit_tiny_patch4"), torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match="masking must be for 2 images, got one for 3"):
        model(images, masking=random_masking(3, 64))
    with pytest.raises(ValueError, match="the masking is for images of 196 patches, but these have 64"):
        model(images, masking=random_masking(2, 196))
    with pytest.raises(ValueError, match="the masking is for images of 16 patches, but these have 64"):
        model(images, masking=random_masking(2, 16))  # all of whose ids these images have
    with pytest.raises(TypeError, match=re.escape("masking must be a Masking, got Tensor; see Masking.from_mask")):
        model(images, masking=torch.zeros(2, 64, dtype=torch.bool))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 30}, "patch_size must divide image_size (30, 30), got 4"),
        ({"encoder_heads": 5}, "encoder_heads must divide encoder_width 96, got 5"),
        ({"decoder_width": 66, "decoder_heads": 1}, "decoder_width must be a multiple of 4"),
        ({"decoder_depth": 0, "channels": 0}, "channels must be a positive integer, got 0; decoder_depth must be"),
        ({"feature_maps": (1, 5)}, "each in [0, encoder_depth = 4], got (1, 5)"),
        ({"feature_maps": ()}, "at least one"),
        ({"feature_maps": (2, 1)}, "ascending and distinct"),
        ({"width": 3}, "width: no such setting"),
        ({"decoder": "mae"}, "choose another model"),
        ({"mlp_ratio": 0}, "mlp_ratio must be positive"),
    ],
)
def test_wrong_configurations(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        crossmae.create_model("crossmae_vit_tiny_patch4", **overrides)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ValueError, match="no model 'vit_base'; choose from crossmae_vit_tiny_patch4"):
        crossmae.create_model("vit_base")


@pytest.mark.parametrize("name", ["crossmae_vit_tiny_patch4", "mae_vit_tiny_patch4"])
def test_autocast_agrees_with_float32(name):
    torch.manual_seed(0)
    model, images = crossmae.create_model(name, encoder_depth=2, decoder_depth=2), torch.randn(2, 3, 32, 32)
    noise = torch.rand(2, 64)
    loss = model(images, noise=noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, noise=noise).loss
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss, rtol=0.02, atol=0)


# CrossMAE is compiled in test_kernels.py.
@pytest.mark.parametrize(
    "name", [pytest.param("crossmae_vit_tiny_patch4", marks=pytest.mark.slow), "mae_vit_tiny_patch4"]
)
def test_compiled_code_agrees_with_eager(name):
    torch.manual_seed(0)
    model, images = crossmae.create_model(name, encoder_depth=1, decoder_depth=1), torch.randn(2, 3, 32, 32)
    noise = torch.rand(2, 64)
    loss = model(images, noise=noise).loss
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    result = compiled(images, noise=noise).loss
    torch.testing.assert_close(result, loss, rtol=1e-5, atol=0)
    result.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("name", "adds"), [("crossmae_vit_tiny_patch4", False), ("mae_vit_tiny_patch4", True)])
def test_the_class_token_has_a_position_in_mae_alone(name, adds):
    torch.manual_seed(0)
    model, images = crossmae.create_model(name, encoder_depth=2, decoder_depth=2), torch.randn(2, 3, 32, 32)
    masking = random_masking(2, 64)
    plain = model(images, masking=masking).prediction, model.encode(images)
    row = torch.randn(96)
    model.encoder.positions[:, 0] = row
    loaded = model(images, masking=masking).prediction, model.encode(images)
    assert [torch.equal(*pair) for pair in zip(plain, loaded, strict=True)] == [not adds] * 2
    # What the row adds is what the token would be with it.
    model.encoder.positions[:, 0] = 0
    if adds:
        with torch.no_grad():
            model.encoder.cls_token.add_(row)
    torch.testing.assert_close((model(images, masking=masking).prediction, model.encode(images)), loaded)


def with_statistics(**overrides):
    torch.manual_seed(0)
    statistics = {"pixel_mean": (0.2, 0.5, 0.7), "pixel_std": (0.1, 0.3, 0.2)}
    model = crossmae.create_model(
        "crossmae_vit_tiny_patch4", encoder_depth=2, decoder_depth=2, **statistics, **overrides
    )
    return model, torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_images_as_bytes_give_what_normalised_images_give(normalize_targets):
    model, images = with_statistics(normalize_targets=normalize_targets)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.2, 0.5, 0.7), (0.1, 0.3, 0.2)))
    normalized = (images / 255 - mean) / std
    torch.testing.assert_close(model.normalized(images), normalized)
    torch.testing.assert_close(model.normalized(images / 255), normalized)
    masking = random_masking(2, 64)
    out, expected = model(images, masking=masking), model(normalized, masking=masking)
    torch.testing.assert_close(out.prediction, expected.prediction)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(model.encode(images), model.encode(normalized))


def test_pixel_statistics_are_configuration_and_not_state(tmp_path):
    model, images = with_statistics()
    assert not any("pixel" in name for name in model.state_dict())
    crossmae.save(model, tmp_path / "model.safetensors")
    loaded = crossmae.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(images), model.encode(images))
    with pytest.raises(TypeError, match=r"got torch.uint8; normalise them first"):
        model.double()(images)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"pixel_mean": (0.5,), "pixel_std": (1.0, 1.0, 1.0)}, r"pixel_mean must have one value for each of 3"),
        ({"pixel_mean": (0.5, 0.5, 0.5)}, r"pixel_mean and pixel_std come together"),
        ({"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (1.0, 0.0, 1.0)}, r"pixel_std must be positive"),
    ],
)
def test_wrong_pixel_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        crossmae.create_model("crossmae_vit_tiny_patch4", **statistics)
