"""The GPUs that a run is planned for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from crossmae.planning.collectives import Ring
from crossmae.planning.hosts import HOSTS
from crossmae.training.recipe import RunOptions

Sharding = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Fleet:
    """GPUs of one kind, on as many hosts as they need.

    Args:
        device: name of the GPU.
        gpus: how many, on all hosts together.
        gpus_per_host: on each host.
        network: GB/s each way to other hosts, for each GPU of a host; by default that of its maker's servers.
        strategy: ``ddp`` copies the model to every GPU, ``fsdp`` shards it (FSDP2).
    """

    device: str = "h100"
    gpus: int = 8
    gpus_per_host: int = 8
    network: float | None = None
    strategy: Sharding = "ddp"

    def __post_init__(self) -> None:
        """Refuse impossible fleets, naming every problem; a GPU's name may be in capitals."""
        object.__setattr__(self, "device", self.device.lower())
        wrong = []
        if self.device not in HOSTS:
            wrong.append(f"device must be one of {', '.join(HOSTS)}, got {self.device!r}")
        for name in ("gpus", "gpus_per_host"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} must be positive, got {getattr(self, name)}")
        if not wrong and self.gpus > self.gpus_per_host and self.gpus % self.gpus_per_host:
            wrong.append(f"gpus must fill hosts of {self.gpus_per_host} (gpus_per_host), got {self.gpus}")
        if self.network is not None and not 0 < self.network < math.inf:
            wrong.append(f"network must be positive, in GB/s, got {self.network}")
        if self.strategy not in get_args(Sharding):
            wrong.append(f"strategy must be one of {', '.join(get_args(Sharding))}, got {self.strategy!r}")
        if wrong:
            raise ValueError("fleet: " + "; ".join(wrong))

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return -(-self.gpus // self.gpus_per_host)

    @property
    def ring(self) -> Ring:
        """All GPUs in a ring."""
        host = HOSTS[self.device]
        return Ring(host.link, self.network or host.network, self.gpus, self.gpus_per_host)


@dataclass(frozen=True)
class PlanOptions(Fleet):
    """Options of ``crossmae plan`` beside the recipe.

    Args:
        images: number of images in an epoch; by default ImageNet-1k's; needed if there is a data source.
    """

    images: float | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Also refuse a number of images that is not whole."""
        super().__post_init__()
        if self.images is None:
            return
        if not 1 <= self.images < math.inf or self.images != int(self.images):
            raise ValueError(f"images must be a whole number, at least one, got {self.images:g}")


def settings_of_a_plan(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings as read from files, but for those of a run that leave its cost as it is.

    Left out are where it writes, how often it saves, logs, evaluates and draws, the devices that it finds, and a
    strategy that depends on them.
    """
    of_a_run = {one.name for one in fields(RunOptions)} - {one.name for one in fields(PlanOptions)}
    settings = {name: value for name, value in recipe.items() if name not in of_a_run}
    if settings.get("strategy") == "auto":
        del settings["strategy"]
    return settings
