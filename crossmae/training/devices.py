"""Devices and processes, on Lightning Fabric: launch, precision, DDP, and FSDP2 for models too large for a device."""

import os
import warnings
from typing import Any, Literal

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from lightning_fabric.strategies import Strategy as FabricStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from crossmae.model import MaskedAutoencoder
from crossmae.training.plan import Plan
from crossmae.training.recipe import Execution, Options, Precision


class Autocast(MixedPrecision):
    """Fabric's mixed precision, without converting inputs.

    Rounded pixels would make wrong targets, and rounded noise has ties: masks would depend on the precision.
    """

    def convert_input(self, data: Any) -> Any:
        """Unchanged."""
        return data


def make_fabric(plan: Plan, options: Options) -> Fabric:
    """Launch one process per device; under torchrun and SLURM, use the processes they started.

    float64 applies to the model only (Fabric's own float64 setting refuses sharding).

    Raises:
        ValueError: if precision, strategy and devices cannot be combined.
    """
    kind = device_kind()
    precision, config = plan.recipe.precision, plan.config
    if kind == "mps" and precision == "float64":
        raise ValueError("precision float64 is not available on Apple's GPU (MPS); use float32")
    if kind == "mps" and options.strategy != "auto":
        raise ValueError(f"strategy {options.strategy} needs several devices, but Apple's GPU (MPS) is one; use auto")
    if options.strategy == "fsdp" and precision == "float16":
        raise ValueError("float16 cannot be sharded (its loss scale is not shared); use bfloat16 or strategy=ddp")
    devices, nodes = _devices(options)
    # Encoder blocks after the last map that the decoder uses get no gradient, so DDP must look for unused parameters.
    unused = config.feature_maps is not None and config.feature_maps[-1] < config.encoder_depth
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(options, devices * nodes, unused),
        plugins=_precision(precision, kind),
    )


def launched(plan: Plan, options: Options) -> Fabric:
    """``make_fabric``, with its processes running, each ready to train even if it was forked.

    A forked process's first use of the number of threads remakes a pool, without a lock. Autograd starts a thread for
    each device, one for each of eight pretended GPUs once memory has been planned with fake tensors, and they would
    race for it (pytorch/pytorch#178535): 119 of 300 forked processes were aborted in their first backward pass.
    """
    fabric = make_fabric(plan, options)
    fabric.launch()
    torch.set_num_threads(torch.get_num_threads())
    return fabric


def device_kind() -> str:
    """This machine's best device type that Fabric and this package support: "cuda" (or ROCm), "mps" or "cpu"."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device is not None and device.type in ("cuda", "mps") else "cpu"


def _precision(precision: Precision, kind: str) -> list[Any]:
    """Autocast for 16 bits; float32 and float64 apply to the model's parameters only."""
    if precision in ("float32", "float64"):
        return []
    if precision == "float16" and kind == "cpu":
        raise ValueError("float16 needs an accelerator, and there is only a CPU; use bfloat16 or float32")
    return [Autocast("16-mixed" if precision == "float16" else "bf16-mixed", kind)]


def execution_on(device: torch.device, devices: int, asked_for: Execution) -> Execution:
    """Resolve execution ``auto`` for one of ``devices`` devices; any other value is returned unchanged."""
    if asked_for != "auto":
        return asked_for
    return "graphs" if device.type == "cuda" and devices == 1 else "eager"


def over_devices(fabric: Fabric, tensor: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """Mean or sum of a tensor over all devices; all must call it. Unlike Fabric's, it has no barrier."""
    if fabric.world_size == 1:
        return tensor
    reduced = tensor.clone()
    torch.distributed.all_reduce(reduced)
    return reduced / fabric.world_size if how == "mean" else reduced


def processes(options: Options) -> int:
    """The number of devices a run would use."""
    devices, nodes = _devices(options)
    return devices * nodes


def _devices(options: Options) -> tuple[int, int]:
    """Devices per host and number of hosts; under torchrun, those it started.

    Raises ValueError if the host has fewer; on a CPU any number of processes works.
    """
    local, world = (int(os.environ.get(name, 0)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    kind = device_kind()
    there = 1 if kind == "cpu" else torch.accelerator.device_count()
    devices = local or options.devices or there
    if kind != "cpu" and devices > there:
        raise ValueError(f"{devices} devices were requested, but this host has {there} ({kind})")
    return devices, world // local if local else 1


def _strategy(options: Options, processes: int, unused: bool) -> str | FabricStrategy:
    if options.strategy == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)
    if options.strategy == "ddp" or processes > 1:
        return DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=unused)
    return "auto"


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard the encoder block by block, but the decoder as a whole, as it projects all keys and values at once."""
    # The warning is for callers that write into a module's output; nothing here does.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    data_parallel = mesh["data_parallel"]
    for part in module.modules():
        if isinstance(part, MaskedAutoencoder):
            for block in part.encoder.blocks:
                fully_shard(block, mesh=data_parallel)
            if part.config.decoder is not None:
                fully_shard(part.decoder, mesh=data_parallel)
    fully_shard(module, mesh=data_parallel)
    return module
