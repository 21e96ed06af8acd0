"""What cannot be honoured is refused by name, before anything is changed or at the next call."""

import copy
from functools import partial

import clients
import numpy as np
import pytest
import torch
from accelerated import call, crossmae_model, images
from golden_cases import Case
from releases import MAE, Attention, Block, CrossMAE, randomized
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import crossmae


def change(path, **attributes):
    def apply(model):
        for name, value in attributes.items():
            setattr(model.get_submodule(path), name, value)

    return apply


def hook(path):
    return lambda model: model.get_submodule(path).register_forward_hook(lambda *_: None)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DropPath(nn.Module):
    """Stochastic depth whose rates come from a ``torch.linspace``."""

    def __init__(self, rate):
        super().__init__()
        self.drop_prob = rate

    def forward(self, x):
        keep = torch.rand(len(x), 1, 1) >= self.drop_prob
        return x * keep / (1 - self.drop_prob) if self.training and self.drop_prob else x


CHANGES = [
    (hook("blocks.1.attn"), r"blocks.1.attn has a hook"),
    (hook("decoder_blocks.0.mlp.act"), r"decoder_blocks.0.mlp.act has a hook"),
    (hook("decoder_pred"), r"decoder_pred has a hook"),
    (change("blocks.0.attn.attn_drop", p=0.1), r"blocks.0.attn.attn_drop drops with probability 0.1; only 0 is supp"),
    (change("decoder_blocks.1.mlp.drop", p=0.5), r"decoder_blocks.1.mlp.drop drops with probability 0.5"),
    (change("blocks.2", drop_path=nn.Dropout1d(0.2)), r"blocks.2.drop_path drops with probability 0.2"),
    (change("blocks.0.mlp.drop", p=torch.tensor(0.5)), r"blocks.0.mlp.drop drops with probability 0.5"),
    (change("blocks.1.attn.attn_drop", p=np.float32(0.25)), r"blocks.1.attn.attn_drop drops with probability 0.25"),
    (change("blocks.2", drop_path=DropPath(torch.tensor(0.125))), r"blocks.2.drop_path drops with probability 0.125"),
    (change("blocks.2.mlp", act=nn.GELU("tanh")), r"blocks.2.mlp.act must be exact GELU, got approximate='tanh'"),
    (change("blocks.2.mlp", act=nn.SiLU()), r"blocks.2.mlp.act \(SiLU\) is unknown"),
    (change("blocks.0", extra=nn.Linear(3, 3)), r"blocks.0.extra \(Linear\) is unknown"),
    (change("", head=nn.Linear(3, 3)), r"head \(Linear\) is unknown"),
    (change("decoder_blocks.0.mlp", fc1=Doubled(16, 64)), r"fc1 must compute like nn.Linear, got .*Doubled"),
    (
        change("blocks.0", norm1=nn.RMSNorm(32)),
        r"blocks.0.norm1 must compute like nn.LayerNorm, got torch.nn.modules.normalization.RMSNorm",
    ),
    (change("blocks.0.attn.proj", forward=lambda x: x), r"blocks.0.attn.proj has a forward of its own"),
    (change("blocks.0.attn", temperature=nn.Parameter(torch.ones(1))), r"attn has an unknown parameter, temp"),
]


@pytest.mark.parametrize(("apply", "message"), CHANGES)
def test_before_anything_is_changed(apply, message):
    model = crossmae_model()
    apply(model)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=rf"accelerate: CrossMAE is not supported: .*{message}"):
        crossmae.accelerate(model)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(("apply", "message"), CHANGES)
def test_at_the_next_call(apply, message):
    model = crossmae.accelerate(crossmae_model())
    apply(model)
    with pytest.raises(RuntimeError, match=rf"not supported in an accelerated model: .*{message}"):
        call(model, images())


