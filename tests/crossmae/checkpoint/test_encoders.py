"""Encoders alone, as MAE, timm and fine-tuning scripts write them."""

import argparse

import pytest
import torch
from checkpoint_files import HEADS, encoder_of, heard, saved
from golden_cases import Case
from plain_vit import features
from safetensors.torch import save_file

import crossmae
from crossmae.model.positions import interpolate_positions

ENCODER = encoder_of(Case("mae").weights)
ON_TOP = {
    "nothing": {},
    "head": {"head.weight": torch.ones(10, 24), "head.bias": torch.ones(10)},
    "probe": {"head.0.running_mean": torch.ones(24), "head.1.weight": torch.ones(10, 24)},
    "pooled": {"fc_norm.weight": torch.ones(24), "fc_norm.bias": torch.ones(24), "head.weight": torch.ones(10, 24)},
    "pooled by attention": {"attn_pool.latent": torch.ones(1, 1, 24), "attn_pool.q.weight": torch.ones(24, 24)},
}
IMAGES = torch.randn(2, 3, 32, 32)


def close(model, weights, images=IMAGES, heads=3, eps=1e-6):
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode(images).double(), features(weights, images, heads, eps), rtol=0, atol=1e-5
        )
    return True


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("on_top", ON_TOP)
def test_features_are_those_of_the_weights(on_top, norm, prefix, tmp_path):
    weights = {name: tensor for name, tensor in ENCODER.items() if norm or not name.startswith("norm.")}
    content = {"model": {f"{prefix}{name}": tensor for name, tensor in {**weights, **ON_TOP[on_top]}.items()}}
    model, messages = heard(saved(content, tmp_path / "file.pth"), num_heads=3)
    assert close(model, weights)
    assert all(name in messages[0] for name in ON_TOP[on_top])
    assert any("no final norm" in message for message in messages) == (not norm)
    assert messages[0].endswith("not in the file, so assumed unless passed to load: norm_eps=1e-06")


def test_published_widths_need_no_arguments(tmp_path):
    torch.manual_seed(0)
    whole = crossmae.create_model("mae_vit_small_patch16", encoder_depth=1, image_size=64)
    weights = encoder_of(crossmae.to_release(whole.state_dict()))
    model, messages = heard(saved({"model": weights}, tmp_path / "mae_pretrain_vit_small.pth"))
    assert close(model, weights, torch.randn(1, 3, 64, 64), heads=6)
    assert messages[0].endswith(
        "this is an encoder without a decoder; "
        "not in the file, so assumed unless passed to load: num_heads=6, norm_eps=1e-06"
    )
    with pytest.raises(ValueError, match=r"encoder width 24\); pass num_heads="):
        crossmae.load(saved(ENCODER, tmp_path / "narrow.pth"))


def test_nothing_is_reconstructed(tmp_path):
    model = crossmae.load(saved(ENCODER, tmp_path / "file.pth"), num_heads=3, norm_eps=1e-6)
    before = model.encoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    with pytest.raises(ValueError, match=r"no decoder and cannot reconstruct: encode\(images\) returns its feat"):
        model(IMAGES)
    before.remove()
    with pytest.raises(ValueError, match="no decoder"):
        crossmae.decoder_macs(model)
    assert set(crossmae.to_release(model.state_dict())) == set(ENCODER)
    new = crossmae.create_model("crossmae_vit_base_patch16", **{**vars(model.config), "decoder": "crossmae"})
    new.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(new.encode(IMAGES), model.encode(IMAGES))


def test_our_own_file_of_it(tmp_path):
    model = crossmae.load(saved(ENCODER, tmp_path / "file.pth"), num_heads=3, norm_eps=1e-6)
    crossmae.save(model, tmp_path / "model.safetensors")
    again, messages = heard(tmp_path / "model.safetensors", drop_path=0.2, image_size=64)
    assert (again.config.decoder, again.config.drop_path, messages) == (None, 0.2, [])
    assert again.encode(torch.randn(1, 3, 64, 64)).shape == (1, 65, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_another_size_head_and_dtype_at_once(dtype, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in ENCODER.items()}
    path = tmp_path / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in {**weights, **ON_TOP["head"]}.items()}, path)
    model, messages = heard(path, image_size=(48, 64), num_heads=3)
    assert "head.weight" in messages[0]
    wide = torch.promote_types(dtype, torch.float32)
    weights = {name: tensor.to(wide) for name, tensor in weights.items()}
    weights["pos_embed"] = interpolate_positions(weights["pos_embed"], (4, 4), (6, 8))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {wide}
    assert close(model, weights, torch.randn(2, 3, 48, 64, dtype=wide))


