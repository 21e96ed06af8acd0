"""How long a training step takes on a GPU you need not have, part by part.

A step runs on tensors without data while its operators are recorded. Kernels of this package are compiled and predicted
from their machine code (``crossmae_kernels.audit``); library kernels are estimated from bytes and FLOPs
(``crossmae_kernels.audit.ceilings``). The GPU is assumed to be always busy, with launches following each other as in a
CUDA graph. Loading images is not counted, nor is communication between GPUs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

import crossmae_kernels as ck
from crossmae.masking import random_masking
from crossmae.model.autoencoder import MaskedAutoencoder, pixels_in_rows
from crossmae.model.config import Config, usual_prediction_ratio
from crossmae_kernels.audit.cases import Case
from crossmae_kernels.audit.ceilings import estimate
from crossmae_kernels.audit.devices import Device
from crossmae_kernels.audit.operations import Operation, record_operations
from crossmae_kernels.audit.prediction import SPREAD
from crossmae_kernels.audit.reports import reports
from crossmae_kernels.runtime.dispatch import default_implementation

Stage = Literal["encoder", "decoder", "loss", "decoder backward", "encoder backward", "optimizer"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Formulation = Literal["ours", "reference"]
"""This package with its kernels, or its operations in plain PyTorch."""
Method = Literal["machine code", "ceilings"]

# Bytes of a parameter that AdamW reads (itself, gradient, two moments) and writes (all but the gradient), in float32.
ADAMW_BYTES = 4 * 4 + 3 * 4
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel by an operator, or all library launches of one name for it."""

    name: str
    method: Method
    """How the time was predicted."""
    calls: int
    microseconds: float
    """Of all calls together; the middle of the interval."""
    limiter: str
    """What limits the longest launch."""
    bytes: int
    """Bytes of DRAM traffic."""


@dataclass(frozen=True)
class Part:
    """All calls of one operator in one stage of a step."""

    stage: Stage
    operation: str
    ours: bool
    """Whether the operator is one of this package's."""
    calls: int
    flops: int
    """By the operator's definition, two per multiply-accumulate."""
    kernels: tuple[Kernel, ...]
    """Longest first."""

    @property
    def microseconds(self) -> float:
        """The middle of the interval."""
        return sum(kernel.microseconds for kernel in self.kernels)

    @property
    def low(self) -> float:
        """The shortest time of the interval, in microseconds."""
        return self.microseconds / (1 + SPREAD)

    @property
    def high(self) -> float:
        """The longest time of the interval, in microseconds."""
        return self.microseconds * (1 + SPREAD)

    @property
    def limiter(self) -> str:
        """What limits the longest kernel."""
        return self.kernels[0].limiter

    @property
    def bytes(self) -> int:
        """Bytes of DRAM traffic."""
        return sum(kernel.bytes for kernel in self.kernels)


def predict_step(
    config: Config,
    device: Device,
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
    mask_ratio: float = 0.75,
    prediction_ratio: float | None = None,
    formulation: Formulation = "ours",
    processes: int = 2,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Part]:
    """Predict forward pass, backward pass and AdamW of one batch on one GPU.

    Each new kernel takes about a second to compile; results are cached on disk.

    Args:
        config: a model with a decoder; with a ``pixel_mean`` it takes uint8 images.
        device: the GPU.
        batch: number of images.
        dtype: dtype of matrix products, by autocast unless float32.
        mask_ratio: share of patches hidden from the encoder.
        prediction_ratio: share of patches to predict; by default the model's usual one.
        formulation: this package's kernels, or its reference in plain PyTorch.
        processes: number of processes that compile and predict.
        progress: called with the number of launches predicted so far, and their total.

    Returns:
        The parts, in order of the stages and longest first within each stage.

    Raises:
        ValueError: for a model without a decoder, a batch that is not positive, or another dtype.
    """
    if config.decoder is None:
        raise ValueError("the model is only an encoder, so there is no training step to predict")
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    recorded = list(_record(config, device, batch, dtype, mask_ratio, prediction_ratio, formulation))
    launches = {repr(launch): launch for _, operation in recorded for launch in operation.launches}
    cases = [Case(launch.name, device, _DTYPES[dtype], launch) for launch in launches.values()]
    known = {}
    for done, (launch, record) in enumerate(zip(launches, reports(cases, processes), strict=True), 1):
        known[launch] = record
        progress(done, len(cases))
    found: dict[tuple[Stage, str], list[tuple[Operation, list[Kernel]]]] = {}
    for stage, operation in recorded:
        kernels = _kernels(operation, device, dtype, [known[repr(launch)] for launch in operation.launches])
        found.setdefault((stage, operation.name), []).append((operation, kernels))
    parts = [_part(stage, calls) for (stage, _), calls in found.items()]
    return sorted(parts, key=lambda part: (STAGES.index(part.stage), -part.microseconds))


