"""Models with a forward of their own around blocks that are known: blocks are replaced, the rest is called as ever."""

import copy
import io

import pytest
import torch
from releases import MAE, Block, DecoderBlock, Mixing, randomized
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import crossmae
from crossmae.acceleration.forward import ModuleForward


class Decoder(nn.Module):
    """A CrossMAE decoder as a module of its own, under stable-pretraining's names."""

    def __init__(self, width=16, depth=2, maps=2, norm=nn.LayerNorm):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", torch.randn(1, 16, width))
        self.feature_mixer = Mixing(maps, depth)
        self.context_norms = nn.ModuleList(norm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(DecoderBlock(width, width, 2, 2.0, norm, False) for _ in range(depth))
        self.norm, self.pred = norm(width), nn.Linear(width, 12)

    def forward(self, context, query_idx):
        mixes = self.feature_mixer(context)
        x = self.mask_token + self.pos_embed[0][query_idx]
        for block, norm, mix in zip(self.blocks, self.context_norms, mixes.unbind(-1), strict=True):
            x = block(x, norm(mix))
        return self.pred(self.norm(x))


class Model(nn.Module):
    """Takes tokens and the ids to predict, in an order that no other model has."""

    def __init__(self, decoder=Decoder):
        super().__init__()
        self.layers = nn.Sequential(*(Block(16, 2, 2.0, nn.LayerNorm) for _ in range(2)))
        self.decoder = decoder()

    def forward(self, ids, *, tokens):
        maps = []
        for block in self.layers:
            tokens = block(tokens)
            maps.append(tokens)
        return {"prediction": self.decoder(maps, ids), "ids": ids, "features": tokens}


IDS, TOKENS = torch.tensor([[0, 3, 15], [1, 2, 7]]), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def step(model):
    model.zero_grad()
    out = model(IDS, tokens=TOKENS)
    out["prediction"].square().sum().backward()
    return {**out, **{f"d {name}": p.grad.clone() for name, p in model.named_parameters()}}


def assert_alike(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def plain():
    return randomized(Model())


def test_results_and_gradients(plain):
    model = crossmae.accelerate(copy.deepcopy(plain))
    replaced = {n for n, m in model.named_modules() if isinstance(m.__dict__.get("forward"), ModuleForward)}
    assert replaced == {"layers.0", "layers.1", "decoder", "decoder.blocks.0", "decoder.blocks.1"}
    assert_alike(step(model), step(plain))


def test_copies_and_pickles_compute_with_their_own_weights(plain):
    model = crossmae.accelerate(copy.deepcopy(plain))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        before = step(model)
        assert torch.equal(step(other)["prediction"], before["prediction"])
        with torch.no_grad():
            other.layers[0].attn.qkv.weight.zero_()
            other.decoder.pred.weight.mul_(2)
        assert not torch.allclose(step(other)["prediction"], before["prediction"])
        assert torch.equal(step(model)["prediction"], before["prediction"])


@pytest.mark.parametrize("first", ["hooks", "acceleration"])
def test_hooks_on_parts_and_activation_checkpointing_are_honoured(plain, first):
    model = copy.deepcopy(plain)
    if first == "acceleration":
        crossmae.accelerate(model)
    seen = []
    for each, name in ((plain, "plain"), (model, "ours")):
        for path in ("layers.0", "decoder", "decoder.blocks.1"):
            part = each.get_submodule(path)
            part.register_forward_hook(
                lambda _, __, out, what=(name, path): seen.append((what, out.shape)) or 1.5 * out
            )
        each.decoder.blocks[0] = checkpoint_wrapper(each.decoder.blocks[0])
    if first == "hooks":
        crossmae.accelerate(model)
        seen.clear()
    assert_alike(step(model), step(plain))
    called = [[rest for (who, *rest), *_ in seen if who == name] for name in ("ours", "plain")]
    assert called[0] == called[1]
    assert len(called[0]) == 3


def test_what_comes_later_is_refused_or_used(plain):
    model = crossmae.accelerate(copy.deepcopy(plain))
    for each in (model, plain):
        each.layers[0].mlp.fc1.weight.data.mul_(2)
        each.decoder.context_norms[0].eps = each.decoder.context_norms[1].eps = 1e-2
    assert_alike(step(model), step(plain))
    model.decoder.context_norms[0].eps = 1e-3
    with pytest.raises(RuntimeError, match=r"decoder.context_norms must have the same eps, got \[0.001, 0.01\]; see"):
        step(model)
    handle = model.layers[1].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"layers.1.attn has a hook .*, which would not run"):
        step(model)
    handle.remove()
    with pytest.raises(TypeError, match=r"layers.0.forward takes \(x\), got 2 arguments"):
        model.layers[0](TOKENS, torch.ones(5, 5))
    with pytest.raises(TypeError, match=r"layers.0.forward takes \(x\), got 0 arguments, y="):
        model.layers[0](y=TOKENS)


class PostNorm(Block):
    """The same layers in another order."""

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Detaching(Decoder):
    def forward(self, context, query_idx):
        return super().forward([each.detach() for each in context], query_idx)


class Scaling(Decoder):
    def forward(self, context, query_idx):
        return super().forward(context, query_idx) * 1.001


class Marking(Decoder):
    def forward(self, context, query_idx):
        return super().forward(context, query_idx), "fine"


def with_other_block():
    model = Model()
    model.layers = nn.Sequential(PostNorm(16, 2, 2.0, nn.LayerNorm))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_other_block, r"the output of layers.0 differs from ours"),
        (lambda: Model(Detaching), r"input 0 would get a gradient; the model's own forward detaches something else"),
        (lambda: Model(Scaling), r"the output of decoder differs from ours by 1.0e-03"),
        (lambda: Model(Marking), r"decoder returns a tuple of 2, but would return a Tensor of 1"),
        (lambda: nn.ModuleDict({"inner": MAE()}), r"pass ModuleDict.inner, a model with a release's names"),
        (lambda: Model().to("meta"), r"on the meta device; load its weights first"),
    ],
)
def test_what_computes_otherwise_is_refused_and_left_alone(make, message):
    model = randomized(make()) if "meta" not in message else make()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        crossmae.accelerate(model)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_arguments_of_a_release_are_refused(plain):
    with pytest.raises(TypeError, match=r"num_heads describe a release's model, but Model shows everything itself"):
        crossmae.accelerate(plain, num_heads=2)


def test_a_model_that_is_sharded_already_is_refused(plain, monkeypatch):
    monkeypatch.setattr(Block, "set_reshard_after_forward", None, raising=False)
    with pytest.raises(ValueError, match=r"Model is already sharded; accelerate the model first, then call"):
        crossmae.accelerate(plain)


@pytest.mark.slow
def test_compiled_into_one_graph(plain):
    model = crossmae.accelerate(plain)
    expected = step(model)
    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(model, backend="eager", fullgraph=True)(IDS, tokens=TOKENS)["prediction"], expected["prediction"]
    )
