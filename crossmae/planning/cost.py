"""What a pretraining run costs on a fleet: time, memory and communication, for CrossMAE and for MAE beside it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch

from crossmae.flops import decoder_macs, encoder_macs
from crossmae.masking import mask_counts
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, Hidden
from crossmae.planning.collectives import Exchange, data_parallel, sharded
from crossmae.planning.fleet import Fleet, Sharding
from crossmae.planning.hosts import HOSTS
from crossmae.planning.step import STAGES, Method, Part, Stage, predict_step
from crossmae.training.plan import GIB, PretrainingPlan, make_plan, memory_of_pretraining
from crossmae.training.recipe import Recipe
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import SPREAD

STATE = 16
"""Bytes of a parameter with its gradient and AdamW's two moments, in float32."""
OVERHEAD = 1.5 * GIB
"""Bytes of a process's CUDA context and of NCCL's and cuBLAS's buffers."""
SLACK = 0.1
"""Share added to the activations for fragmentation of the allocator and for short-lived tensors."""
RUNS = 1.78
"""The time of the paper's epochs over their predictions; fitted by ``benchmarks/predictions/runs.py``."""
ISSUE = 10e-6
"""Seconds that Python needs to issue one operator in eager mode, forward or backward."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    state: float
    """Parameters, gradients and AdamW's moments."""
    kept: float
    """Activations kept for the backward pass of a micro-batch."""

    @property
    def total(self) -> float:
        """Everything, with overhead."""
        return self.state + (1 + SLACK) * self.kept + OVERHEAD


@dataclass(frozen=True)
class Step:
    """One GPU's step: the passes of a micro-batch, and the optimizer."""

    seconds: Mapping[Stage, float]
    operators: int
    """Number of operators called."""
    machine_code: float
    """Share of the passes' time that is predicted from machine code; the rest is from ceilings."""

    @property
    def passes(self) -> float:
        """Seconds of a micro-batch's forward and backward pass."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != "optimizer")


@dataclass(frozen=True)
class Cost:
    """Cost of a run; times in seconds, each the middle of an interval of ``SPREAD`` above and below."""

    plan: PretrainingPlan
    fleet: Fleet
    one: Step
    parameters: int
    largest: int
    """Parameters of the largest part that is sharded as one."""
    kept: int
    """Bytes kept for the backward pass of a micro-batch."""
    passes_otherwise: float
    """Seconds of a micro-batch's passes with the other choice for hidden layers, to save or to recompute them."""
    kept_otherwise: int
    """Bytes kept with that choice."""

    @property
    def forward(self) -> float:
        """Seconds of a micro-batch's forward pass, with the loss."""
        return self._seconds("encoder", "decoder", "loss")

    @property
    def backward(self) -> float:
        """Seconds of a micro-batch's backward pass."""
        return self._seconds("decoder backward", "encoder backward")

    @property
    def optimizer(self) -> float:
        """Seconds of AdamW, once per step; each GPU updates its share of a sharded model."""
        return self._seconds("optimizer") / (self.fleet.gpus if self.fleet.strategy == "fsdp" else 1)

    @property
    def data_parallel(self) -> Exchange:
        """DDP's communication in a step."""
        return data_parallel(self.fleet.ring, self.parameters, self.backward)

    @property
    def sharded(self) -> Exchange:
        """FSDP2's communication in a step."""
        return sharded(
            self.fleet.ring, self.parameters, self.largest, self.forward, self.backward, self.plan.accumulation
        )

    @property
    def exchange(self) -> Exchange:
        """Communication of the fleet's strategy."""
        return self.sharded if self.fleet.strategy == "fsdp" else self.data_parallel

    @property
    def step(self) -> float:
        """Seconds of an optimizer step, with all of its micro-batches."""
        return self.plan.accumulation * self.one.passes + self.optimizer + self.exchange.exposed

    @property
    def epoch(self) -> float:
        """Seconds of an epoch: all whole batches of the images."""
        return self.plan.steps_per_epoch * self.step

    @property
    def run(self) -> float:
        """Seconds of all steps."""
        return self.plan.steps * self.step

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours of the run."""
        return self.fleet.gpus * self.run / 3600

    @property
    def images_per_second(self) -> float:
        """Images per second on all GPUs together."""
        return self.plan.recipe.batch_size / self.step

    @property
    def utilization(self) -> float:
        """Model FLOPs utilization (MFU): the model's FLOPs over the datasheet's, not counting recomputation."""
        device, (mask_ratio, prediction_ratio) = DEVICES[self.fleet.device], self.plan.ratios(0)
        config = self.plan.config
        macs = encoder_macs(config, mask_ratio) + decoder_macs(config, prediction_ratio, mask_ratio)
        rate = device.tensor * device.limits.multiprocessors * device.clock * 1e9
        return 6 * macs * self.images_per_second / self.fleet.gpus / rate

    def memory(self, strategy: Sharding) -> Memory:
        """Memory of each GPU under a strategy."""
        return memory_of(strategy, self.fleet.gpus, self.parameters, self.largest, self.kept)

    @property
    def issuing(self) -> float:
        """Seconds that Python needs to issue a micro-batch's operators in eager mode."""
        return ISSUE * self.one.operators

    def _seconds(self, *stages: Stage) -> float:
        return sum(self.one.seconds[stage] for stage in stages)


