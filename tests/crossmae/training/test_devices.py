"""What a device is given: inputs as they were read, an optimizer that goes with the precision."""

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from pretraining import into, small, stepper_of
from processes import start
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmae.masking import random_masking
from crossmae.training.data.batches import Batch
from crossmae.training.devices import execution_on, launched, make_fabric, processes
from crossmae.training.plan import make_plan


def fabric_of(recipe, options):
    return make_fabric(make_plan(recipe, 1000, 1), options)


def test_execution_auto_is_graphs_on_a_single_nvidia_gpu():
    cuda, others = torch.device("cuda"), (torch.device("cpu"), torch.device("mps"))
    assert execution_on(cuda, 1, "auto") == "graphs"
    assert {execution_on(cuda, 8, "auto"), *(execution_on(other, 1, "auto") for other in others)} == {"eager"}
    assert [execution_on(cuda, 1, named) for named in ("eager", "compile", "graphs")] == ["eager", "compile", "graphs"]


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float64"])
def test_images_and_noise_are_not_rounded_on_their_way_to_the_model(tmp_path, precision):
    """Rounded images are wrong targets too, and rounded noise has ties: another mask."""
    data = replace(small().data, mean=(1.0,), std=(0.001,))
    stepper = stepper_of(small(precision=precision, data=data), into(tmp_path))
    config = stepper.model.config
    images = 1 + torch.rand(2, config.channels, *config.image_size) / 1000
    # Distinct in float32 alone.
    noise = 1 + torch.rand(2, config.patches).argsort(dim=1) * torch.finfo(torch.float32).eps
    seen = []

    def see(module, inputs):
        seen.extend((*inputs, torch.is_autocast_enabled("cpu")))

    stepper.module.register_forward_pre_hook(see)
    loss = stepper.train_step(iter([Batch(images, noise, torch.zeros(2), ())]))
    mask = random_masking(2, config.patches, 0.75, 0.25, noise=noise)
    for found, expected in zip(seen, (images, mask.visible_ids, mask.predicted_ids), strict=False):
        assert torch.equal(found, expected)
    assert seen[3] == (precision == "bfloat16")
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("settings", "fused"),
    [({"clip_norm": 1.0}, False), ({}, True), ({"clip_norm": 1.0, "precision": "bfloat16"}, True)],
)
def test_gradients_that_are_to_be_clipped_are_unscaled_first(tmp_path, settings, fused):
    """A fused optimizer takes the loss scale out itself, too late for clipping."""
    recipe = small(**{"precision": "float16", **settings})
    stepper = stepper_of(recipe, into(tmp_path), fabric_of(small(), into(tmp_path)))
    assert stepper.optimizer.defaults["fused"] is fused


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_float16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float16 needs an accelerator"):
        fabric_of(small(precision="float16"), into(tmp_path))


def test_seeds_of_drop_path_may_be_large(tmp_path):
    recipe = small(seed=2**62, model_options={**small().model_options, "drop_path": 0.5})
    stepper = stepper_of(recipe, into(tmp_path))
    with contextlib.suppress(StopIteration):
        stepper.train_step(iter(()))
    assert 0 <= torch.initial_seed() < 2**63


def a_host_with(monkeypatch, kind, count=1):
    """A host whose PyTorch finds devices of a kind."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"precision": "float64"}, {}, "precision float64 is not available on Apple's GPU"),
        ({}, {"strategy": "ddp"}, "strategy ddp needs several devices"),
        ({}, {"strategy": "fsdp"}, "strategy fsdp needs several devices"),
        ({}, {"devices": 2}, "2 devices were requested, but this host has 1"),
    ],
)
def test_what_apples_gpu_cannot_do_is_refused(settings, options, message, tmp_path, monkeypatch):
    a_host_with(monkeypatch, "mps")
    with pytest.raises(ValueError, match=message):
        fabric_of(small(**settings), into(tmp_path, **options))


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(("precision", "plugin"), [("bfloat16", "bf16-mixed"), ("float32", None)])
def test_the_device_that_is_there_is_taken(kind, precision, plugin, tmp_path, monkeypatch):
    a_host_with(monkeypatch, kind)
    seen = {}
    monkeypatch.setattr("crossmae.training.devices.Fabric", lambda **arguments: seen.update(arguments))
    fabric_of(small(precision=precision), into(tmp_path))
    assert (seen["accelerator"], seen["devices"], seen["num_nodes"], seen["strategy"]) == (kind, 1, 1, "auto")
    assert [(plugin.precision, plugin.device) for plugin in seen["plugins"]] == ([(plugin, kind)] if plugin else [])


def test_a_device_that_fabric_does_not_know_is_no_cpu_in_disguise(tmp_path, monkeypatch):
    """An Intel GPU: counted as eight devices, it would be eight processes on the CPU, in the GPU's autocast."""
    a_host_with(monkeypatch, "xpu", count=8)
    assert processes(into(tmp_path)) == 1
    fabric = fabric_of(small(precision="bfloat16"), into(tmp_path))
    assert (fabric.device.type, fabric.strategy.precision.device) == ("cpu", "cpu")


def test_more_processes_than_devices_are_refused(tmp_path, monkeypatch):
    a_host_with(monkeypatch, "cuda", count=2)
    assert processes(into(tmp_path)) == 2
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    with pytest.raises(ValueError, match=r"3 devices were requested, but this host has 2 \(cuda\)"):
        processes(into(tmp_path))


def forks_take_a_backward_pass(plan, options):
    """After a plan with fake tensors, PyTorch starts eight threads for them, all at once."""
    with FakeTensorMode():
        torch.empty(1)
    torch.get_num_threads()  # or PyTorch makes the child's pool as it forks
    for _ in range(30):
        if not (child := os.fork()):
            launched(plan, options)
            torch.ones(3, requires_grad=True).sum().backward()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_may_train(tmp_path):
    process = start(forks_take_a_backward_pass, make_plan(small(), 1000, 1), into(tmp_path))
    process.join()
    assert process.exitcode == 0