def test_positions_that_were_trained(tmp_path):
    fine_tuned = {**ENCODER, "pos_embed": ENCODER["pos_embed"] + 0.02 * torch.randn(1, 17, 24)}
    told = {"num_heads": 3, "norm_eps": 1e-6}
    assert not heard(saved(fine_tuned, tmp_path / "near.pth"), **told)[1]
    learned = {**ENCODER, "pos_embed": 0.02 * torch.randn(1, 17, 24)}
    model, messages = heard(saved(learned, tmp_path / "learned.pth"), **told)
    assert messages[0].endswith("not in the file, so assumed unless passed to load: img_size=(32, 32)")
    assert close(model, learned)
    flat, messages = heard(tmp_path / "learned.pth", **told, img_size=(16, 64))
    assert not messages
    assert close(flat, learned, torch.randn(2, 3, 16, 64))
    learned["pos_embed"] = 0.02 * torch.randn(1, 9, 24)
    with pytest.raises(ValueError, match=r"how its 8 patches are arranged .*; pass img_size=\(height, width\)"):
        crossmae.load(saved(learned, tmp_path / "rectangle.pth"), num_heads=3, image_size=64)
    assert close(crossmae.load(tmp_path / "rectangle.pth", **told, img_size=(16, 32)), learned, IMAGES[:, :, :16])
    content = {"model": {**learned, "pos_embed": torch.randn(1, 17, 24)}, "args": argparse.Namespace(input_size=32)}
    assert not heard(saved(content, tmp_path / "told.pth"), **told)[1]


def test_what_a_decoder_would_need_is_of_no_use(tmp_path):
    model, messages = heard(saved(ENCODER, tmp_path / "file.pth"), **HEADS)
    assert close(model, ENCODER)
    assert (
        "this is an encoder without a decoder; ignored, as there is no decoder: decoder_num_heads; not in the file"
        in messages[0]
    )
    _, messages = heard(tmp_path / "file.pth", num_heads=3, norm_pix_loss=True, norm_eps=1e-6)
    assert messages[0].endswith("this is an encoder without a decoder; ignored, as there is no decoder: norm_pix_loss")
    with pytest.raises(
        ValueError, match="decoder is None according to its tensors, but 'mae' according to the arguments"
    ):
        crossmae.load(tmp_path / "file.pth", num_heads=3, decoder="mae")


def test_patches_need_not_be_square_and_class_tokens_are_counted(tmp_path):
    weights = {**ENCODER, "patch_embed.proj.weight": torch.rand(24, 3, 8, 4)}
    weights |= {"cls_token": torch.rand(1, 8, 24), "pos_embed": torch.rand(1, 24, 24)}
    model, _ = heard(saved(weights, tmp_path / "file.pth"), num_heads=3)
    config = model.config
    assert (config.patch_size, config.class_tokens, config.image_size) == ((8, 4), 8, (32, 16))
    images = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    torch.testing.assert_close(model.double().encode(images), features(weights, images, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.ls1.gamma": torch.ones(24)}, "another kind, with layer scale: blocks.0.ls1.gamma"),
        ({"blocks.2.attn.q_norm.weight": torch.ones(8)}, "with query and key norms: blocks.2.attn.q_norm.weight"),
        ({"norm_pre.bias": torch.ones(24)}, "with a norm before its blocks: norm_pre.bias"),
        ({"blocks.0.attn.rope": torch.ones(24)}, r"unexpected blocks.0.attn.rope \(24,\)"),
        ({"dist_token": torch.ones(1, 1, 24)}, "another kind: besides the class token it has dist_token"),
        (
            {"dist_token": torch.ones(1, 1, 24), "pos_embed": torch.rand(1, 18, 24)},
            "another kind: besides the class token it has dist_token",
        ),
        ({"reg_token": torch.ones(1, 4, 24)}, "another kind: besides the class token it has reg_token"),
        (
            {"pos_embed": torch.rand(1, 16, 24)},
            "its 16 position embeddings have no row for the class token, which is not s",
        ),
        ({"pos_embed": ENCODER["pos_embed"][:, 1:]}, "its 16 position embeddings have no row for the class token"),
        (
            {"mask_token": torch.ones(1, 1, 24)},
            "has parts of a decoder, mask_token, but no decoder_blocks.0.norm1.weight",
        ),
        ({"decoder_pred.bias": torch.ones(192)}, "has parts of a decoder, decoder_pred.bias, but no mask_token"),
        ({"norm.bias": None}, r"missing norm.bias \(24,\)"),
        (
            {"patch_embed.proj.weight": torch.ones(24, 3, 2, 8, 8)},
            r"another kind; .* patch_embed.proj.weight \(24, 3, 2",
        ),
        ({"cls_token": torch.ones(24)}, r"another kind; these have another number of dimensions: cls_token \(24,\)"),
        ({"pos_embed": None}, "it has no pos_embed among its"),
        (
            {"norm.bias": torch.ones(24, dtype=torch.int8)},
            r"norm.bias must be dense 16, 32 or 64-bit floats with data, got torch.int8",
        ),
        ({"norm.bias": torch.ones(24, device="meta")}, "must be dense and with data, got norm.bias on meta"),
        ({"pos_embed": torch.ones(1, 17, 24, device="meta")}, "must be dense and with data, got pos_embed on meta"),
        ({"norm.bias": torch.ones(24).to_sparse()}, "with data, got norm.bias on cpu, torch.sparse_coo"),
    ],
)
def test_other_encoders_are_refused(change, message, tmp_path):
    weights = {name: tensor for name, tensor in {**ENCODER, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.load(saved(weights, tmp_path / "file.pth"), num_heads=3, decoder_num_heads=3)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