def memory_of(strategy: Sharding, gpus: int, parameters: int, largest: int, kept: int) -> Memory:
    """Memory under DDP, or under FSDP2, which also holds one whole part with gradients while gathering the next."""
    if strategy == "ddp":
        return Memory(STATE * parameters, kept)
    return Memory(STATE * parameters / gpus + 3 * 4 * largest, kept)


def summed(parts: Sequence[Part]) -> Step:
    """A predicted step, summed by stage."""
    seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
    by_method: dict[Method, float] = {"machine code": 0.0, "ceilings": 0.0}
    for part in parts:
        seconds[part.stage] += part.microseconds / 1e6
        for kernel in part.kernels if part.stage != "optimizer" else ():
            by_method[kernel.method] += kernel.microseconds
    machine_code = by_method["machine code"] / sum(by_method.values())
    return Step(seconds, sum(part.calls for part in parts), machine_code)


def interval(seconds: float) -> tuple[float, float]:
    """The shortest and the longest time that a prediction stands for."""
    return seconds / (1 + SPREAD), seconds * (1 + SPREAD)


def costs(recipe: Recipe, images: int, fleet: Fleet, progress: Progress = lambda name, done, of: None) -> list[Cost]:
    """The cost of a recipe, and of its model's counterpart with the other decoder.

    The counterpart uses smaller micro-batches if the recipe's do not fit.

    Args:
        recipe: the run; precision ``auto`` is bfloat16.
        images: number of images in an epoch.
        fleet: the GPUs.
        progress: called with a model's name, the number of launches predicted so far, and their total.

    Raises:
        ValueError: if recipe, images and fleet do not fit together, or the memory does not suffice.
    """
    if recipe.precision == "float64":
        raise ValueError("precision float64 cannot be predicted; choose bfloat16, float16 or float32")
    if recipe.precision == "auto":
        recipe = replace(recipe, precision="bfloat16")
    if fleet.strategy == "fsdp" and recipe.precision == "float16":
        raise ValueError("float16 cannot be sharded (its loss scale is not shared); use bfloat16 or --strategy ddp")
    plan = _fitting(make_plan(recipe, images, fleet.gpus), fleet, choose=False)
    other = _fitting(make_plan(counterpart(recipe), images, fleet.gpus), fleet, choose=True)
    return [_cost(*sized, fleet, progress) for sized in (plan, other)]


# Settings of one decoder that the other lacks; the counterpart has those of its named model.
_OF_A_DECODER = ("decoder_depth", "feature_maps", "decoder_self_attention", "final_norm", "last_mix_norm",
                 "decoder_class_token")  # fmt: skip


def counterpart(recipe: Recipe) -> Recipe:
    """The same recipe with MAE's decoder for CrossMAE's or vice versa, at that model's own depth."""
    family, _, size = recipe.model.partition("_vit_")
    other = {"crossmae": "mae", "mae": "crossmae"}[family]
    options = {name: value for name, value in recipe.model_options.items() if name not in _OF_A_DECODER}
    return replace(recipe, model=f"{other}_vit_{size}", model_options=options, prediction_ratio=None)


