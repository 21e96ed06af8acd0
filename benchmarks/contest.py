"""What is measured: a problem, who solves it, and how little work it could be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossmae.masking import mask_counts
from crossmae.model.config import Config, named_config
from crossmae_kernels.environment import Implementation
from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing import Draw, Problem
from crossmae_kernels.testing.problem import Argument, named

Direction = Literal["forward", "forward + backward", "step"]

FORWARD: Direction = "forward"
BOTH: Direction = "forward + backward"
STEP: Direction = "step"

MASK_RATIO = 0.75
PREDICTION_RATIO = 0.25

Arguments = dict[str, Argument]


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

    def config(self, name: str, image_size: int | None = None, **overrides: Any) -> Config:
        """A named model's configuration; in the tiny form of 16 patches."""
        return named_config(name, 16 if self.name == "tiny" else image_size, **overrides)

    def decoder_shape(self, size: str, image_size: int | None = None) -> tuple[Config, int, int]:
        """Configuration of a CrossMAE, tokens of a feature map and predicted patches of an image."""
        config = self.config(f"crossmae_vit_{size}", image_size)
        visible, predicted = mask_counts(config.patches, MASK_RATIO, PREDICTION_RATIO)
        return config, visible + 1, predicted


PAPER = ("base_patch16", "large_patch16", "huge_patch14", "small_patch16")
DEFAULT: dict[str, dict[str, Any]] = {"compiled": {"dynamic": False}}
# Without graphs of its own: benchmarks capture all passes alike, which saves it the copies of its inputs.
STRONG: dict[str, dict[str, Any]] = {"compiled, max-autotune": {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORMS = {
    form.name: form
    for form in (
        # Only the compiler's front end: what it generates for a CPU says nothing about a GPU.
        Form("tiny", CPU, torch.float32, ("tiny_patch4",), (2,), {"compiled": {"backend": "eager"}}, 1, 0),
        # Compiling a decoder of 12 blocks takes a CPU six minutes; `python -m benchmarks.cpu --compile` does it.
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


@dataclass(frozen=True)
class Solver:
    """A contender, ready to run."""

    call: Callable[..., Any]
    """From the problem's arguments, by name, to a tensor or a sequence of equal ones."""
    implementation: Implementation = "auto"
    """Who serves the operations of this package within it."""
    module: nn.Module = field(default_factory=nn.Module)
    """Its parameters are differentiated beside the arguments."""
    optimizer: torch.optim.Optimizer | None = None
    """Steps at the end of a ``step``."""
    no_graph: str = ""
    """Why it is not captured in a CUDA graph to be timed; empty where it is."""
    plain: Callable[..., Any] | None = None
    """Of a compiled call, what was compiled."""
    left: Sequence[Tensor] | None = None
    """Of a call that differentiates too, where it leaves the gradients."""

    def __call__(self, arguments: Arguments) -> Any:
        """Solve the problem for these arguments."""
        with default_implementation(self.implementation):
            return self.call(**arguments)

    def differentiated(self, arguments: Arguments) -> dict[str, Tensor]:
        """What gradients are asked for, by name."""
        leaves = arguments | {"parameters": [*self.module.parameters()]}
        return {name: tensor for name, tensor in named(leaves) if tensor.requires_grad}

    def gradients(
        self, arguments: Arguments, leaves: Sequence[Tensor], upstream: Tensor
    ) -> tuple[Any, Sequence[Tensor]]:
        """What a call returns, and gradients of the leaves, which are not accumulated, so that none need be cleared.

        ``upstream`` has the shape of the outputs, joined.
        """
        result = self(arguments)
        if self.left is not None:
            return result, self.left
        given = upstream if isinstance(result, Tensor) else upstream.unbind()
        return result, torch.autograd.grad(result, leaves, given, materialize_grads=True)

    def upstream(self, arguments: Arguments, seed: int) -> Tensor:
        """A random gradient of the outputs; a loss's is one. Only their shape matters: nothing is compiled for it."""
        with torch.no_grad():
            found = joined(replace(self, call=self.plain or self.call)(arguments))
        return Draw(seed, found.device, found.dtype).normal(*found.shape) if found.ndim else torch.ones_like(found)


def joined(result: Any) -> Tensor:
    """An output, or several stacked: the release has a tensor for each mix where ours has one."""
    return result if isinstance(result, Tensor) else torch.stack(list(result))


@dataclass(frozen=True, eq=False)
class Contest:
    """One thing to compute, by several contenders that do the same work.

    Attributes:
        suite: name of the suite.
        about: what it is, in values that tell it from the suite's other contests.
        batch: how many images.
        dtype: what products are computed in.
        pose: draws the arguments of a batch.
        contenders: by name; called once, when its turn comes. ``reference`` is eager PyTorch, which sets the budget.
        exact: float64 PyTorch, to judge by; the reference unless given.
        work: the least work in a direction; contests differ in which directions they have.
        whole: a whole model, which takes float32 and is judged by root mean squares over all parameters together.
        decisive: whether compilers compete in every form, forward and backward; elsewhere only in the full one, since
            each takes up to a minute.
        baseline: another contest, whose reference is timed in turn with each contender on a CPU, whose speed varies.
        checked: what checks of contenders found, by name.
    """

    suite: str
    about: dict[str, Any]
    batch: int
    dtype: torch.dtype
    pose: Callable[[Draw, int], Problem]
    contenders: Mapping[str, Callable[[], Solver]]
    work: Mapping[Direction, Work]
    exact: Callable[[], Solver] | None = None
    whole: bool = False
    decisive: bool = False
    baseline: "Contest | None" = None
    checked: dict[str, str] = field(default_factory=dict)

    def ours(self, name: str) -> bool:
        """Whether this package answers for a contender."""
        return name == "reference" or name.startswith("fused")

    @property
    def problem(self) -> str:
        """Names what is solved within its suite."""
        words = (v if isinstance(v, str) else f"{name} {v}" for name, v in self.about.items())
        return ", ".join([*words, f"batch {self.batch}"])

    def draw(self, batch: int, seed: int, device: torch.device) -> Arguments:
        """Arguments as leaves that need a gradient, integers and constants aside."""
        posed = self.pose(Draw(seed, device, torch.float32 if self.whole else self.dtype), batch)
        for name, tensor in named(posed.arguments):
            tensor.requires_grad_(tensor.is_floating_point() and name not in posed.constants)
        return posed.arguments


def model_name(size: str) -> str:
    """``base_patch16`` -> ``ViT-B/16``."""
    scale, patch = size.split("_patch")
    return f"ViT-{'T' if scale == 'tiny' else scale[0].upper()}/{patch}"


def compiled(build: Callable[[], Solver], options: Mapping[str, Any]) -> Solver:
    """The same, compiled when it is called first."""
    solver = build()
    torch._dynamo.reset()
    return replace(solver, call=torch.compile(solver.call, **options), plain=solver.call)


def with_compiled(form: Form, contest: Contest) -> Contest:
    """The contest with eager contenders once more for each compiler, if these compete."""
    if not contest.decisive and form.name != "full":
        return contest
    more = {
        f"{name}, {compiler}": partial(compiled, contest.contenders[name], options)
        for name in ("reference", "release")
        if name in contest.contenders
        for compiler, options in form.compilers.items()
    }
    return replace(contest, contenders={**contest.contenders, **more})
