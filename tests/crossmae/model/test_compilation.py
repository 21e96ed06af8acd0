"""Compiled models do what eager ones do, in as few graphs as PyTorch can do with."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

import crossmae
from crossmae.masking import Masking, block_masking, grid_masking, mask_counts, random_masking
from crossmae.reconstruction import reconstruction_columns
from crossmae_kernels.runtime.dispatch import default_implementation

CROSS, MAE = "crossmae_vit_tiny_patch4", "mae_vit_tiny_patch4"
STATISTICS = {"pixel_mean": (0.2, 0.5, 0.7), "pixel_std": (0.1, 0.3, 0.2)}


@pytest.fixture
def impl(request):
    """Who serves all calls of a test."""
    if request.param == "triton":
        request.getfixturevalue("interpreter_asked_for")
    with default_implementation(request.param):
        yield request.param


def tiny_model(name=CROSS, **overrides):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "encoder_depth": 1, "decoder_depth": 1}
    widths = {"encoder_width": 16, "encoder_heads": 2, "decoder_width": 16, "decoder_heads": 2}
    return crossmae.create_model(name, **{**sizes, **widths, **overrides})


def pictures(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (batch, 3, 16, 16), dtype=dtype, generator=generator)
    return torch.randn(batch, 3, 16, 16, generator=generator)


def graphs_of(function, calls, backend="eager", **options):
    """How many graphs there are after each of ``calls``, which must give what they give eagerly.

    A call makes its arguments anew: a generator is to stand where it stood.
    """
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, **{"fullgraph": True, **options})
    counts = []
    for arguments in calls:
        results = []
        for called in (compiled, function):
            torch.manual_seed(0)
            results.append(tree_leaves(called(*arguments())))
        torch.testing.assert_close(*results, equal_nan=True)
        counts.append(counter.frame_count)
    return counts


BATCHES = [lambda b=b: (pictures(b),) for b in (4, 3, 5)]


@pytest.mark.parametrize(
    ("name", "overrides", "impl"),
    [
        (CROSS, {}, "triton"),
        (
            CROSS,
            {"decoder_self_attention": True, "feature_maps": None, "drop_path": 0.5, "encoder_depth": 2},
            "reference",
        ),
        (MAE, {}, "reference"),
    ],
    indirect=["impl"],
)
def test_one_graph_for_the_first_batch_size_and_one_for_all_others(name, overrides, impl):
    assert graphs_of(tiny_model(name, **overrides), BATCHES) == [1, 2, 2]


@pytest.mark.slow
def test_one_graph_for_all_batch_sizes_if_they_are_said_to_change():
    assert graphs_of(tiny_model(), BATCHES, dynamic=True, fullgraph=False) == [1, 1, 1]


def test_bytes_one_image_and_a_graph_for_each_batch_size():
    calls = [lambda b=b: (pictures(b, torch.uint8),) for b in (3, 1, 3)]
    assert graphs_of(tiny_model(**STATISTICS), calls, dynamic=False) == [1, 2, 2]


def test_an_empty_batch_is_refused_as_in_eager_code():
    with pytest.raises(ValueError, match="images must hold at least one image, got none"):
        torch.compile(tiny_model(), backend="eager")(pictures(2)[:0])
    # The compiler would not look at what raised again.
    torch._dynamo.reset()


@pytest.mark.parametrize("impl", ["triton"], indirect=True)
def test_features_of_any_batch(impl):
    assert graphs_of(tiny_model().eval().encode, BATCHES) == [1, 2, 2]


@pytest.mark.parametrize(("name", "rounding"), [(CROSS, "exact"), pytest.param(MAE, "release", marks=pytest.mark.slow)])
def test_a_graph_for_each_pair_of_ratios_and_no_more(name, rounding):
    model = tiny_model(name)

    def call(images, ratio):
        return model(images, ratio, rounding=rounding)

    calls = [lambda r=r, b=b: (pictures(b), r) for b, r in enumerate((0.75, 0.7, 0.75, 0.7), start=2)]
    assert graphs_of(call, calls, dynamic=True) == [1, 2, 2, 2]


@pytest.mark.parametrize("rounding", ["exact", "release"])
def test_counts_in_compiled_code_are_exact(rounding):
    """Ratios at which a product of floats falls on the wrong side of a whole number or of a half."""
    ratios = [(0.8, 0.8), (0.9, 0.25), (0.58, 0.29), (0.7, 0.57)]

    def call(x, *arguments):
        visible, predicted = mask_counts(*arguments, rounding)
        return x.new_ones(visible), x.new_ones(predicted)

    for patches in (225, 196, 50):
        calls = [lambda p=patches, r=r: (torch.ones(1), p, *r) for r in ratios]
        assert graphs_of(call, calls, backend="aot_eager")[-1] <= len(ratios) + 1


def test_sizes_of_masks_from_outside_become_dynamic_when_they_change():
    model = tiny_model()

    def call(images, masking):
        return model(images, masking=masking)

    # First the batch, then how many patches are visible and predicted.
    drawn = [(4, 0.75, 0.25), (3, 0.75, 0.25), (4, 0.6, 0.5), (6, 0.5, 0.4), (3, 0.9, 0.8)]
    calls = [lambda b=b, r=r: (pictures(b), random_masking(b, 16, *r)) for b, *r in drawn]
    assert graphs_of(call, calls) == [1, 2, 3, 3, 3]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_graph_for_each_generator_which_draws_as_in_eager_code(backend, fullgraph):
    generators = [torch.Generator(), torch.Generator()]

    def call(x, generator):
        return [random_masking(x.shape[0], 16, generator=generator) for _ in range(2)]

    drawn = [(0, 4), (0, 3), (0, 5), (1, 3), (1, 4)]
    calls = [lambda n=n, b=b: (torch.ones(b), generators[n].manual_seed(b)) for n, b in drawn]
    counts = graphs_of(call, calls, backend=backend, fullgraph=fullgraph)
    assert counts[:3] == [1, 2, 2]
    assert counts[-1] == 3


@pytest.mark.slow
def test_noise_of_a_generator_in_a_model():
    model, generator = tiny_model(), torch.Generator()

    def call(images, generator):
        return model(images, generator=generator)

    assert graphs_of(call, [lambda b=b: (pictures(b), generator.manual_seed(b)) for b in (4, 3)]) == [1, 2]


def test_masks_of_a_pattern():
    def call(x, ratio):
        return grid_masking(x.shape[0], (4, 5), 2, ratio), block_masking(x.shape[0], (4, 5), 0.7, ratio)

    calls = [lambda b=b, r=r: (torch.ones(b), r) for b, r in ((4, 0.25), (3, 0.25), (3, 0.5), (5, 0.5))]
    assert graphs_of(call, calls) == [1, 2, 3, 3]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_mask_of_ones_own_is_checked_on_the_device(backend):
    def call(visible_ids, predicted_ids):
        return Masking(visible_ids, predicted_ids).checked(16)

    calls = [lambda b=b: tree_leaves(random_masking(b, 16))[:2] for b in (4, 3)]
    assert graphs_of(call, calls, backend=backend) == [1, 2]
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    visible, predicted = calls[0]()
    for wrong in ((visible - 16, predicted), (visible, predicted + 16), (predicted, predicted)):
        with pytest.raises(RuntimeError, match=r"must lie in \[0, 16\), and no image may name a patch twice"):
            compiled(*wrong)


@pytest.mark.filterwarnings("ignore:statistics='true':UserWarning")
@pytest.mark.parametrize(
    ("name", "statistics"), [(CROSS, "true"), pytest.param(MAE, "visible", marks=pytest.mark.slow)]
)
def test_reconstructions(name, statistics):
    model = tiny_model(name, decoder_depth=2).eval()

    def columns(images, output):
        return reconstruction_columns(model, images, output, statistics, blocks=True)

    with torch.no_grad():
        calls = [lambda b=b: (pictures(b), model(pictures(b))) for b in (4, 3)]
        assert graphs_of(columns, calls) == [1, 2]


@pytest.mark.slow
def test_gradients_of_blocks_that_are_skipped_and_computed_again():
    model = tiny_model(gradient_checkpointing=True, drop_path=0.5, encoder_depth=2)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in (4, 3):
        gradients = []
        for called in (compiled, model):
            model.zero_grad()
            torch.manual_seed(0)
            called(pictures(batch)).loss.backward()
            gradients.append([p.grad for p in model.parameters()])
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 2


class Calls(torch.nn.Module):
    """A model as the module that is exported: what it is called with, and how."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *arguments):
        return self.call(self.model, *arguments)


