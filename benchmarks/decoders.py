"""What ``crossmae bench`` is asked for on a GPU: decoders, whole steps, and both on so few images that Python is seen.

A comparison is by one formulation, so that one that crashes takes no other with it; MAE is in each, by the same means.
Decoders and steps are measured as models are by default and as the recipes for GPUs set them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contest import FORMS, MASK_RATIO, PREDICTION_RATIO, Form
from crossmae.benchmark.setting import Execution, Formulation, Part, Setting
from crossmae.commands.tune import SETTINGS, take_steps
from crossmae.model.config import Config

SUITES = ("decode", "step", "launch")
FORMULATIONS: tuple[Formulation, ...] = ("kernels", "reference", "release")
# The release's formulation has neither setting of a recipe.
OF_RECIPES = FORMULATIONS[:2]
_, RECIPES = SETTINGS


@dataclass(frozen=True)
class Asked:
    """What is asked for, and how it is named in a record."""

    model: str
    problem: str
    contender: str
    setting: Setting


def asked(suite: str, form: Form) -> list[Asked]:
    """All of a suite, the most important first; what is compiled comes last, since it takes long."""
    found = [*{"decode": _decode, "step": _step, "launch": _launch}[suite](form)]
    return sorted(found, key=lambda asked: not {*asked.setting.executions}.isdisjoint(_compilers(form)))


def _decode(form: Form) -> Iterator[Asked]:
    """Decoders by all means; by prediction ratio and depth; in the full form other sizes, batches and pixels too.

    In the short form no compiler competes with recipes' settings.
    """
    (size, *others), (batch, *fewer) = form.sizes, form.batches
    yield from _by_all_means(form, size, batch)
    for formulation in OF_RECIPES:
        yield _one(form, size, batch, (formulation,), settings=RECIPES)
    if form.name == "tiny":
        return
    yield _one(
        form, size, fewer[0] if fewer else batch, ("kernels",), name="kernels, by ratio", ratios=(0.25, 0.5, 0.75)
    )
    yield _one(form, size, fewer[0] if fewer else batch, ("kernels",), name="kernels, by depth", depths=(8, 4, 1))
    if form.name == "full":
        for compiler in _compilers(form):
            yield _one(form, size, batch, ("reference",), (compiler,), settings=RECIPES)
        for other in others:
            yield from _by_all_means(form, other, batch)
        for other_batch in (64, 128, 256, 512, 2048):
            yield from _by_all_means(form, size, other_batch)
        yield from _by_all_means(form, size, 256, image_size=448)
        yield _one(form, size, 256, ("kernels",), name="kernels, by ratio", ratios=(0.5, 0.75), image_size=448)


def by_kernels(form: Form) -> list[Asked]:
    """The decoders whose kernels are timed one by one."""
    return [
        _one(form, form.sizes[0], form.batches[0], ("kernels",), ("eager",), settings=settings) for settings in SETTINGS
    ]


def _by_all_means(form: Form, size: str, batch: int, image_size: int | None = None) -> Iterator[Asked]:
    for formulation in FORMULATIONS:
        yield _one(form, size, batch, (formulation,), image_size=image_size)
    for compiler in _compilers(form):
        for formulation in FORMULATIONS[1:]:
            yield _one(form, size, batch, (formulation,), (compiler,), image_size=image_size)


def _step(form: Form) -> Iterator[Asked]:
    """A whole training step; in the full form also compiled, at the first batch."""
    batches = {"tiny": (2,), "small": (2,), "short": (256,), "full": (256, 512, 1024, 2048)}[form.name]
    for size in form.sizes:
        for batch in batches:
            for formulation in OF_RECIPES:
                yield _one(form, size, batch, (formulation,), part="step", settings=RECIPES)
            for formulation in FORMULATIONS:
                yield _one(form, size, batch, (formulation,), part="step")
        for settings in SETTINGS if form.name == "full" else ():
            yield _one(form, size, batches[0], ("reference",), ("max-autotune",), part="step", settings=settings)


def _launch(form: Form) -> Iterator[Asked]:
    """What a call costs beside its arithmetic, which a graph shows."""
    parts: tuple[Part, ...] = ("decoder", "step")
    for batch in {"tiny": (1,), "small": (1,), "short": (1, 8), "full": (1, 2, 4, 8)}[form.name]:
        for part in parts:
            yield _one(form, form.sizes[0], batch, FORMULATIONS[:2], part=part, name="kernels and reference")


def _compilers(form: Form) -> tuple[Execution, ...]:
    compilers: dict[str, tuple[Execution, ...]] = {"short": ("max-autotune",), "full": ("max-autotune", "compiled")}
    return compilers.get(form.name, ())


def _one(
    form: Form,
    size: str,
    batch: int,
    formulations: tuple[Formulation, ...],
    executions: tuple[Execution, ...] = (),
    name: str = "",
    part: Part = "decoder",
    ratios: tuple[float, ...] = (PREDICTION_RATIO,),
    depths: tuple[int, ...] = (),
    image_size: int | None = None,
    settings: Mapping[str, Any] = SETTINGS[0],
) -> Asked:
    """Called, and replayed from a graph where there are any, unless it is to be compiled."""
    model = f"crossmae_vit_{size}"
    crossmae, mae = (replace(form.config(f"{of}_vit_{size}", image_size), **settings) for of in ("crossmae", "mae"))
    plain: tuple[Execution, ...] = ("eager", "graph") if form.device.type == "cuda" else ("eager",)
    if formulations == ("release",):  # no graph holds it
        plain = ("eager",)
    setting = Setting(
        crossmae,
        mae,
        part,
        ratios,
        depths,
        MASK_RATIO,
        batch,
        form.dtype,
        form.device,
        formulations,
        executions or plain,
        form.rounds,
    )
    problem = problem_of(part, model, crossmae, batch)
    return Asked(model, problem, name or ", ".join([*formulations, *executions]), setting)


def problem_of(part: Part, model: str, config: Config, batch: int) -> str:
    """What is solved, in words; a model that runs as by default is not said to."""
    as_set = ", recipes' settings" if config == replace(config, **RECIPES) else ""
    return f"{part}{as_set}, {model}, {config.image_size[0]} px, batch {batch}"


def tune(name: str) -> None:
    """Tune every kernel on the shapes of a form's suites: a whole training step has all of them."""
    form = FORMS[name]
    for size in form.sizes:
        for batch in form.batches:
            print(f"crossmae_vit_{size}, batch {batch}", flush=True)
            precision: Any = str(form.dtype).removeprefix("torch.")
            for settings in SETTINGS:
                options = form.options | settings
                take_steps(f"crossmae_vit_{size}", batch, precision, PREDICTION_RATIO, options, form.device)