def _record(
    config: Config,
    device: Device,
    batch: int,
    dtype: torch.dtype,
    mask_ratio: float,
    prediction_ratio: float | None,
    formulation: Formulation,
) -> Iterator[tuple[Stage, Operation]]:
    """The operators of a step, each with its stage; cutting the graph between stages launches nothing."""
    if prediction_ratio is None:
        prediction_ratio = usual_prediction_ratio(config, mask_ratio)
    boundaries: dict[Stage, int] = {}
    with (
        record_operations(device.limits) as operations,
        default_implementation("triton" if formulation == "ours" else "reference"),
    ):
        model = MaskedAutoencoder(config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        raw = config.pixel_mean is not None
        images = torch.empty(batch, config.channels, *config.image_size, dtype=torch.uint8 if raw else torch.float32)
        operations.clear()

        def done(stage: Stage) -> None:
            boundaries[stage] = len(operations)

        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            masking = random_masking(batch, config.patches, mask_ratio, prediction_ratio)
            mean, std = (model.pixel_mean, model.pixel_std) if raw else (None, None)
            maps = model.encoder(images, masking.visible_ids, mean, std)
            done("encoder")
            leaves = [feature_map.detach().requires_grad_() for feature_map in maps]
            prediction = model.decoder(leaves, masking)
            done("decoder")
            leaf = prediction.detach().requires_grad_()
            rows = pixels_in_rows(leaf, config)
            loss = ck.patch_loss(
                rows, images, masking.predicted_ids, config.patch_size, config.normalize_targets, mean, std
            )
        (upstream,) = torch.autograd.grad(loss, [leaf])
        done("loss")
        decoders = [*model.decoder.parameters()]
        of_decoder = torch.autograd.grad(prediction, [*leaves, *decoders], upstream, allow_unused=True)
        done("decoder backward")
        encoders = [p for p in model.encoder.parameters() if p.requires_grad]
        torch.autograd.grad(maps, encoders, of_decoder[: len(leaves)], allow_unused=True)
        done("encoder backward")
    begin = 0
    for stage, end in boundaries.items():
        for operation in operations[begin:end]:
            yield stage, operation
        begin = end
    count = sum(p.numel() for p in parameters)
    yield "optimizer", Operation("AdamW", False, torch.float32, 0, ADAMW_BYTES * count)


def _kernels(
    operation: Operation, device: Device, dtype: torch.dtype, records: Sequence[dict[str, Any]]
) -> list[Kernel]:
    """The kernels of one call; this package's operators multiply in ``dtype``, whatever dtype their arguments have."""
    if not all("microseconds" in record for record in records):
        # A kernel that could not be predicted is estimated from the operator's definition.
        return [_by_ceilings(replace(operation, dtype=dtype), device)]
    predicted = [
        Kernel(record["kernel"], "machine code", 1, record["microseconds"], record["limiter"], record["moved"])
        for record in records
    ]
    libraries = operation.operations if operation.ours else [operation]
    return predicted + [_by_ceilings(each, device) for each in libraries]


def _by_ceilings(operation: Operation, device: Device) -> Kernel:
    return Kernel(operation.name, "ceilings", 1, *estimate(operation, device), operation.bytes)


def _part(stage: Stage, calls: Sequence[tuple[Operation, Sequence[Kernel]]]) -> Part:
    """Calls of one operator in one stage."""
    found: dict[str, list[Kernel]] = {}
    for _, kernels in calls:
        for kernel in kernels:
            found.setdefault(kernel.name, []).append(kernel)
    first = calls[0][0]
    return Part(
        stage,
        first.name,
        first.ours,
        len(calls),
        sum(operation.flops for operation, _ in calls),
        tuple(sorted(map(together, found.values()), key=lambda kernel: -kernel.microseconds)),
    )


def together(same: Sequence[Kernel]) -> Kernel:
    """Launches of one kernel, combined."""
    longest = max(same, key=lambda kernel: kernel.microseconds / kernel.calls)
    return replace(
        longest,
        calls=sum(kernel.calls for kernel in same),
        microseconds=sum(kernel.microseconds for kernel in same),
        bytes=sum(kernel.bytes for kernel in same),
    )
