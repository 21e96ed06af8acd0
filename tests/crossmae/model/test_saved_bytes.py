"""What the decoder keeps for the backward pass, in closed form and counted."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmae.flops import decoder_saved_bytes
from crossmae.masking import Masking, mask_counts
from crossmae.measure import bytes_saved_for_backward
from crossmae.model.config import named_config
from crossmae.model.decoders import CrossMAEDecoder
from crossmae_kernels.runtime.dispatch import default_implementation

MIB = 2**20


def counted(config, prediction_ratio):
    """Bytes that one more image adds, feature maps aside, on tensors that have shapes and no data."""
    visible, predicted = mask_counts(config.patches, 0.75, prediction_ratio)

    def of_batch(batch):
        with FakeTensorMode():
            decoder = CrossMAEDecoder(config)
            maps = [
                torch.empty(batch, visible + config.class_tokens, config.encoder_width) for _ in config.feature_maps
            ]
            for feature_map in maps:
                feature_map.requires_grad_()
            ids = torch.empty(batch, predicted, dtype=torch.int64)

            def decode():
                with default_implementation("triton"), torch.autocast("cpu", torch.float16):
                    return decoder(maps, Masking(ids, ids))

            return bytes_saved_for_backward(decode, decoder) - sum(m.numel() * m.element_size() for m in maps)

    return of_batch(3) - of_batch(2)


@pytest.mark.parametrize("hidden", ["recompute", "save"])
@pytest.mark.parametrize("residual", ["float32", "autocast"])
@pytest.mark.parametrize(
    ("name", "prediction_ratio"),
    [("crossmae_vit_small_patch16", 0.5), ("crossmae_vit_base_patch16", 0.25), ("crossmae_vit_base_patch16", 0.75)],
)
def test_closed_form_equals_what_is_saved(interpreter_asked_for, name, prediction_ratio, hidden, residual):
    config = replace(named_config(name, decoder_depth=12), hidden_layer=hidden, residual=residual)
    assert counted(config, prediction_ratio) == decoder_saved_bytes(config, prediction_ratio)


@pytest.mark.parametrize("other", [{"class_tokens": 8}, {"last_mix_norm": False}])
def test_other_class_tokens_and_a_mix_without_norm_are_counted(interpreter_asked_for, other):
    config = named_config("crossmae_vit_small_patch16", decoder_depth=2, **other)
    assert counted(config, 0.25) == decoder_saved_bytes(config, 0.25)


def test_vit_b_keeps_a_fifth_of_what_the_release_keeps():
    config = named_config("crossmae_vit_base_patch16", decoder_depth=12)
    assert decoder_saved_bytes(config, 0.25) <= 5.0 * MIB
    assert decoder_saved_bytes(replace(config, hidden_layer="save"), 0.25) <= 7.5 * MIB


def test_other_decoders_have_no_closed_form():
    with pytest.raises(ValueError, match="inter-block attention"):
        decoder_saved_bytes(named_config("mae_vit_base_patch16"))
