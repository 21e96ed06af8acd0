"""Preemption: SIGTERM and SIGINT are recorded when they arrive and handled between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric

from crossmae.training.devices import over_devices


class Preemption:
    """A context that records a signal to stop; a second SIGINT stops at once.

    Only the main thread may handle signals; in any other thread none is recorded.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric, self._noted = fabric, 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if main else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = number

    @property
    def signal(self) -> int:
        """The recorded signal; SIGTERM if another process received it."""
        return self._noted or signal.SIGTERM

    def should_stop(self, at_interval: bool) -> bool:
        """Whether all processes stop now; several agree only at intervals, since communication takes time."""
        if self._fabric.world_size == 1:
            return bool(self._noted)
        if not at_interval:
            return False
        noted = torch.tensor(float(bool(self._noted)), device=self._fabric.device)
        return bool(over_devices(self._fabric, noted, "sum") > 0)
