"""Training steps on a GPU: nothing in them waits for the device, and kernels train as references do."""

from dataclasses import replace

import pytest
import torch
from pretraining import small, stepper_of

from crossmae.training.data.batches import Batch
from crossmae.training.data.config import DataConfig
from crossmae.training.recipe import RunOptions
from crossmae_kernels.runtime.dispatch import default_implementation

pytestmark = pytest.mark.gpu

BATCH, STEPS = 64, 100


def batches():
    """Images made on the device, the same in every run."""
    generator = torch.Generator("cuda").manual_seed(0)
    while True:
        coarse = torch.rand(BATCH, 3, 8, 8, device="cuda", generator=generator)
        images = torch.nn.functional.interpolate(coarse, size=224, mode="bilinear").mul(255).to(torch.uint8)
        noise = torch.rand(BATCH, 196, device="cuda", generator=generator)
        yield Batch(images, noise, torch.zeros(BATCH), ())


def trained(precision, implementation):
    data = DataConfig(source="-", mean=(0.5,) * 3, std=(0.25,) * 3)
    recipe = small(model="crossmae_vit_base_patch16", model_options={}, data=data, batch_size=BATCH, steps=STEPS)
    recipe = replace(recipe, precision=precision)
    torch.manual_seed(0)
    with default_implementation(implementation):
        stepper = stepper_of(recipe, RunOptions(devices=1))
        source, losses = batches(), []
        for step in range(STEPS):
            if step == 3:  # the first steps compile kernels and set up the optimizer
                torch.cuda.set_sync_debug_mode("error")
            losses.append(stepper.train_step(source))
        torch.cuda.set_sync_debug_mode("default")
        return torch.stack(losses).cpu()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_no_step_waits_and_the_loss_curve_is_the_references(precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        ours, theirs = trained(precision, "auto"), trained(precision, "reference")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(ours).all()
    assert ours[-10:].mean() < 0.9 * ours[:10].mean()
    # Two trainings in 16 bits part by what rounding does to them; their means over ten steps stay within two percent.
    ours, theirs = (losses.unflatten(0, (10, -1)).mean(1) for losses in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)
