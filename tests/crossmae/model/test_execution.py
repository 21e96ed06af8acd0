"""What says how a model runs: stochastic depth, checkpointing, the dtype of the residual."""

import pytest
import torch

import crossmae
from crossmae.measure import bytes_saved_for_backward

NAMES = ["crossmae_vit_tiny_patch4", "mae_vit_tiny_patch4"]


def twins(name, **overrides):
    """The same weights in a plain model and in one that runs otherwise."""
    torch.manual_seed(0)
    plain = crossmae.create_model(name)
    other = crossmae.create_model(name, **overrides)
    other.load_state_dict(plain.state_dict())
    return plain, other


@pytest.mark.parametrize("name", NAMES)
def test_parameters_stay_what_they_are(name):
    plain, other = twins(name, drop_path=0.3, gradient_checkpointing=True, hidden_layer="save", residual="autocast")
    assert list(plain.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_keeps_less_and_changes_nothing(name):
    plain, other = twins(name, gradient_checkpointing=True)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 64)
    kept = [bytes_saved_for_backward(lambda m=model: m(images, noise=noise), model) for model in (plain, other)]
    assert kept[1] < 0.5 * kept[0]
    for model in (plain, other):
        model(images, noise=noise).loss.backward()
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_stochastic_depth_skips_whole_branches_of_images_and_keeps_the_mean():
    _, model = twins(NAMES[0], drop_path=0.5)
    assert [block.drop_path for block in model.encoder.blocks] == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])
    block = model.encoder.blocks[-1]
    x = torch.randn(1, 5, 96).expand(4000, -1, -1)
    with torch.no_grad():
        attended = block.attn(x, block.norm1)
        torch.manual_seed(1)
        out = block._skipped(x, attended)
        change = (attended - x)[0]
        skipped = (out == x).flatten(1).all(1)
        assert 0.45 < skipped.double().mean() < 0.55
        torch.testing.assert_close(out[~skipped], (x + 2 * change)[~skipped], rtol=1e-5, atol=1e-5)
        model.eval()
        assert torch.equal(block._skipped(x, attended), attended)


def test_stochastic_depth_reaches_both_branches_of_the_encoder_alone():
    plain, model = twins(NAMES[0], drop_path=0.9)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 64)
    torch.manual_seed(0)
    assert not torch.equal(model(images, noise=noise).loss, plain(images, noise=noise).loss)
    model.eval()
    assert torch.equal(model(images, noise=noise).loss, plain(images, noise=noise).loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("residual", "dtype"), [("float32", torch.float32), ("autocast", torch.bfloat16)])
def test_dtype_of_the_residual(name, residual, dtype):
    _, model = twins(name, residual=residual)
    arrived = []
    for block in (*model.encoder.blocks, *model.decoder.blocks):
        block.register_forward_hook(lambda _, arguments, out: arrived.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3, 32, 32))
    assert set(arrived) == {dtype}
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"hidden_layer": "keep"}, "hidden_layer must be 'recompute' or 'save', got 'keep'"),
        ({"residual": "bfloat16"}, "residual must be 'float32' or 'autocast', got 'bfloat16'"),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        crossmae.create_model(NAMES[0], **overrides)
