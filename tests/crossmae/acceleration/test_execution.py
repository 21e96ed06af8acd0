"""What is done to a model beside calling it: hooks, checkpointing, wrappers, compilation, export."""

import copy

import pytest
import torch
from accelerated import assert_alike, call, crossmae_model, gradients, images
from releases import MAE, CrossMAE, randomized
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import crossmae
from crossmae.measure import bytes_saved_for_backward


def mae_model():
    return randomized(MAE())


@pytest.mark.parametrize("make", [crossmae_model, mae_model])
@pytest.mark.parametrize("first", ["hooks", "acceleration"])
def test_hooks_on_the_model_and_its_blocks_are_called(make, first):
    plain = make()
    model = copy.deepcopy(plain)
    seen = {"plain": [], "ours": []}

    def listen(name, module):
        for path in ("", "blocks.0", "blocks.1", "decoder_blocks.0", "decoder_blocks.1"):
            part = module.get_submodule(path)
            part.register_forward_pre_hook(lambda _, inputs, p=path: seen[name].append((p, inputs[0].shape)))
            part.register_forward_hook(lambda _, __, out: 1.5 * out if isinstance(out, torch.Tensor) else None)
            if path:  # images want no gradient
                part.register_full_backward_hook(lambda _, __, grads, p=path: seen[name].append((p, len(grads))))

    listen("plain", plain)
    if first == "acceleration":
        crossmae.accelerate(model)
    listen("ours", model)
    if first == "hooks":
        crossmae.accelerate(model)
        seen["ours"].clear()
    ours, theirs = call(model, images()), call(plain, images())
    assert_alike(ours, theirs)
    found, expected = gradients(model, ours[0]), gradients(plain, theirs[0])
    assert seen["ours"] == seen["plain"]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_hook_sees_the_features_that_the_block_attends_to():
    plain = crossmae_model()
    model = crossmae.accelerate(copy.deepcopy(plain))
    seen = {}
    for name, each in (("plain", plain), ("ours", model)):
        each.decoder_blocks[1].register_forward_pre_hook(lambda _, inputs, n=name: seen.update({n: inputs}))
        call(each, images())
    assert_alike(seen["ours"], seen["plain"])


@pytest.mark.parametrize("make", [crossmae_model, mae_model])
@pytest.mark.parametrize("first", ["wrappers", "acceleration"])
def test_activation_checkpointing_keeps_less_and_changes_nothing(make, first):
    plain = make()
    model = copy.deepcopy(plain)
    if first == "acceleration":
        crossmae.accelerate(model)
    kept = bytes_saved_for_backward(lambda: call(model, images())[0], model)
    for blocks in (model.blocks, model.decoder_blocks):
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
    if first == "wrappers":
        crossmae.accelerate(model)
    assert bytes_saved_for_backward(lambda: call(model, images())[0], model) < 0.6 * kept
    ours, theirs = call(model, images()), call(plain, images())
    assert_alike(ours, theirs)
    found, expected = gradients(model, ours[0]), gradients(plain, theirs[0])
    assert {name.replace("_checkpoint_wrapped_module.", ""): 0 for name in found}.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[name.replace("_checkpoint_wrapped_module.", "")], rtol=1e-3, atol=1e-5
        )


def test_blocks_may_be_called_alone():
    plain = crossmae_model(self_attn=True)
    model = crossmae.accelerate(copy.deepcopy(plain))
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 32)
    torch.testing.assert_close(model.decoder_blocks[0](x, y), plain.decoder_blocks[0](x, y))
    torch.testing.assert_close(model.blocks[0](y), plain.blocks[0](y))


@pytest.mark.parametrize(
    "make",
    [
        lambda: crossmae_model(depth=1, decoder_depth=1),
        pytest.param(lambda: randomized(MAE(depth=1, decoder_depth=1)), marks=pytest.mark.slow),
    ],
)
def test_compiled_into_one_graph(make):
    model = crossmae.accelerate(make())
    torch._dynamo.reset()
    expected = call(model, images())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = call(compiled, images())
    assert_alike(found, expected)
    ours = gradients(model, found[0])
    for name, gradient in gradients(model, call(model, images())[0]).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)
    assert_alike(call(compiled, images(5)), call(model, images(5)))


@pytest.mark.parametrize("first", ["accelerate", "compile"])
def test_compiled_in_place(first):
    plain = crossmae_model(depth=1, decoder_depth=1)
    model = copy.deepcopy(plain)
    torch._dynamo.reset()
    for step in ("accelerate", "compile") if first == "accelerate" else ("compile", "accelerate"):
        crossmae.accelerate(model) if step == "accelerate" else model.compile(backend="eager")
    assert_alike(call(model, images()), call(plain, images()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's attention runs image by image
def test_an_image_at_a_time_by_vmap():
    """Gradients of each image, as for differential privacy: with the same masks they are those of a batch of one."""
    plain = crossmae_model(depth=1, decoder_depth=1)
    model = crossmae.accelerate(copy.deepcopy(plain))

    def per_image(module):
        weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        loss = lambda weights, image: torch.func.functional_call(module, weights, (image[None],))  # noqa: E731
        torch.manual_seed(3)
        return torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(weights, images())

    expected = per_image(plain)
    for name, found in per_image(model).items():
        assert_alike((found,), (expected[name],), rtol=1e-3)


@pytest.mark.parametrize("made", [crossmae_model, mae_model])
def test_made_and_accelerated_in_inference_mode(made):
    with torch.inference_mode():
        model = made()
        expected = call(model, images())
        assert_alike(call(crossmae.accelerate(model), images()), expected)
    plain = made()
    with torch.inference_mode():
        model = crossmae.accelerate(copy.deepcopy(plain))
        assert_alike(call(model, images()), call(plain, images()))


def test_a_hook_that_would_not_be_called_is_refused_in_a_compiled_model_too():
    model = crossmae.accelerate(crossmae_model(depth=1))
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: None)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"attn.qkv has a hook"):
        torch.compile(model, backend="eager")(images())


@pytest.mark.parametrize("make", [crossmae_model, mae_model])
def test_exported(make):
    model = crossmae.accelerate(make())
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=False)
    for size in (3, 5):
        assert_alike(call(program.module(), images(size)), call(model, images(size)))


def test_other_settings_of_an_accelerated_model_are_the_model_s():
    model = crossmae.accelerate(CrossMAE(use_input=True))
    assert model.eval().training is False
    assert model.double()(images(dtype=torch.float64)).dtype == torch.float64
    swapped = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    loss = torch.func.functional_call(model, swapped, (images(dtype=torch.float64),))
    torch.testing.assert_close(loss, images(dtype=torch.float64).square().mean(), rtol=0.2, atol=0)
