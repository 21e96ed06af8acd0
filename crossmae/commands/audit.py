"""``crossmae audit --html``: a page of what training steps cost on a GPU that is not there."""

import torch

from crossmae.commands.bench import Progress
from crossmae.files import require_folder_of
from crossmae.model.config import crossmae_and_mae
from crossmae.planning.page import Subject, write_page
from crossmae.planning.step import Formulation, Part, predict_step
from crossmae_kernels.audit.devices import DEVICES

DTYPE, MASK_RATIO = torch.bfloat16, 0.75
WHO: dict[Formulation, str] = {"ours": "this package", "reference": "reference"}


def run(html: str, model: str, device: str, batch: int) -> None:
    """Predict CrossMAE and MAE, by this package and by its reference, and write the page."""
    require_folder_of(html)
    if device.lower() not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    where = DEVICES[device.lower()]
    progress = Progress()
    steps: dict[str, list[Part]] = {}
    configs = dict(zip(("CrossMAE", "MAE"), crossmae_and_mae(model), strict=True))
    for family, config in configs.items():
        for formulation, who in WHO.items():
            name = f"{family} by {who}"

            def tell(done: int, of: int, name: str = name) -> None:
                progress(f"{name}, kernel {done} of {of}")

            progress(f"{name}, recording")
            steps[name] = predict_step(config, where, batch, DTYPE, MASK_RATIO, formulation=formulation, progress=tell)
    progress.done()
    write_page(Subject(model, configs, where, batch, DTYPE, MASK_RATIO), steps, html)
    print(f"Page: {html}")
