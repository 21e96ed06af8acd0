"""Whole models through the kernels: gradients, launches, compilation, training. In the interpreter without a GPU."""

import copy
import functools
from collections import Counter
from contextlib import contextmanager

import pytest
import seeds
import torch
from operators import names_of_all_operators
from seeds import generator, seeded
from torch.profiler import ProfilerActivity, profile

import crossmae
from crossmae.masking import draw_masking, noise_length
from crossmae_kernels.runtime.dispatch import default_implementation, form_of
from crossmae_kernels.runtime.interpreter import teach
from crossmae_kernels.testing import assert_within_budget, budgets

# Wide enough for matrix products in tiles, small enough for the interpreter.
SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "encoder_width": 32,
    "encoder_heads": 2,
    "encoder_depth": 2,
    "decoder_width": 32,
    "decoder_heads": 2,
    "decoder_depth": 2,
}


def small_model(**overrides):
    """Weights, biases and norms all random."""
    torch.manual_seed(seeded())
    model = crossmae.create_model("crossmae_vit_tiny_patch4", **{**SMALL, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model, images, noise, impl, autocast=None):
    """Prediction, loss and the gradient of every parameter."""
    model.zero_grad()
    device = images.device.type
    with default_implementation(impl), torch.autocast(device, autocast, enabled=autocast is not None):
        out = model(images, noise=noise)
    # The loss's gradient and another one, large enough for float16.
    slope = torch.linspace(-1, 1, out.prediction.shape[-1], device=device)
    (64 * (out.loss + (out.prediction * slope).mean())).backward()
    return {"prediction": out.prediction, "loss": out.loss} | {
        name: p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def images_and_noise(device):
    images = torch.randn(2, 3, 32, 32, generator=generator(1)).half().float().to(device)
    return images, torch.rand(2, 16, generator=generator(2)).to(device)


@pytest.fixture
def problem(device):
    return images_and_noise(device)


@functools.cache
def expectation(seed, device, residual, dtype):
    """What is right, and the budget, of the small model under autocast: whatever becomes of hidden layers."""
    model, (images, noise) = small_model(residual=residual).to(device), images_and_noise(device)
    exact = gradients(copy.deepcopy(model).double(), images.double(), noise, "reference")
    return exact, budgets(lambda: gradients(model, images, noise, "reference", dtype), exact)


def judge(problem, device, hidden="recompute", residual="float32", dtype=torch.bfloat16):
    """Prediction, loss and the gradient of every parameter within the budget."""
    model = small_model(hidden_layer=hidden, residual=residual).to(device)
    found = gradients(model, *problem, "triton", dtype)
    assert_within_budget(found, *expectation(seeds.current, device, residual, dtype))


@pytest.mark.budget
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("hidden", "residual"), [("recompute", "float32"), ("save", "autocast")])
def test_gradients_of_the_whole_model_under_autocast_keep_to_the_budget(problem, device, dtype, hidden, residual):
    judge(problem, device, hidden, residual, dtype)


@pytest.mark.budget
@pytest.mark.parametrize("form", ["single", "tiled", "library"])
def test_every_form_of_the_mlp_keeps_to_the_budget_in_a_model(problem, device, form):
    with form_of("mlp", form):
        judge(problem, device)


@pytest.mark.budget
def test_habits_of_other_models_keep_to_the_budget(device):
    """Of birder's, stable-pretraining's and Pixio's, all in one."""
    habits = {"final_norm": True, "last_mix_norm": False, "pixel_order": "chw", "decoder_norm_eps": 1e-5}
    habits |= {"class_tokens": 8, "no_embed_class": False, "pos_embed": "learn", "decoder_pos_embed": "learn"}
    model = small_model(patch_size=(4, 8), encoder_depth=1, **habits).to(device)
    images, noise = images_and_noise(device)
    noise = torch.cat([noise, 1 - noise], dim=1)
    exact = gradients(copy.deepcopy(model).double(), images.double(), noise, "reference")
    limits = budgets(lambda: gradients(model, images, noise, "reference", torch.bfloat16), exact)
    assert_within_budget(gradients(model, images, noise, "triton", torch.bfloat16), exact, limits)


@pytest.mark.parametrize(
    ("depth", "sums"),
    [
        # What the residual and the branch around attention send back.
        ("decoder_depth", 1),
        # And what the decoder sends to the feature map.
        ("encoder_depth", 2),
    ],
)
def test_operators_of_a_block_and_nothing_between_them(problem, device, depth, sums):
    """One for each of its four steps, in either direction.

    Nothing is copied, concatenated or transposed on the way from one to the next.
    """
    images, noise = problem
    counts = {}
    for blocks in (1, 3):
        model = small_model(**{depth: blocks}).to(device)
        with default_implementation("triton"):
            with names_of_all_operators() as forward:
                loss = model(images, noise=noise).loss
            with names_of_all_operators() as backward:
                loss.backward()
        counts[blocks] = Counter(forward), Counter(backward)
    steps = dict.fromkeys(("norm_linear", "cross_attention", "linear_residual", "mlp"), 1)
    for deep, shallow, suffix in zip(counts[3], counts[1], ("", "_backward"), strict=True):
        per_block = {name: (deep[name] - shallow[name]) / 2 for name in deep if deep[name] != shallow[name]}
        expected = {f"crossmae_kernels::{step}{suffix}": count for step, count in steps.items()}
        assert per_block == expected | ({"aten::add.Tensor": sums} if suffix else {})


# The library's products, and sums over rows.
PRODUCTS_AND_SUMS = ("aten::addmm", "aten::baddbmm", "aten::bmm", "aten::mm", "aten::sum")
CAST = "aten::_to_copy"


FORWARD = Counter({"normalize_kernel": 2, "short_forward_kernel": 1, "gemm_kernel": 3, "aten::addmm": 1})
BACKWARD = Counter(
    {
        "normalize_backward_kernel": 2,
        "hidden_backward_kernel": 1,
        "short_backward_kernel": 1,
        "column_sums_kernel": 2,
        "totals_kernel": 2,
        "aten::mm": 9,
        # Of the queries' bias.
        "aten::sum": 1,
    }
)


@pytest.fixture
def counts(interpreter_asked_for, monkeypatch):
    """A block whose launches, products, sums and casts are counted."""
    from triton.runtime.interpreter import GridExecutor

    teach()  # which replaces what is counted here
    launched = Counter()
    launch = GridExecutor.__call__

    def counted(self, *arguments, **others):
        launched[self.fn.__name__] += 1
        return launch(self, *arguments, **others)

    @contextmanager
    def counts():
        launched.clear()
        found = Counter()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            yield found
        found.update(launched)
        found.update(event.name for event in profiler.events() if event.name in (*PRODUCTS_AND_SUMS, CAST))

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    return counts


def launches_of(counts, problem, dtype=torch.float16, **overrides):
    """Of a forward and of a backward pass."""
    images, noise = problem
    model = small_model(**overrides)
    with default_implementation("triton"), form_of("mlp", "tiled"):
        with counts() as forward, torch.autocast("cpu", dtype):
            loss = model(images, noise=noise).loss
        with counts() as backward:
            loss.backward()
    return forward, backward


def test_launches_per_block(counts, problem):
    """docs/design.md names these numbers."""
    passes = {depth: launches_of(counts, problem, decoder_depth=depth) for depth in (1, 2, 3)}
    forward, backward = (deep - shallow for deep, shallow in zip(passes[3], passes[2], strict=True))
    assert forward == FORWARD
    assert backward == BACKWARD
    # The first block gathers from a table, whose gradient is a segmented sum: of its queries, and of its residual.
    first = passes[1][1] - (passes[2][1] - passes[1][1])
    assert first["segmented_sum_kernel"] == 2


@pytest.mark.parametrize("options", [{}, {"residual": "autocast", "hidden_layer": "save"}], ids=["default", "recipes"])
@pytest.mark.parametrize("depth", ["decoder_depth", "encoder_depth"])
def test_launches_per_block_in_bfloat16_with_the_recipes_options_and_of_the_encoder(counts, problem, depth, options):
    """The options change what kernels read and write, not how many there are."""
    deep, shallow = (launches_of(counts, problem, torch.bfloat16, **options, **{depth: blocks}) for blocks in (3, 2))
    forward, backward = (more - fewer for more, fewer in zip(deep, shallow, strict=True))
    if depth == "encoder_depth":
        # Its norms are folded block by block, and two weights cast. It lacks the products for keys and values.
        assert forward == FORWARD + Counter({"fold_forward_kernel": 2, CAST: 2})
        of_block = Counter({"fold_backward_kernel": 2, CAST: 3, "aten::sum": 2})
        assert backward == BACKWARD - Counter({"aten::mm": 2}) + of_block
    else:
        assert forward == FORWARD
        assert backward == BACKWARD


@pytest.mark.parametrize("overrides", [{}, {"gradient_checkpointing": True}, {"decoder_self_attention": True}], ids=str)
def test_a_bias_of_keys_has_a_gradient_of_exactly_zero_and_all_others_are_the_reference_s(problem, device, overrides):
    model = small_model(encoder_depth=1, **overrides).to(device)
    found = []
    for impl in ("triton", "reference"):
        with default_implementation(impl):  # what is computed again, too
            found.append(gradients(model, *problem, impl))
    ours, theirs = found
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)
        if name.endswith("cross_attn.kv.bias"):
            keys, values = gradient.chunk(2)
            assert not keys.any()
            assert values.all()


