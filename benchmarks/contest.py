"""What is measured of single operations: a problem, who solves it, and how little work it could be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from crossmae.masking import mask_counts
from crossmae.model.config import Config, named_config
from crossmae_kernels.testing import Draw, Problem

Direction = Literal["forward", "forward + backward"]

FORWARD: Direction = "forward"
BOTH: Direction = "forward + backward"

MASK_RATIO = 0.75
PREDICTION_RATIO = 0.25

# From the problem's arguments, by name, to a tensor or a sequence of equal ones.
Call = Callable[..., Any]


class MissingError(Exception):
    """A contender cannot compete here; the message is the reason."""


@dataclass(frozen=True)
class Form:
    """How large the problems are and where they are solved.

    ``tiny`` goes through every line in the interpreter, ``small`` is for a CPU, ``short`` for a GPU and some minutes,
    ``full`` for a GPU and as long as it takes.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    """What products are computed in."""
    sizes: tuple[str, ...]
    """Models, by the ends of their names."""
    batches: tuple[int, ...]
    compilers: Mapping[str, Mapping[str, Any]]
    """Arguments of ``torch.compile`` by the name that a compiled contender carries."""
    rounds: int
    """Of a measurement, at least."""
    seconds: float
    """How long one measurement goes on, once its least number of rounds is done."""

    @property
    def options(self) -> dict[str, int]:
        """Of models: the tiny form has 16 patches and one block on each side."""
        return {"image_size": 16, "encoder_depth": 1, "decoder_depth": 1} if self.name == "tiny" else {}

    def config(self, name: str, image_size: int | None = None) -> Config:
        """A named model's configuration."""
        return named_config(name, **{"image_size": image_size, **self.options})

    def decoder_shape(self, size: str, image_size: int | None = None) -> tuple[Config, int, int]:
        """Configuration of a CrossMAE, tokens of a feature map and predicted patches of an image."""
        config = self.config(f"crossmae_vit_{size}", image_size)
        visible, predicted = mask_counts(config.patches, MASK_RATIO, PREDICTION_RATIO)
        return config, visible + 1, predicted


PAPER = ("base_patch16", "large_patch16", "huge_patch14", "small_patch16")
DEFAULT: dict[str, dict[str, Any]] = {"compiled": {"dynamic": False}}
# Without graphs of its own: benchmarks capture all passes alike, which saves it the copies of its inputs.
STRONG: dict[str, dict[str, Any]] = {"max-autotune": {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORMS = {
    form.name: form
    for form in (
        # Only the compiler's front end: what it generates for a CPU says nothing about a GPU.
        Form("tiny", CPU, torch.float32, ("tiny_patch4",), (2,), {"compiled": {"backend": "eager"}}, 1, 0),
        Form("small", CPU, torch.float32, PAPER[:1], (4,), {}, 5, 0.3),
        Form("short", CUDA, torch.bfloat16, PAPER[:1], (1024, 256), STRONG, 10, 0.25),
        Form("full", CUDA, torch.bfloat16, PAPER, (1024, 256), DEFAULT | STRONG, 10, 1),
    )
}


@dataclass(frozen=True)
class Work:
    """The least that must be done: bytes that must move, each once, and floating-point operations of products."""

    bytes: float
    flops: float


@dataclass(frozen=True, eq=False)
class Contest:
    """One thing to compute, by several contenders that do the same work.

    Attributes:
        suite: name of the suite.
        about: what it is, in values that tell it from the suite's other contests.
        batch: how many images.
        dtype: of arguments.
        pose: draws the arguments of a batch.
        contenders: by name; called once, when its turn comes. ``reference`` is eager PyTorch, which sets the budget.
        work: the least work in a direction.
        no_graph: why a contender is not captured in a CUDA graph to be timed.
        checked: what checks of contenders found, by name.
    """

    suite: str
    about: dict[str, Any]
    batch: int
    dtype: torch.dtype
    pose: Callable[[Draw, int], Problem]
    contenders: Mapping[str, Callable[[], Call]]
    work: Mapping[Direction, Work]
    no_graph: Mapping[str, str] = field(default_factory=dict)
    checked: dict[str, str] = field(default_factory=dict)

    def ours(self, name: str) -> bool:
        """Whether this package answers for a contender."""
        return name == "reference" or name.startswith("fused")

    @property
    def problem(self) -> str:
        """Names what is solved within its suite."""
        words = (v if isinstance(v, str) else f"{name} {v}" for name, v in self.about.items())
        return ", ".join([*words, f"batch {self.batch}"])

    def draw(self, seed: int, device: torch.device, batch: int | None = None) -> Problem:
        """Arguments of ``batch`` images, or of all."""
        return self.pose(Draw(seed, device), batch or self.batch)


def outputs(result: Any) -> list[Tensor]:
    """One tensor or several."""
    return [result] if isinstance(result, Tensor) else list(result)


def upstream_of(result: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Random gradients of outputs."""
    generator = torch.Generator(result[0].device).manual_seed(seed)
    return [torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype) for out in result]


def compiled(build: Callable[[], Call], options: Mapping[str, Any]) -> Call:
    """The same, compiled when it is called first."""
    call = build()
    torch._dynamo.reset()
    compiler: Callable[[Call], Call] = partial(torch.compile, **options)
    return compiler(call)