def _fitting(plan: PretrainingPlan, fleet: Fleet, choose: bool) -> tuple[PretrainingPlan, int, int, int]:
    """The plan, its number of parameters, those of its largest part, and the bytes it keeps for the backward pass.

    If a micro-batch does not fit the GPU, ``choose`` takes a smaller one; otherwise ValueError names one that fits.
    """
    available = HOSTS[fleet.device].memory * GIB
    asked = plan
    while True:
        parameters, kept = memory_of_pretraining(plan, DEVICES[fleet.device].limits)
        largest = _largest_part(plan)
        memory = memory_of(fleet.strategy, fleet.gpus, parameters, largest, kept)
        if memory.total <= available:
            break
        if asked is plan:
            needs = f"{plan.micro_batch:,} images at a time need {memory.total / GIB:,.1f} GiB of {fleet.device}'s"
        room = (available - OVERHEAD - memory.state) / (1 + SLACK)
        # Slightly too large at times: 16-bit weights are kept once, whatever the batch.
        most = min(math.floor(room / kept * plan.micro_batch), plan.micro_batch - 1)
        if most < 1:
            raise ValueError(
                f"{plan.recipe.model}: {needs} {available / GIB:,.1f}, and even a single image does not fit"
            )
        plan = replace(plan, recipe=replace(plan.recipe, micro_batch=most))
    if plan is not asked and not choose:
        raise ValueError(f"{needs} {available / GIB:,.1f}; --micro-batch {plan.micro_batch} fits")
    return plan, parameters, largest, kept


def _largest_part(plan: PretrainingPlan) -> int:
    """Parameters of the largest part that FSDP2 shards as one: an encoder block, or the decoder."""
    with torch.device("meta"):
        model = MaskedAutoencoder(plan.config)
    parts = [*model.encoder.blocks, model.decoder]
    return max(sum(p.numel() for p in part.parameters()) for part in parts)


def _cost(plan: PretrainingPlan, parameters: int, largest: int, kept: int, fleet: Fleet, progress: Progress) -> Cost:
    recipe, (mask_ratio, prediction_ratio) = plan.recipe, plan.ratios(0)
    device = DEVICES[fleet.device]
    other = replace(plan, config=replace(plan.config, hidden_layer=other_hidden_layer(plan.config)))
    predict = partial(
        predict_step,
        device=device,
        batch=plan.micro_batch,
        dtype=_DTYPES[recipe.precision],
        mask_ratio=mask_ratio,
        prediction_ratio=prediction_ratio,
    )
    step = summed(predict(plan.config, progress=lambda done, of: progress(recipe.model, done, of)))
    # Most of its kernels are the same and known by now.
    otherwise = summed(predict(other.config)).passes
    _, kept_otherwise = memory_of_pretraining(other, device.limits)
    return Cost(plan, fleet, step, parameters, largest, kept, otherwise, kept_otherwise)


def other_hidden_layer(config: Config) -> Hidden:
    """The choice for hidden layers that a model has not made."""
    return "recompute" if config.hidden_layer == "save" else "save"


def as_json(found: list[Cost]) -> dict[str, Any]:
    """Plain values by model name; times in seconds, memory in bytes."""
    return {cost.plan.recipe.model: _plain(cost) for cost in found}


def _plain(cost: Cost) -> dict[str, Any]:
    plan, fleet = cost.plan, cost.fleet
    visible, predicted = mask_counts(plan.config.patches, *plan.ratios(0))
    return {
        "device": fleet.device, "gpus": fleet.gpus, "hosts": fleet.hosts, "strategy": fleet.strategy,
        "images": plan.images, "batch_size": plan.recipe.batch_size, "micro_batch": plan.micro_batch,
        "micro_batches": plan.accumulation, "visible": visible, "predicted": predicted, "steps": plan.steps,
        "parameters": cost.parameters,
        "seconds": {
            name: {"predicted": value, "interval": list(interval(value))}
            for name, value in {"step": cost.step, "epoch": cost.epoch, "run": cost.run}.items()
        },
        "seconds_of_a_micro_batch": {"forward": cost.forward, "backward": cost.backward},
        "seconds_of_the_optimizer": cost.optimizer,
        "otherwise": {
            "hidden_layer": other_hidden_layer(plan.config),
            "seconds_of_a_micro_batch": cost.passes_otherwise,
            "kept": cost.kept_otherwise,
        },
        "exchange": {"ddp": vars(cost.data_parallel), "fsdp": vars(cost.sharded)},
        "images_per_second": cost.images_per_second, "gpu_hours": cost.gpu_hours, "mfu": cost.utilization,
        "memory": {
            name: {"state": memory.state, "kept": memory.kept, "total": memory.total}
            for name in get_args(Sharding) for memory in (cost.memory(name),)
        },
    }  # fmt: skip
