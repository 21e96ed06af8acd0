"""Options of timm's VisionTransformer: what is read computes its features, the rest is refused with a way out."""

import pytest
import torch
from safetensors.torch import save_file

import crossmae

timm = pytest.importorskip("timm")
IMAGES = torch.randn(2, 3, 16, 16)


def vit(**options):
    """A model of timm's and its file, of a grid of 4 x 4 patches."""
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0, **options
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, model.state_dict()


def read(state, tmp_path, **arguments):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vit.safetensors")
    return crossmae.load(tmp_path / "vit.safetensors", num_heads=3, **arguments).eval()


def agree(model, theirs):
    with torch.no_grad():
        torch.testing.assert_close(model.encode(IMAGES), theirs.forward_features(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::crossmae.checkpoint.CheckpointWarning")
def test_without_a_class_token(tmp_path):
    theirs, state = vit(class_token=False, global_pool="avg", fc_norm=False)
    model = read(state, tmp_path)
    assert model.config.class_tokens == 0
    agree(model, theirs)


@pytest.mark.filterwarnings("ignore::crossmae.checkpoint.CheckpointWarning")
@pytest.mark.parametrize("arguments", [{}, {"img_size": 16}])
def test_a_class_token_without_a_position(arguments, tmp_path):
    theirs, state = vit(no_embed_class=True)
    with pytest.raises(
        ValueError, match=r"its 16 position embeddings have no row for the class token: .* a row of zeros in front"
    ):
        read(state, tmp_path, **arguments)
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), state["pos_embed"]], dim=1)
    agree(read(state, tmp_path, **arguments), theirs)


@pytest.mark.filterwarnings("ignore::crossmae.checkpoint.CheckpointWarning")
def test_no_biases_of_queries_keys_and_values(tmp_path):
    theirs, state = vit(qkv_bias=False)
    with pytest.raises(ValueError, match=r"has no biases of queries, keys and values \(timm's qkv_bias=False\)"):
        read(state, tmp_path)
    agree(read({**state, **{f"blocks.{i}.attn.qkv.bias": torch.zeros(72) for i in range(2)}}, tmp_path), theirs)
