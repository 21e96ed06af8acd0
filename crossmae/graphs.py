"""CUDA graphs: a training step's forward and backward pass, captured once and replayed without launching anything."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossmae.model import MaskedAutoencoder, Output

# Runs before the capture: kernels are compiled, and libraries choose and allocate what they need.
WARM_UP_STEPS = 3

Result = TypeVar("Result")


def graphed(model: MaskedAutoencoder, sample: Tensor, **arguments: Any) -> Callable[[Tensor], Output]:
    """Forward and backward pass of ``model`` as a function of images alone.

    A call copies the images, replays, and leaves the gradients of that batch in the parameters' ``grad`` (do not set
    these to None: the graph writes where they lie). Random masks are new in every call, those from a ``generator`` of
    yours too. Under autocast, capture within ``torch.autocast(..., cache_enabled=False)``.

    Args:
        model: on a CUDA device.
        sample: images ``(B, C, H, W)`` of the shape and dtype of every later batch.
        arguments: keyword arguments of the model's forward pass.

    Returns:
        A function from images to an output whose tensors are overwritten by the next call.

    Raises:
        ValueError: if the images are not on a CUDA device, or a generator on another one, or if later images are of
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
    """A CUDA graph of what ``run`` launches, and what it returned, which every replay overwrites.

    ``run`` is called four times; a generator that it draws from, other than the device's default one, is named.
    """
    # Capturing asks for a warm-up on another stream than the current one.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        # PyTorch does so by itself for the device's default generator alone, and raises where another one draws.
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
