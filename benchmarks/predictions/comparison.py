"""A published measurement, predicted."""

from dataclasses import dataclass

from benchmarks.predictions.published import PUBLISHED
from crossmae_kernels.audit.compilation import CompilationError, compile_launch
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import predict
from crossmae_kernels.audit.recording import record


@dataclass(frozen=True)
class Row:
    """A published measurement and what was predicted of it."""

    place: int
    microseconds: float
    limiter: str
    tiles: tuple[int, ...]
    failed: str = ""


def predicted(place: int) -> Row:
    """The fastest candidate of ``PUBLISHED[place]``."""
    published = PUBLISHED[place]
    device, found, failures = DEVICES[published.device], [], []
    for tiles in published.candidates:
        with record(device.limits) as launches:
            published.launch(device, tiles)
        try:
            kernel = compile_launch(launches[-1], device.limits.capability)
            prediction = predict(launches[-1], kernel, device)
            found.append(Row(place, prediction.microseconds, prediction.limiter, tiles))
        except (CompilationError, ValueError) as error:
            failures.append(str(error))
    return min(found, key=lambda row: row.microseconds, default=Row(place, 0, "", (), "; ".join(failures)))
