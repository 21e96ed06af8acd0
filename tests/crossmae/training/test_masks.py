"""Runs whose masks have a shape: what the model sees, and how they go on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pretraining import into, losses, small, weights

import crossmae
from crossmae.model import MaskedAutoencoder
from crossmae.training.run import pretrain

RATIOS = {"grid": 0.75, "block": 0.5}
CORNERS = {8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)}


def is_grid(visible):
    return set(visible) == CORNERS


def is_block(visible):
    """Whether what is hidden of 8 x 8 patches is a rectangle but for a part of one of its lines."""
    hidden = set(range(64)) - set(visible)
    rows, columns = {place // 8 for place in hidden}, {place % 8 for place in hidden}
    return len(rows) * len(columns) - len(hidden) < max(len(rows), len(columns))


@pytest.fixture
def masks(monkeypatch):
    """Those of every forward pass that was given one."""
    seen = []
    forward = MaskedAutoencoder.forward

    def noted(model, images, *ratios, masking=None):
        if masking is not None:
            seen.append(masking)
        return forward(model, images, *ratios, masking=masking)

    monkeypatch.setattr(MaskedAutoencoder, "forward", noted)
    return seen


@pytest.mark.parametrize(("shape", "has_shape"), [("grid", is_grid), ("block", is_block)])
def test_a_run_trains_with_its_masks_and_goes_on_bit_for_bit(tmp_path, masks, shape, has_shape):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe = small(steps=4, masking=shape, mask_ratio=RATIOS[shape])
    pretrain(recipe, into(whole))
    assert json.loads((whole / "recipe.json").read_text())["masking"] == shape
    assert all(has_shape(visible) for masking in masks for visible in masking.visible_ids.tolist())
    *training, pictures = masks
    assert [masking.predicted_ids.shape for masking in training] == [(16, 16)] * 4
    assert pictures.predicted_ids.shape[1] == 64 * RATIOS[shape]
    assert len({str(masking.predicted_ids.tolist()) for masking in training}) == 4  # others in every step

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000004")
    pretrain(replace(recipe, data=replace(recipe.data, workers=1)), into(parts))
    assert losses(parts) == losses(whole)
    assert all(torch.equal(weights(parts)[name], tensor) for name, tensor in weights(whole).items())
    for again, first in zip(masks[-3:-1], training[2:], strict=True):
        assert torch.equal(again.visible_ids, first.visible_ids)
        assert torch.equal(again.predicted_ids, first.predicted_ids)


def test_a_run_of_pixio_s_kind(tmp_path, masks):
    """Masks of cells, several class tokens and learned positions, which are trained, saved and loaded."""
    options = {"class_tokens": 3, "pos_embed": "learn", "decoder_pos_embed": "learn"}
    pretrain(small(steps=2, masking="cells", model_options={**small().model_options, **options}), into(tmp_path))
    for visible in masks[0].visible_ids.tolist():
        cells = {(place // 8 // 4, place % 8 // 4) for place in visible}
        assert len(visible) == 16 * len(cells)
    model = crossmae.load(tmp_path)
    first = crossmae.load(tmp_path / "checkpoints" / "step-00000000")
    assert {name: getattr(model.config, name) for name in options} == options
    for part in ("encoder", "decoder"):
        positions, before = (getattr(each, part).positions for each in (model, first))
        assert isinstance(positions, torch.nn.Parameter)
        assert not torch.equal(positions, before)
