"""What is known of a published measurement, and how it is launched or called here."""

from dataclasses import dataclass

from benchmarks.predictions.launchers import Launcher, Tiles
from crossmae_kernels.audit.operations import Operation


@dataclass(frozen=True)
class Published:
    """A measurement of kernels, of operators of a library, or of both."""

    name: str
    device: str
    source: str
    rate: float
    """As published, in ``unit``."""
    work: float
    """Operations or bytes that the rate counts."""
    unit: str
    launch: Launcher | None = None
    candidates: tuple[Tiles, ...] = ((),)
    """An autotuned kernel is predicted with each, and the fastest counts, as it did for them."""
    operations: tuple[Operation, ...] = ()
    """Of a library, so estimated by what the device can do at most."""
    fitted: bool = False
    """Whether a constant of the device was fitted to it; the others test the predictions."""

    @property
    def microseconds(self) -> float:
        """The time that the rate stands for."""
        return self.work / (self.rate * {"TFLOPS": 1e6, "GB/s": 1e3}[self.unit])

    @property
    def of_a_library(self) -> bool:
        """Whether there is no machine code to predict it from."""
        return self.launch is None