def test_many_problems_are_five_and_a_count():
    model = randomized(CrossMAE(depth=9))
    for block in model.blocks:
        block.attn.proj_drop.p = 0.1
    with pytest.raises(ValueError, match=r"blocks.4.attn.proj_drop .*; and 4 more$") as caught:
        crossmae.accelerate(model)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 8}, r"num_heads=8 was given, but the model has 4 \(blocks.\*.attn.num_heads\)"),
        ({"decoder_num_heads": 4}, "decoder_num_heads=4 was given, but the model has 2"),
        ({"norm_pix_loss": False}, "norm_pix_loss=False was given, but the model has True"),
        ({"use_input": False}, "use_input=False was given, but the model has True"),
        ({"use_fm": [0, 1]}, r"use_fm=\(0, 1\) was given, but the model has \(0, 1, 2\)"),
        ({"img_size": 64}, r"img_size=\(64, 64\) was given, but the model has \(32, 32\)"),
        ({"patch_size": 16}, "patch_size=16 was given, but the model has 8"),
        ({"depth": 12}, "depth=12 was given, but the model has 3"),
        ({"embed_dim": 768, "mlp_ratio": 3}, "embed_dim=768 .* mlp_ratio=3 was given, but the model has 4.0"),
        ({"weight_fm": False}, "weight_fm=False was given, but the model has True"),
        ({"self_attn": True}, "self_attn=True was given, but the model has False"),
    ],
)
def test_arguments_that_contradict_the_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        crossmae.accelerate(crossmae_model(), **arguments)


def test_arguments_that_agree_are_welcome():
    model = crossmae_model()
    arguments = {"num_heads": 4, "use_fm": [-1], "img_size": [32, 32], "mlp_ratio": 4, "weight_fm": True}
    assert crossmae.accelerate(model, **arguments) is model


def test_what_the_model_does_not_tell_is_asked_for():
    class Untold(CrossMAE):
        """Its patch embedding does not say for which images."""

        def __init__(self, **arguments):
            super().__init__(**arguments)
            del self.patch_embed.img_size, self.patch_embed.grid_size

    with pytest.raises(ValueError, match=r"the model does not show img_size \(patch_embed.img_size\), pass img_size="):
        crossmae.accelerate(randomized(Untold(use_input=True)))
    model = crossmae.accelerate(randomized(Untold(use_input=True)), img_size=32)
    assert call(model, images())[0].isfinite()


def test_unknown_arguments_are_named():
    with pytest.raises(TypeError, match=r"accelerate: no argument width; choose from img_size, patch_size"):
        crossmae.accelerate(crossmae_model(), width=3)


def test_what_is_no_such_model():
    with pytest.raises(ValueError, match=r"Linear is not a CrossMAE or MAE .*: it has no cls_token.*; and \d+ more$"):
        crossmae.accelerate(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match="pass the model before wrapping it, got DataParallel, which holds it as module"
    ):
        crossmae.accelerate(nn.DataParallel(crossmae_model()))
    compiled = torch.compile(crossmae_model(), backend="eager")
    with pytest.raises(ValueError, match="before wrapping it, got OptimizedModule, which holds it as _orig_mod"):
        crossmae.accelerate(compiled)
    model = crossmae.accelerate(crossmae_model())
    with pytest.raises(ValueError, match="is already accelerated"):
        crossmae.accelerate(model)


class Otherwise(CrossMAE):
    """Nothing in its modules tells that it adds the class token's row of positions."""

    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75, vis=False):
        token = self.cls_token
        self.cls_token = nn.Parameter(token + self.pos_embed[:, :1])
        try:
            return super().forward(imgs, mask_ratio, kept_mask_ratio, vis)
        finally:
            self.cls_token = token


class Detaching(CrossMAE):
    """A frozen encoder, which no result shows."""

    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75, vis=False):
        hooks = [block.register_forward_hook(lambda *call: call[-1].detach()) for block in self.blocks]
        try:
            return super().forward(imgs, mask_ratio, kept_mask_ratio, vis)
        finally:
            for hook in hooks:
                hook.remove()


class Dropping(CrossMAE):
    """No module tells of its dropout, which does nothing in evaluation."""

    def target(self, images):
        return nn.functional.dropout(super().target(images), 0.3, self.training)


class Fixing(CrossMAE):
    """Masks that are no random ones, under an autocast that blurs the loss, which is all that it returns."""

    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().forward(imgs, mask_ratio, kept_mask_ratio)


class Clamping(CrossMAE):
    """The same for images of usual contrast."""

    def target(self, images):
        return super().target(images.clamp(-3, 3))


