"""What a run will cost on the GPUs of this machine."""

import torch

from crossmae.planning.fleet import Fleet
from crossmae.planning.hosts import HOSTS
from crossmae.training.devices import device_kind, processes
from crossmae.training.plan import PretrainingPlan
from crossmae.training.recipe import Options
from crossmae_kernels.extras import installed


def cost_here(plan: PretrainingPlan, options: Options) -> str:
    """The table of ``crossmae plan`` for the GPUs of this machine, or a line saying why there is none."""
    elsewhere = "`crossmae plan` predicts it for GPUs you need not have."
    kind = device_kind()
    if kind != "cuda":
        return f"Time: not predicted for this machine ({kind}); {elsewhere}"
    name = torch.cuda.get_device_name()
    known = [device for device, host in HOSTS.items() if name in host.names]
    if not known:
        return f"Time: not predicted for {name}; {elsewhere}"
    if not installed("triton"):
        return "Time: not predicted without Triton."
    from crossmae.planning.cost import costs
    from crossmae.planning.report import in_words, say

    gpus = processes(options)
    try:
        fleet = Fleet(
            device=known[0],
            gpus=gpus,
            gpus_per_host=min(gpus, torch.cuda.device_count()),
            strategy="fsdp" if options.strategy == "fsdp" else "ddp",
        )
        return in_words(costs(plan.recipe, plan.images, fleet, say))
    except ValueError as error:  # what cannot be predicted, such as float64, can be run all the same
        return f"Time: not predicted: {error}"
