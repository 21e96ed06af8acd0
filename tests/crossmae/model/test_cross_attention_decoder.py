"""The decoder alone: any features, any number of tokens, any positions, any head."""

import re

import pytest
import torch
import torch.nn.functional as F

import crossmae
from crossmae import CrossAttentionDecoder, position_embedding
from crossmae.masking import random_masking

SIZES = {"feature_width": 12, "out_features": 5, "width": 8, "depth": 3, "heads": 2}


def decoder_of(maps=3, **overrides):
    """In float64, with random values in every parameter."""
    torch.manual_seed(0)
    decoder = CrossAttentionDecoder(maps=maps, **{**SIZES, **overrides}).double()
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return decoder


def maps_of(count=3, tokens=7):
    return [torch.randn(2, tokens, 12, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def plain(decoder, maps, positions, heads=2, eps=1e-6):
    """One image and one query at a time, in the plainest terms."""
    state = dict(decoder.named_parameters())

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    images = []
    for image in range(len(maps[0])):
        predictions = []
        for position in positions[image]:
            x = state["mask_token"][0, 0] + position
            for i in range(len(decoder.blocks)):
                features = maps[-1][image]
                if decoder.mixing is not None:
                    features = sum(w * m[image] for w, m in zip(state["mixing.weight"][i], maps, strict=True))
                    if f"mixing.norms.{i}.weight" in state:
                        features = norm(features, f"mixing.norms.{i}")
                key, value = linear(features, f"blocks.{i}.cross_attn.kv").chunk(2, -1)
                query, parts = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.cross_attn.q"), []
                for q, k, v in zip(query.chunk(heads), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
                    parts.append((k @ q / len(q) ** 0.5).softmax(0) @ v)
                x = x + linear(torch.cat(parts), f"blocks.{i}.cross_attn.proj")
                x = x + linear(
                    F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2"
                )
            x = norm(x, "norm")
            predictions.append(linear(x, "head") if "head.weight" in state else x)
        images.append(torch.stack(predictions))
    return torch.stack(images)


@pytest.mark.parametrize("queries", ["rows", "a table", "a table and ids"])
@pytest.mark.parametrize(
    ("maps", "overrides"),
    [
        (3, {}),
        (None, {}),
        (1, {"last_mix_norm": False}),
        (3, {"out_features": None, "mlp_ratio": 2.5, "norm_eps": 0.1}),
    ],
)
def test_predictions_and_gradients(maps, overrides, queries):
    decoder, features = decoder_of(maps, **overrides), maps_of(maps or 1)
    table, ids = torch.randn(6, 8, dtype=torch.float64, requires_grad=True), torch.tensor([[5, 0, 2], [1, 1, 4]])
    given = {"rows": (table[ids], None), "a table": (table, None), "a table and ids": (table, ids)}[queries]
    positions = table.expand(2, -1, -1) if queries == "a table" else table[ids]
    found = decoder(features, *given)
    expected = plain(decoder, features, positions, eps=overrides.get("norm_eps", 1e-6))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    upstream, inputs = torch.randn_like(found), [table, *features, *decoder.parameters()]
    ours, theirs = (torch.autograd.grad(out, inputs, upstream, retain_graph=True) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_queries_may_lie_anywhere_and_be_asked_for_apart():
    decoder, features = decoder_of(), maps_of()
    places = 20 * torch.rand(2, 9, 2, dtype=torch.float64) - 3
    positions = position_embedding(places, 8)
    together = decoder(features, positions)
    apart = [decoder(features, positions[:, part]) for part in (slice(0, 4), slice(4, 5), slice(5, 9))]
    torch.testing.assert_close(torch.cat(apart, dim=1), together, rtol=1e-12, atol=1e-12)
    last = list(decoder.residuals(features, positions))
    assert len(last) == 3
    assert torch.equal(decoder.output(last[-1]), together)


def test_tokens_may_be_few_or_many_and_self_attention_ties_queries():
    positions = torch.randn(4, 8, dtype=torch.float64)
    for tokens in (1, 200):
        features = maps_of(tokens=tokens)
        torch.testing.assert_close(
            decoder_of()(features, positions), plain(decoder_of(), features, positions.expand(2, -1, -1))
        )
    tied, features = decoder_of(self_attention=True), maps_of()
    assert not torch.allclose(tied(features, positions)[:, :2], tied(features, positions[:2]))


def test_crossmae_s_decoder_takes_places_between_patches():
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=2, decoder_depth=2).double()
    masking = random_masking(2, 64)
    maps = model.encoder(torch.randn(2, 3, 32, 32, dtype=torch.float64), masking.visible_ids)
    rows, columns = masking.predicted_ids // 8, masking.predicted_ids % 8
    places = torch.stack([rows, columns], dim=-1).double()
    expected = model.decoder(maps, masking)
    # Fresh tables are float32.
    torch.testing.assert_close(model.decoder(maps, position_embedding(places, 64)), expected, rtol=1e-5, atol=1e-6)
    between = model.decoder(maps, position_embedding(places + 0.5, 64))
    assert between.shape == expected.shape
    assert not torch.allclose(between, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("maps", "queries", "ids", "message"),
    [
        (
            maps_of(2),
            (4, 8),
            None,
            "maps must be 3 feature map(s) of one shape (batch, tokens, 12), got 2, of (2, 7, 12)",
        ),
        ([], (4, 8), None, "got 0"),
        ([*maps_of(2), *maps_of(1, 6)], (4, 8), None, "got 3, of (2, 7, 12), (2, 6, 12)"),
        ([torch.zeros(2, 7, 8)] * 3, (4, 8), None, "got 3, of (2, 7, 8)"),
        (maps_of(), (4, 6), None, "queries must have shape (2, queries, 8), or (positions, 8) with or without ids (2,"),
        (maps_of(), (3, 4, 8), None, "got (3, 4, 8) and ids None"),
        (maps_of(), (2, 4, 8), (2, 3), "got (2, 4, 8) and ids (2, 3)"),
        (maps_of(), (4, 8), (3, 3), "got (4, 8) and ids (3, 3)"),
    ],
)
def test_what_does_not_fit_is_refused(maps, queries, ids, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        decoder_of()(maps, torch.zeros(queries, dtype=torch.float64), None if ids is None else torch.zeros(ids).long())


def test_sizes_that_cannot_be_are_refused():
    message = "CrossAttentionDecoder: maps must be a positive integer, got 0; depth must be a positive integer, got 0"
    with pytest.raises(ValueError, match=message):
        decoder_of(0, depth=0)
    with pytest.raises(ValueError, match="heads must divide width 8, got 3"):
        decoder_of(heads=3)
    with pytest.raises(ValueError, match=r"width must be a positive integer, got 8\.0"):
        decoder_of(width=8.0)


def test_options_that_compute_or_change_nothing_are_refused():
    wrong = {"mlp_ratio": 0.01, "norm_eps": -1.0, "hidden_layer": "keep", "residual": "half"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"CrossAttentionDecoder: {name} must .*, got {value!r}"):
            decoder_of(**{name: value})
    with pytest.raises(ValueError, match="last_mix_norm=False needs maps to mix, got maps=None"):
        decoder_of(None, last_mix_norm=False)
