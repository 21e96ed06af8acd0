"""CUDA graphs: capture a training step's forward and backward pass once, and replay it without kernel launches."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossmae.model import MaskedAutoencoder, Output

# Warm-up runs before the capture: kernels are compiled, and libraries choose algorithms and allocate workspaces.
WARM_UP_STEPS = 3

Result = TypeVar("Result")


def graphed(model: MaskedAutoencoder, sample: Tensor, **arguments: Any) -> Callable[[Tensor], Output]:
    """The forward and backward pass of ``model`` as a function of images alone.

    A call copies the images, replays the graph, and leaves that batch's gradients in the parameters' ``grad`` (do not
    set these to None, as the graph writes to their memory). Every call draws new random masks, also from your own
    ``generator``. Under autocast, capture within ``torch.autocast(..., cache_enabled=False)``.

    Args:
        model: on a CUDA device.
        sample: images ``(B, C, H, W)`` of the shape and dtype of every later batch.
        arguments: keyword arguments of the model's forward pass.

    Returns:
        A function from images to an output whose tensors are overwritten by the next call.

    Raises:
        ValueError: if the images are not on a CUDA device, a generator is on another device, or later images have
            another shape or dtype.
    """
    if not sample.is_cuda:
        raise ValueError(f"graphed: sample must be on a CUDA device, got {sample.device}")
    generator: torch.Generator | None = arguments.get("generator")
    if generator is not None and generator.device != sample.device:
        raise ValueError(f"graphed: generator must be on {sample.device} like the sample, got {generator.device}")
    images = sample.clone()

    def step() -> Output:
        model.zero_grad(set_to_none=True)
        output = model(images, **arguments)
        output.loss.backward()
        return output

    graph, result = captured(step, generator)
    output = Output(result.loss.detach(), result.prediction.detach(), result.masking)

    def replay(batch: Tensor) -> Output:
        if batch.shape != images.shape or batch.dtype != images.dtype:
            raise ValueError(
                f"graphed: images must be {images.dtype} {tuple(images.shape)} like the sample, "
                f"got {batch.dtype} {tuple(batch.shape)}"
            )
        images.copy_(batch)
        graph.replay()
        return output

    return replay


def captured(
    run: Callable[[], Result], generator: torch.Generator | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of everything ``run`` launches, and its result, which every replay overwrites.

    ``run`` is called four times; pass any generator it draws from, other than the device's default one.
    """
    # Capturing requires a warm-up on a side stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        # PyTorch registers only the device's default generator itself, and raises if another one draws.
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
