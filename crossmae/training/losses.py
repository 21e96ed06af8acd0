"""Asynchronous logging: losses are copied from the device and read later, so no step waits for them."""

import math
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from crossmae.training.devices import over_devices


@dataclass(frozen=True)
class Losses:
    """Losses of consecutive steps from step ``first`` on, averaged over devices."""

    first: int
    values: list[float]

    def first_bad_step(self) -> int | None:
        """The first step whose loss is not finite."""
        return next((self.first + i for i, value in enumerate(self.values) if not math.isfinite(value)), None)


class LossReader:
    """Collects losses on the device and returns them an interval later, when the copy has long completed.

    Every device must call ``add`` and ``flush`` at the same steps: losses are averaged over devices one interval at a
    time.
    """

    def __init__(self, fabric: Fabric, interval: int) -> None:
        self._fabric, self._interval = fabric, interval
        self._collected: list[Tensor] = []
        self._first = 0
        self._underway: tuple[int, Tensor, torch.Event | None] | None = None

    def add(self, step: int, loss: Tensor) -> Losses | None:
        """Add the loss of a step; at the end of an interval, return the losses of the previous interval."""
        if not self._collected:
            self._first = step
        self._collected.append(loss)
        if len(self._collected) < self._interval:
            return None
        arrived = self._arrived()
        self._send()
        return arrived if self._fabric.device.type != "cpu" else self._arrived()

    def flush(self) -> list[Losses]:
        """All losses not yet returned; waits for the device."""
        arrived = [self._arrived()]
        if self._collected:
            self._send()
            arrived.append(self._arrived())
        return [losses for losses in arrived if losses is not None]

    def _send(self) -> None:
        losses = torch.stack(self._collected)
        if self._fabric.world_size > 1:
            losses = over_devices(self._fabric, losses, "mean")
        event = None
        if losses.is_cuda:
            host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            host.copy_(losses, non_blocking=True)
            event = torch.Event(losses.device.type)
            event.record()
            losses = host
        self._underway = (self._first, losses, event)
        self._collected = []

    def _arrived(self) -> Losses | None:
        if self._underway is None:
            return None
        first, losses, event = self._underway
        self._underway = None
        if event is not None:
            event.synchronize()
        return Losses(first, losses.tolist())