def test_masks_that_have_a_shape(device):
    images, _ = images_and_noise(device)
    model = small_model().to(device)
    noise = torch.rand(2, noise_length("block", 16), generator=generator(3)).to(device)
    masking = draw_masking("block", (4, 4), 0.75, 0.5, noise)
    found = []
    for impl in ("triton", "reference"):
        model.zero_grad()
        with default_implementation(impl):
            model(images, masking=masking).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["crossmae_vit_tiny_patch4", pytest.param("mae_vit_tiny_patch4", marks=pytest.mark.slow)]
)
def test_whole_model_compiles_into_one_graph(problem, device, name):
    torch.manual_seed(0)
    model = crossmae.create_model(name, **{**SMALL, "encoder_depth": 1}).to(device)
    images, noise = problem
    torch._dynamo.reset()
    backend = "aot_eager" if device == "cpu" else "inductor"
    with default_implementation("triton"):
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        compiled(images, noise=noise).loss.backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(images, noise=noise).loss.backward()
    for ours, theirs in zip(found, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hundred_steps_of_training_follow_the_reference(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    curves = {}
    for impl in ("reference", "triton"):
        torch.manual_seed(0)
        model = crossmae.create_model("crossmae_vit_tiny_patch4").cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        generator = torch.Generator("cuda").manual_seed(0)
        # Smooth pictures, which can be learnt.
        pictures = torch.nn.functional.interpolate(
            torch.randn(256, 3, 5, 5, device="cuda", generator=generator), size=32, mode="bicubic"
        )
        losses = []
        for step in range(100):
            with default_implementation(impl), torch.autocast("cuda", dtype):
                loss = model(pictures[(step % 2) * 128 :][:128], generator=generator).loss
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
        curves[impl] = torch.stack(losses)
    reference, kernels = curves.values()
    assert reference[-10:].mean() < 0.8 * reference[:10].mean()
    torch.testing.assert_close(kernels, reference, rtol=0.02, atol=0)


def test_graphs_need_a_cuda_device():
    with pytest.raises(ValueError, match="sample must be on a CUDA device, got cpu"):
        crossmae.graphed(small_model(), torch.randn(2, 3, 32, 32))


@pytest.mark.gpu
def test_a_captured_step_equals_an_eager_one(problem, device):
    if device != "cuda":
        pytest.skip("no CUDA device")
    images, noise = problem
    model = small_model().to(device)
    step = crossmae.graphed(model, images, noise=noise)
    other = torch.randn_like(images)
    with pytest.raises(ValueError, match="like the sample"):
        step(other[:1])
    loss = step(other).loss.clone()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    exact = model(other, noise=noise).loss
    exact.backward()
    assert torch.equal(loss, exact)
    for ours, theirs in zip(found, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs)
