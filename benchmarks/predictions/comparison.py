"""A published measurement, predicted."""

from dataclasses import dataclass

from benchmarks.predictions.devices import GPUS
from benchmarks.predictions.launchers import Tiles
from benchmarks.predictions.measurement import Published
from benchmarks.predictions.published import PUBLISHED
from crossmae_kernels.audit.ceilings import estimate
from crossmae_kernels.audit.compilation import CompilationError, compile_launch
from crossmae_kernels.audit.prediction import predict
from crossmae_kernels.audit.recording import record


@dataclass(frozen=True)
class Row:
    """A published measurement and what was predicted of it."""

    place: int
    microseconds: float
    limiter: str
    failed: str = ""


def predicted(place: int) -> Row:
    """The fastest candidate of ``PUBLISHED[place]``."""
    published = PUBLISHED[place]
    found, failures = [], []
    for tiles in published.candidates:
        try:
            parts = _parts(published, tiles)
            found.append(Row(place, sum(time for time, _ in parts), max(parts)[1]))
        except (CompilationError, ValueError) as error:
            failures.append(str(error))
    return min(found, key=lambda row: row.microseconds, default=Row(place, 0, "", "; ".join(failures)))


def _parts(published: Published, tiles: Tiles) -> list[tuple[float, str]]:
    """Microseconds of each kernel and operator, which follow each other, and what limits it."""
    device = GPUS[published.device]
    parts = [estimate(operation, device) for operation in published.operations]
    if published.launch:
        with record(device.limits) as launches:
            published.launch(device, tiles)
        for launch in launches:
            prediction = predict(launch, compile_launch(launch, device.limits.capability), device)
            parts.append((prediction.microseconds, prediction.limiter))
    return parts
