"""Decode cost: the published table, the paper's convention, and what a counter sees the real modules do."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import crossmae
from crossmae.flops import (
    cost_table,
    decoder_flops_of_paper,
    decoder_macs,
    decoder_parts,
    encoder_macs,
    executed_decoder_macs,
)
from crossmae.masking import mask_counts, random_masking
from crossmae.model.config import named_config
from crossmae_kernels.runtime.dispatch import default_implementation

# GMAC per image at 224 px: MAE with 8 blocks; CrossMAE with 12 blocks at prediction ratio .25, .5, .75.
PUBLISHED = {
    "small_patch16": (1.442, 0.531, 0.941, 1.351),
    "base_patch16": (5.373, 2.069, 3.659, 5.250),
    "large_patch16": (5.379, 2.235, 3.826, 5.417),
    "huge_patch14": (7.129, 3.139, 5.223, 7.306),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_table(size):
    mae, *ours = PUBLISHED[size]
    assert round(decoder_macs(named_config(f"mae_vit_{size}")) / 1e9, 3) == mae
    for ratio, expected in zip((0.25, 0.5, 0.75), ours, strict=True):
        assert round(decoder_macs(named_config(f"crossmae_vit_{size}"), ratio) / 1e9, 3) == expected


@pytest.mark.parametrize(("class_tokens", "mae", "ours"), [(1, 28.2, 8.3), (8, 29.0, 8.7)])
def test_pixio_s_decoder(class_tokens, mae, ours):
    """Of ViT-H/16 at 256 px, GMAC an image with 32 blocks, which predict all masked patches or a quarter of all."""
    size = {"image_size": 256, "patch_size": 16, "decoder_depth": 32, "class_tokens": class_tokens}
    assert round(decoder_macs(named_config("mae_vit_huge_patch14", **size), 0.75) / 1e9, 1) == mae
    assert round(decoder_macs(named_config("crossmae_vit_huge_patch14", **size), 0.25) / 1e9, 1) == ours


def test_paper_convention():
    mae = decoder_flops_of_paper(named_config("mae_vit_base_patch16"))
    ours = {n: decoder_flops_of_paper(named_config("crossmae_vit_base_patch16", decoder_depth=n)) for n in (8, 12)}
    assert (round(mae / 1e9, 2), round(ours[12] / 1e9, 2), round(ours[8] / 1e9, 2)) == (10.11, 4.08, 2.73)
    assert (round(mae / ours[12], 2), round(mae / ours[8], 2)) == (2.48, 3.70)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("crossmae", {}),
        ("crossmae", {"feature_maps": (0, 3), "decoder_depth": 1}),
        ("crossmae", {"feature_maps": None, "mlp_ratio": 2.5}),
        ("crossmae", {"decoder_self_attention": True, "channels": 1}),
        ("crossmae", {"image_size": (16, 40), "patch_size": 8}),
        ("mae", {}),
        ("mae", {"image_size": (16, 40), "patch_size": 8, "decoder_depth": 3}),
        ("crossmae", {"class_tokens": 8, "last_mix_norm": False, "patch_size": (2, 8)}),
        ("mae", {"class_tokens": 8}),
        ("mae", {"decoder_class_token": False}),
        ("crossmae", {"class_tokens": 0}),
    ],
)
def test_closed_form_equals_what_a_counter_sees(family, overrides, ratio, batch):
    model = crossmae.create_model(f"{family}_vit_tiny_patch4", **overrides)
    config = model.config
    masking = random_masking(batch, config.patches, 0.75, ratio)
    maps = model.encoder(torch.randn(batch, config.channels, *config.image_size), masking.visible_ids)
    with FlopCounterMode(display=False) as counter:
        model.decoder(maps, masking)
    assert counter.get_total_flops() == 2 * executed_decoder_macs(model, batch, ratio)
    shared = 0
    if family == "crossmae" and not config.decoder_self_attention:
        shared = (batch * masking.predicted_ids.shape[1] - config.patches) * config.decoder_width**2
    assert executed_decoder_macs(config, batch, ratio) == batch * decoder_macs(config, ratio) - shared


@pytest.mark.parametrize("overrides", [{}, {"class_tokens": 3, "image_size": (16, 40), "patch_size": 8}], ids=str)
def test_an_encoder_s_closed_form_equals_what_a_counter_sees(overrides):
    model = crossmae.create_model("mae_vit_tiny_patch4", **overrides)
    masking = random_masking(2, model.config.patches, 0.6, 0.6)
    with FlopCounterMode(display=False) as counter:
        model.encoder(torch.randn(2, 3, *model.config.image_size), masking.visible_ids)
    assert counter.get_total_flops() == 2 * 2 * encoder_macs(model.config, 0.6)


SMALL = {
    "image_size": (16, 24),
    "patch_size": 4,
    "encoder_width": 16,
    "encoder_heads": 2,
    "encoder_depth": 2,
    "decoder_width": 16,
    "decoder_heads": 2,
    "decoder_depth": 2,
}
BATCH = 2


def small_model(family, **overrides):
    return crossmae.create_model(f"{family}_vit_tiny_patch4", **SMALL | overrides)


def macs_of_step(model, device="cpu"):
    """Multiply-accumulates that a counter sees of a forward pass, and of the backward pass behind it."""
    with FlopCounterMode(display=False) as forward:
        loss = model(torch.randn(BATCH, 3, *SMALL["image_size"], device=device)).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / 2, backward.get_total_flops() / 2


def expected_macs(config, encoder_trains=True):
    """The same in closed form: every product has two gradients, but for those of what comes from outside."""
    visible, _ = mask_counts(config.patches, 0.75, 0.25)
    width, tokens = config.encoder_width, visible + config.class_tokens
    embedding = BATCH * visible * config.patch_values * width
    blocks = BATCH * config.encoder_depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    decoder = executed_decoder_macs(config, BATCH)
    forward = embedding + blocks + decoder
    if encoder_trains:
        return forward, 2 * forward - embedding
    parts = decoder_parts(config)
    reads_maps = parts["embedding"] if config.decoder == "mae" else parts["mixing"] or parts["key_value"]
    return forward, 2 * decoder - BATCH * reads_maps


FAMILIES = [
    ("crossmae", {}),
    ("crossmae", {"feature_maps": (0, 2), "hidden_layer": "save"}),
    ("crossmae", {"feature_maps": None}),
    ("crossmae", {"decoder_self_attention": True}),
    ("crossmae", {"class_tokens": 8, "last_mix_norm": False}),
    ("mae", {}),
]


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_a_step_counts_as_its_closed_form_with_and_without_kernels(family, overrides, impl):
    with FakeTensorMode(), default_implementation(impl):
        model = small_model(family, **overrides)
        assert macs_of_step(model) == expected_macs(model.config)
        model.encoder.requires_grad_(False)
        assert macs_of_step(model) == expected_macs(model.config, encoder_trains=False)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("family", ["crossmae", "mae"])
def test_a_step_that_computes_under_autocast_counts_the_same(family, impl):
    model = small_model(family, encoder_depth=1, residual="autocast")
    with default_implementation(impl), torch.autocast("cpu", torch.float16):
        assert macs_of_step(model) == expected_macs(model.config)


@pytest.mark.parametrize("family", ["crossmae", "mae"])
def test_a_model_without_memory_counts_the_same(family):
    with torch.device("meta"):
        model = small_model(family)
    assert macs_of_step(model, "meta") == expected_macs(model.config)


def test_a_compiled_step_counts_the_same():
    """While a counter is there PyTorch runs the module as it is written; a compiled backward pass runs as compiled."""
    model = small_model("crossmae", encoder_depth=1, decoder_depth=1)
    torch._dynamo.reset()
    model.compile(backend="aot_eager")
    forward, backward = expected_macs(model.config)
    with default_implementation("triton"):
        loss = model(torch.randn(BATCH, 3, *SMALL["image_size"])).loss
        with FlopCounterMode(display=False) as compiled:
            loss.backward()
        assert compiled.get_total_flops() == 2 * backward
        assert macs_of_step(model) == (forward, backward)


def test_attention_to_many_tokens_is_counted():
    """MAE's decoder sees all tokens, here more than the reference attends to by its definition."""
    model = crossmae.create_model("mae_vit_tiny_patch4", **SMALL | {"image_size": (48, 48), "encoder_depth": 1})
    masking = random_masking(1, model.config.patches, 0.75, 0.25)
    maps = model.encoder(torch.randn(1, 3, 48, 48), masking.visible_ids)
    with FlopCounterMode(display=False) as counter:
        model.decoder(maps, masking)
    assert counter.get_total_flops() == 2 * executed_decoder_macs(model, 1)


def test_parts_add_up_to_the_known_shares():
    parts = decoder_parts(named_config("crossmae_vit_base_patch16"))
    total = sum(parts.values())
    shares = {part: round(100 * macs / total, 1) for part, macs in parts.items()}
    assert shares == {
        "mixing": 0.3, "query": 7.5, "key_value": 22.8, "attention": 1.5, "attention_output": 7.5, "mlp": 59.6,
        "head": 0.9,
    }  # fmt: skip


def test_table_has_every_row():
    rows = cost_table()
    assert len(rows) == 4 * 2 * 3
    base = next(r for r in rows if (r["model"], r["image"], r["prediction ratio"]) == ("ViT-B/16", 224, 0.25))
    assert round(base["ratio"], 2) == 2.60
    assert round(base["ratio (paper)"], 2) == 2.48


def test_what_has_no_decoder_is_refused():
    with pytest.raises(TypeError, match="expected a Config or a model of this package, got Linear"):
        decoder_macs(torch.nn.Linear(2, 2))