class Repeating(CrossMAE):
    """Blocks are computed again in the backward pass, by hand."""

    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75, vis=False):
        blocks = self.blocks
        self._modules["blocks"] = Checkpointed(blocks)
        try:
            return super().forward(imgs, mask_ratio, kept_mask_ratio, vis)
        finally:
            self._modules["blocks"] = blocks


class Checkpointed(nn.ModuleList):
    def __iter__(self):
        return iter([partial(checkpoint, block, use_reentrant=False) for block in super().__iter__()])


class Returning(CrossMAE):
    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75):
        return super().forward(imgs, mask_ratio, kept_mask_ratio), "fine"


class Needing(CrossMAE):
    def forward(self, imgs, labels, mask_ratio=0.75):
        return super().forward(imgs, mask_ratio)


class Without(CrossMAE):
    forward = nn.Module.forward


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Otherwise, r"the output of blocks.0 differs from ours by .* 1e-04 is allowed"),
        (Detaching, r"cls_token would get a gradient; the model's own forward detaches other tensors"),
        (Dropping, r"which comes closest to the (all )?targets?,|which comes closest to the loss,"),
        (Fixing, r"the output of blocks.0 differs from ours"),
        (Clamping, r"which comes closest to the loss, differs from ours"),
        (Repeating, r"calls blocks.0 2 times per step, but would call it 1 times \(checkpoint_wrapper"),
        (Returning, r"its result\[1\] is of <class 'str'>; supported are tensors, tuples, lists and dicts"),
        (
            Needing,
            r"Needing.forward must take images, mask_ratio with a number .*, got \(imgs, labels, mask_ratio",
        ),
        (Without, r"Without has no forward whose arguments and results could be kept"),
    ],
)
def test_a_forward_that_cannot_be_kept(kind, message):
    model = randomized(kind(use_input=kind is not Detaching, amp=torch.bfloat16 if kind is Fixing else None))
    model.eval()
    with pytest.raises(ValueError, match=message):
        crossmae.accelerate(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module.training for module in model.modules())


class Following(Attention):
    def forward(self, x):
        return 2 * super().forward(x)


class Something(nn.Identity):
    def forward(self, x):
        return x + 1


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            change("blocks.0", attn=Following(32, 4)),
            "blocks.0.attn was replaced by one with another forward, Following",
        ),
        (change("blocks.1", drop_path=Something()), r"blocks.1.drop_path \(Something\) is unknown"),
        (change("blocks.1.mlp", fc1=Called(32, 128)), r"blocks.1.mlp.fc1 has a forward of its own"),
        (change("blocks.0.attn", scale=1.0), r"blocks.0.attn.scale must be 0.353553, got 1"),
        (change("dec_norms.1", eps=0.5), r"dec_norms must have the same eps, got \[1e-06, 0.5\]"),
        (change("patch_embed.proj", stride=(4, 4)), r"patch_embed.proj must take adjacent patches, got stride"),
        (change("", target=lambda images: images), r"target was replaced in this instance"),
        (hook("blocks"), r"blocks has a hook"),
    ],
)
def test_what_comes_later_and_would_compute_otherwise(apply, message):
    model = crossmae.accelerate(crossmae_model())
    apply(model)
    with pytest.raises(RuntimeError, match=message):
        call(model, images())


class OtherBlock(Block):
    def forward(self, x):
        return 2 * super().forward(x)


class OtherModel(CrossMAE):
    def forward(self, imgs, mask_ratio=0.75):
        return 2 * super().forward(imgs, mask_ratio)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [("blocks.1", OtherBlock, r"blocks\.\d is of another class"), ("", OtherModel, "the model is of another class")],
)
@pytest.mark.parametrize("how", ["class", "method"])
def test_another_forward_of_a_class(path, kind, message, how, monkeypatch):
    model = crossmae.accelerate(crossmae_model())
    module = model.get_submodule(path)
    if how == "class":
        module.__class__ = kind
    else:
        monkeypatch.setattr(type(module), "forward", kind.forward)
    with pytest.raises(RuntimeError, match=rf"{message}, or its class has another forward"):
        call(model, images())


def test_images_elsewhere():
    """DataParallel's replicas share the forward, and with it the original's weights."""
    model = crossmae.accelerate(crossmae_model())
    with pytest.raises(ValueError, match=r"images are on meta, but the model on cpu \(.*DistributedDataParallel"):
        model(images().to("meta"))


