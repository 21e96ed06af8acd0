"""Is somebody right on what is timed? Only then does the time mean anything.

Results on the whole batch are compared with those of plain PyTorch, which is itself set beside float64 on a few images.
Kernels are held to a stricter budget, on few images: ``crossmae_kernels.testing``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

FEW_IMAGES = 2
# How far the root mean square of a difference may go, in multiples of twice PyTorch's own error and one rounding. Two
# that are right differ by less than one of these. What goes wrong is far off: an id too high or a bias left out changes
# results by a tenth of themselves and more.
ALLOWED = 4

# An output and gradients by name.
Results = Mapping[str, Tensor]


class WrongError(RuntimeError):
    """Something else was computed; the message says which result, and by how much."""


class Judge:
    """Judges all who compute the same."""

    def __init__(self, truth: Results, eager: Results, exact: Results, dtype: torch.dtype) -> None:
        """Results on the whole batch, and on few images by PyTorch, with products in ``dtype``, and in float64."""
        roundoff = torch.finfo(dtype).eps / 2
        self._truth = truth
        self._allowed = {
            name: ALLOWED * (2 * _rms(eager[name].to(right.device) - right) / (_rms(right) or 1) + roundoff)
            for name, right in exact.items()
        }
        for name, right in exact.items():
            if not right.ndim:  # a single number may be met by luck: a loss is as exact as its gradients
                self._allowed[name] = max(self._allowed.values())

    def require(self, found: Results) -> str:
        """What came nearest to what is allowed; raises ``WrongError`` where that is exceeded."""
        lines = {}
        for name, truth in self._truth.items():
            if found[name].shape != truth.shape:
                raise WrongError(f"wrong: {name} has shape {tuple(found[name].shape)}, expected {tuple(truth.shape)}")
            off, allowed = _rms(found[name].float() - truth.float()) / (_rms(truth) or 1), self._allowed[name]
            line = f"{name} is off by {off:.2g} of its root mean square, allowed is {allowed:.2g}"
            if not off <= allowed:  # so that what is no number is wrong too
                raise WrongError(f"wrong: {line}")
            lines[off / allowed] = line
        return lines[max(lines)]


def _rms(tensor: Tensor) -> float:
    """In single precision, but for float64: whole batches are large."""
    values = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
    return float(values.square().mean().sqrt())