def features_for_decoder(model, batch):
    masking = random_masking(batch, 16, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        maps = model.encoder(pictures(batch), masking.visible_ids)
    return (*maps, masking.visible_ids, masking.predicted_ids)


EXPORTED = {
    "encode": (lambda m, images: m.encode(images), lambda m, b: (pictures(b),)),
    "forward": (lambda m, images: m(images), lambda m, b: (pictures(b),)),
    "noise": (lambda m, images, noise: m(images, noise=noise), lambda m, b: (pictures(b), torch.rand(b, 16))),
    "masking": (
        lambda m, images, v, p: m(images, masking=Masking(v, p)),
        lambda m, b: (pictures(b), *tree_leaves(random_masking(b, 16))[:2]),
    ),
    "decoder": (lambda m, *a: m.decoder(list(a[:-2]), Masking(*a[-2:])), features_for_decoder),
}


@pytest.mark.parametrize(
    ("name", "what", "strict"),
    [
        (CROSS, "encode", True),
        (CROSS, "forward", False),
        (CROSS, "decoder", True),
        *(
            pytest.param(CROSS, what, strict, marks=pytest.mark.slow)
            for what, strict in (("encode", False), ("forward", True), ("decoder", False))
        ),
        (CROSS, "noise", False),
        (CROSS, "masking", True),
        (MAE, "forward", False),
    ],
)
def test_exported_programs_take_any_batch(name, what, strict):
    model, (call, arguments) = tiny_model(name).eval(), EXPORTED[what]
    module, example = Calls(model, call), arguments(model, 2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, example, dynamic_shapes=((({0: batch},) * len(example)),), strict=strict)
    run = program.module()
    for other in (2, 5):
        given = arguments(model, other)
        torch.manual_seed(0)
        found = run(*given)
        torch.manual_seed(0)
        torch.testing.assert_close(tree_leaves(found), tree_leaves(module(*given)))


def test_results_of_an_exported_model_are_its_own():
    program = torch.export.export(tiny_model(), (pictures(2),), strict=False)
    assert isinstance(program.module()(pictures(2)), crossmae.Output)


def test_a_generator_is_not_exported():
    module = Calls(tiny_model(), lambda m, images: m(images, generator=torch.default_generator))
    with pytest.raises(ValueError, match="a generator cannot be exported; pass noise"):
        torch.export.export(module, (pictures(2),), strict=False)
