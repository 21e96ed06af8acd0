"""Training steps of accelerated models in two processes: DDP, and FSDP2 in every order."""

import pytest
import torch
import torch.distributed as dist
from processes import run_as_torchrun_would
from releases import MAE, CrossMAE, randomized
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import crossmae

SETUPS = ("plain", "ddp", "accelerated, sharded", "sharded, accelerated", "sharded as one, accelerated")


def prepared(model, setup):
    """The model as a training script prepares it."""
    for step in setup.split(", "):
        if step == "accelerated" or step == "ddp":
            crossmae.accelerate(model)
        if step == "ddp":
            model = DistributedDataParallel(model)
        if step == "sharded":
            for block in (*model.blocks, *model.decoder_blocks):
                fully_shard(block)
        if step.startswith("sharded"):
            fully_shard(model)
    return model


def train(path):
    dist.init_process_group("gloo")
    found = {}
    for family, make in (("CrossMAE", lambda: CrossMAE(use_input=True, norm_pix_loss=True)), ("MAE", MAE)):
        for setup in SETUPS:
            torch.manual_seed(0)
            model = prepared(randomized(make()), setup)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            losses = []
            for step in range(3):
                torch.manual_seed(10 + step)
                out = model(torch.randn(4, 3, 32, 32))
                loss = out if isinstance(out, torch.Tensor) else out[0]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            found[family, setup] = losses
    if dist.get_rank() == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    path = tmp_path_factory.mktemp("losses") / "losses.pt"
    assert run_as_torchrun_would(2, train, str(path)) == [0, 0]
    return torch.load(path)


@pytest.mark.parametrize("setup", SETUPS[1:])
@pytest.mark.parametrize("family", ["CrossMAE", "MAE"])
def test_losses_are_those_of_the_plain_model(losses, family, setup):
    assert losses[family, setup] == pytest.approx(losses[family, "plain"], rel=1e-4)
    assert losses[family, setup][-1] < losses[family, setup][0]


def test_shards_of_a_part_alone_are_refused(monkeypatch):
    model = randomized(CrossMAE(use_input=True))
    monkeypatch.setattr(torch.nn.Linear, "set_reshard_after_forward", None, raising=False)
    with pytest.raises(ValueError, match=r"patch_embed|blocks.0.attn.qkv is sharded, but the model is not"):
        crossmae.accelerate(model)
