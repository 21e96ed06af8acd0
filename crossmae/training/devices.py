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
    """Fabric's mixed precision, but inputs are not converted.

    Rounded pixels would be wrong targets too, and rounded noise has ties: other masks in other precisions.
    """

    def convert_input(self, data: Any) -> Any:
        """Unchanged."""
        return data


def make_fabric(plan: Plan, options: Options) -> Fabric:
    """One process of the run for each device; under torchrun and SLURM, the processes they started.

    float64 concerns the model alone (Fabric's own setting would refuse to shard it).

    Raises:
        ValueError: if precision, strategy and devices cannot be combined.
    """
    kind = device_kind()
    precision, config = plan.recipe.precision, plan.config
    if kind == "mps" and precision == "float64":
        raise ValueError("precision float64 is not available on Apple's GPU (MPS); take float32")
    if kind == "mps" and options.strategy != "auto":
        raise ValueError(f"strategy {options.strategy} is for several devices, and Apple's GPU (MPS) is one; take auto")
    if options.strategy == "fsdp" and precision == "float16":
        raise ValueError("float16 cannot be sharded (its loss scale is not shared); take bfloat16 or strategy=ddp")
    devices, nodes = _devices(options)
    # Encoder blocks behind the last map that the decoder uses get no gradient, which DDP must be told.
    unused = config.feature_maps is not None and config.feature_maps[-1] < config.encoder_depth
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(options, devices * nodes, unused),
        plugins=_precision(precision, kind),
    )


def device_kind() -> str:
    """The type of devices here that Fabric and this package support: "cuda" (or ROCm), "mps" or "cpu"."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device is not None and device.type in ("cuda", "mps") else "cpu"


def _precision(precision: Precision, kind: str) -> list[Any]:
    """Autocast for 16 bits; float32 and float64 concern the model's parameters only."""
    if precision in ("float32", "float64"):
        return []
    if precision == "float16" and kind == "cpu":
        raise ValueError("float16 needs an accelerator, there is only a CPU; take bfloat16 or float32")
    return [Autocast("16-mixed" if precision == "float16" else "bf16-mixed", kind)]


def execution_on(device: torch.device, devices: int, asked_for: Execution) -> Execution:
    """What execution ``auto`` stands for on one of so many devices; any other stays."""
    if asked_for != "auto":
        return asked_for
    return "graphs" if device.type == "cuda" and devices == 1 else "eager"


def over_devices(fabric: Fabric, tensor: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """Mean or sum of a tensor over all devices; all must call, none waits. Fabric's own has a barrier."""
    if fabric.world_size == 1:
        return tensor
    reduced = tensor.clone()
    torch.distributed.all_reduce(reduced)
    return reduced / fabric.world_size if how == "mean" else reduced


def processes(options: Options) -> int:
    """How many devices a run would use."""
    devices, nodes = _devices(options)
    return devices * nodes


def _devices(options: Options) -> tuple[int, int]:
    """Devices per host, and hosts; under torchrun, as it says.

    Raises ValueError if the host has fewer; on a CPU any number of processes will do.
    """
    local, world = (int(os.environ.get(name, 0)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    kind = device_kind()
    there = 1 if kind == "cpu" else torch.accelerator.device_count()
    devices = local or options.devices or there
    if kind != "cpu" and devices > there:
        raise ValueError(f"{devices} devices are asked for, and this host has {there} ({kind})")
    return devices, world // local if local else 1


def _strategy(options: Options, processes: int, unused: bool) -> str | FabricStrategy:
    if options.strategy == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)
    if options.strategy == "ddp" or processes > 1:
        return DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=unused)
    return "auto"


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard the encoder block by block, and the decoder as a whole: its keys and values are projected all at once."""
    # A warning for callers that write into a module's output; nothing here does.
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
