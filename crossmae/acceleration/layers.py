"""The paths of a transformer block's layers in different libraries."""

from dataclasses import dataclass

from torch import nn

from crossmae.acceleration.obstacles import Roles


def _mlp(fc1: str, fc2: str) -> Roles:
    return {"mlp": None, fc1: nn.Linear, fc2: nn.Linear}


@dataclass(frozen=True)
class SelfAttentionLayers:
    """Paths within a pre-norm block, and its attention's attribute for the number of heads.

    ``qkv`` is one joint projection, or three for queries, keys and values.
    """

    norm1: str = "norm1"
    attention: str = "attn"
    qkv: tuple[str, ...] = ("attn.qkv",)
    proj: str = "attn.proj"
    heads: str = "num_heads"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"

    @property
    def roles(self) -> Roles:
        """The layers' roles within the block."""
        attention = {self.attention: None, **dict.fromkeys((*self.qkv, self.proj), nn.Linear)}
        return {self.norm1: nn.LayerNorm, **attention, self.norm2: nn.LayerNorm, **_mlp(self.fc1, self.fc2)}


@dataclass(frozen=True)
class CrossAttentionLayers:
    """Paths within a CrossMAE decoder block; with ``attends_to_itself``, queries first attend to each other."""

    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    attends_to_itself: bool = False

    @property
    def roles(self) -> Roles:
        """The layers' roles within the block."""
        first: Roles = {
            "norm0": nn.LayerNorm,
            "self_attn": None,
            "self_attn.qkv": nn.Linear,
            "self_attn.proj": nn.Linear,
        }
        attention: Roles = {
            "norm1": nn.LayerNorm,
            "cross_attn": None,
            "cross_attn.q": nn.Linear,
            "cross_attn.kv": nn.Linear,
            "cross_attn.proj": nn.Linear,
        }
        rest = {"norm2": nn.LayerNorm, **_mlp(self.fc1, self.fc2)}
        return {**(first if self.attends_to_itself else {}), **attention, **rest}


# The MAE and CrossMAE releases, timm, lightly and stable-pretraining share names.
SELF_ATTENTION = SelfAttentionLayers()
# birder's MLP is torchvision's, a sequence of layers.
BIRDER_SELF_ATTENTION = SelfAttentionLayers(fc1="mlp.0", fc2="mlp.3")
HUGGING_FACE_SELF_ATTENTION = SelfAttentionLayers(
    norm1="layernorm_before",
    attention="attention",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    proj="attention.o_proj",
    heads="num_attention_heads",
    norm2="layernorm_after",
)
CROSS_ATTENTION = CrossAttentionLayers()
BIRDER_CROSS_ATTENTION = CrossAttentionLayers("mlp.0", "mlp.3")
