"""torchvision's layout for vision transformers."""

from crossmae.checkpoint.names import Names

# ``linear_1`` and ``linear_2`` are the names in files published before torchvision 0.13.
NAMES = Names(
    others=[
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "pos_embed"),
        ("conv_proj.", "patch_embed.proj."),
        ("encoder.ln.", "norm."),
    ],
    blocks=[("encoder.layers.encoder_layer_", "blocks.")],
    parts=[
        ("ln_1.", "norm1."),
        ("ln_2.", "norm2."),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj.", "attn.proj."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.3.", "mlp.fc2."),
        ("mlp.linear_1.", "mlp.fc1."),
        ("mlp.linear_2.", "mlp.fc2."),
    ],
)
