"""What a library's model has that cannot be honoured is refused by name, before anything is changed."""

import pytest
from clients import birder, birder_encoder, hugging_face, imported, timm_vit

import crossmae

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries warn of is theirs

REFUSED = {
    "layer scale": (
        lambda: birder("crossmae", 2, birder_encoder(layer_scale_init_value=0.1)),
        r"encoder.encoder.block.0.layer_scale_1 \(LayerScale\) is unknown",
    ),
    "qk norm": (
        lambda: birder("crossmae", 2, birder_encoder(qk_norm=True)),
        r"encoder.encoder.block.0.attn.q_norm \(LayerNorm\) is unknown",
    ),
    "register tokens": (
        lambda: birder("crossmae", 2, birder_encoder(num_reg_tokens=2)),
        r"the model has register tokens \(encoder.reg_tokens\): not supported",
    ),
    "no class token": (
        lambda: birder("crossmae", 2, birder_encoder(class_token=False)),
        r"the model has no class token \(encoder.class_token\): not supported",
    ),
    "experts": (
        lambda: birder("crossmae", 2, birder_encoder(mlp_layer_type="SoftMoE_FFN", soft_moe_num_experts=2)),
        r"encoder.encoder.block.1 does not have the layers of its neighbouring blocks$",
    ),
    "stochastic depth": (
        lambda: birder("crossmae", 2, birder_encoder(drop_path_rate=0.1)),
        r"encoder.encoder.block.1.drop_path drops with probability 0.1; only 0 is supported$",
    ),
    "larger units": (
        lambda: birder("crossmae", 2, min_mask_size=2),
        r"masks in larger units \(min_mask_size=2\): not supported",
    ),
    "one block": (lambda: birder("crossmae", 1), r"a decoder of one block \(decoder_layers\): not supported"),
    "timm's layer scale": (
        lambda: timm_vit(init_values=1e-5, depth=1),
        r"blocks.0.ls1 \(LayerScale\) is unknown; blocks.0.ls2",
    ),
    "timm's dropout": (
        lambda: timm_vit(depth=1, attn_drop_rate=0.1),
        r"blocks.0.attn.attn_drop drops with probability 0.1",
    ),
    "another activation": (
        lambda: hugging_face(hidden_act="gelu_new", num_hidden_layers=1),
        r"vit.layers.0.mlp.activation_fn \(NewGELUActivation\) is unknown",
    ),
    "dropout by number": (
        lambda: hugging_face(attention_probs_dropout_prob=0.5),
        r"vit.layers.0.attention.attention_dropout drops with probability 0.5",
    ),
    "weights of attention": (
        lambda: hugging_face(output_attentions=True, attn_implementation="eager"),
        r"attention must return no weights, got config.output_attentions=True",
    ),
    "no known block": (
        lambda: timm_vit(mlp_layer=imported("timm.layers").SwiGLU),
        r"VisionTransformer is not a CrossMAE or MAE .*, and has no known transformer block: .* no mask_token",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(what):
    make, message = REFUSED[what]
    model = make()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.accelerate(model)
    assert len(str(caught.value)) < 600
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