def test_stochastic_depth_that_sets_in_later():
    model = crossmae_model()
    model.blocks[1].drop_path = DropPath(torch.tensor(0.0))
    crossmae.accelerate(model)
    call(model, images())
    model.blocks[1].drop_path.drop_prob = torch.tensor(0.5)
    with pytest.raises(RuntimeError, match=r"blocks.1.drop_path drops with probability 0.5; only 0 is supported"):
        call(model, images())


def test_a_forward_of_the_instance_is_kept():
    model = crossmae_model()
    model.forward = wrapper = partial(CrossMAE.forward, model)
    with pytest.raises(ValueError, match="this instance of the model has its own forward"):
        crossmae.accelerate(model)
    assert model.__dict__["forward"] is wrapper
    del model.forward
    crossmae.accelerate(model)
    model.forward = partial(model.forward)
    with pytest.raises(ValueError, match="forward was replaced after it was accelerated; undo that first"):
        crossmae.restore(model)


def test_weights_on_the_meta_device():
    with torch.device("meta"):
        model = CrossMAE()
    with pytest.raises(ValueError, match="on the meta device; load its weights first"):
        crossmae.accelerate(model)


@pytest.mark.parametrize("make", [CrossMAE, clients.hugging_face])
def test_fake_weights(make):
    with FakeTensorMode(), pytest.raises(ValueError, match="the model's tensors are fake; load its weights first"):
        crossmae.accelerate(make())


def test_decoder_blocks_that_have_no_mix_or_norm():
    model = crossmae.accelerate(crossmae_model())
    del model.decoder_blocks[-1]
    with pytest.raises(ValueError, match=r"decoder_blocks has 1 block, but dec_norms 2 norms and wfm.linear 2 m"):
        call(model, images())


@pytest.mark.parametrize("name", ["pos_embed", "decoder_pos_embed"])
def test_positions_of_another_grid(name):
    model = crossmae_model()
    setattr(model, name, nn.Parameter(torch.zeros(1, 65, getattr(model, name).shape[2])))
    with pytest.raises(ValueError, match=rf"images of \(32, 32\) have 16 patches, but {name} has 65 rows, not 17"):
        crossmae.accelerate(model)


class Extra(MAE):
    def forward(self, imgs, mask_ratio=0.75, noise=None):
        return super().forward(imgs, mask_ratio)


def test_calls():
    model = crossmae.accelerate(randomized(Extra()))
    with pytest.raises(TypeError, match=r"forward takes \(imgs, mask_ratio, noise\), got ratio="):
        model(images(), ratio=0.5)
    with pytest.raises(TypeError, match="forward needs imgs"):
        model()
    with pytest.raises(TypeError, match=r"got 4 arguments"):
        model(images(), 0.5, None, None)
    with pytest.raises(ValueError, match="noise is supported only at its default None"):
        model(images(), noise=torch.rand(3, 16))
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 3, 32, 32\), got \(3, 3, 16, 64\)"):
        model(images().reshape(3, 3, 16, 64))
    with pytest.raises(ValueError, match=r"ratios must be 0 < mask_ratio < 1, got mask_ratio=1\.5"):
        model(images(), mask_ratio=1.5)
    with pytest.raises(ValueError, match=r"ratios must be .* got mask_ratio=None"):
        model(images(), None)
    with pytest.raises(TypeError, match=r"images must be floating point, got torch\.uint8"):
        model((255 * torch.rand(2, 3, 32, 32)).byte())
    with pytest.raises(TypeError, match="forward got mask_ratio twice"):
        model(images(), 0.5, mask_ratio=0.5)
    with pytest.raises(
        ValueError, match=r"0 < kept_mask_ratio <= mask_ratio < 1, got mask_ratio=0\.5, kept_mask_r.*=0\.75"
    ):
        crossmae.accelerate(crossmae_model())(images(), 0.5)


def test_copies_of_what_was_refused_are_as_they_were():
    case = Case("mae")
    model = MAE(**case.arguments)
    model.load_state_dict(case.weights)
    expected = call(copy.deepcopy(model), case.images)[0]
    with pytest.raises(ValueError, match="was given"):
        crossmae.accelerate(model, depth=case.arguments["depth"] + 1)
    assert torch.equal(call(model, case.images)[0], expected)
