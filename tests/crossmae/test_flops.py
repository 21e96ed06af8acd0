"""Decode cost: the published table, the paper's convention, and what a counter sees the real modules do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import crossmae
from crossmae.config import named_config
from crossmae.flops import cost_table, decoder_flops_of_paper, decoder_macs, decoder_parts, executed_decoder_macs
from crossmae.masking import random_masking

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
    with pytest.raises(TypeError, match="a Config or a model of this package is needed, got Linear"):
        decoder_macs(torch.nn.Linear(2, 2))
