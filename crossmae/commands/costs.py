"""Commands that say what decoding costs: in closed form, and measured."""

import sys
from collections.abc import Sequence
from typing import Literal

from crossmae.benchmark.setting import Execution, Formulation, Part
from crossmae_kernels.command import reason
from crossmae_kernels.extras import MissingPackageError


def flops(figure: str | None = None) -> None:
    """Decoder cost of CrossMAE and MAE in closed form.

    Prints multiply-accumulates of a forward pass per image, for ViT-S/B/L/H, prediction ratios .25/.5/.75 and
    224/448 pixels, with the ratio to MAE, in two conventions: all matrix multiplications, and the paper's (two
    FLOPs per multiply-accumulate, attention itself left out). Draws the first as a picture.

    Args:
        figure: where to write the picture; by default flops.png, if it can be drawn.
    """
    from tabulate import tabulate

    from crossmae.figures import draw_cost
    from crossmae.files import require_picture
    from crossmae.flops import cost_table

    if figure is not None:
        require_picture(figure)
    rows = cost_table()
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))
    path = "flops.png" if figure is None else figure
    try:
        draw_cost(rows, path)
    except (MissingPackageError, OSError) as error:
        if figure is not None:
            raise
        print(f"crossmae flops: no picture: {reason(error)}", file=sys.stderr)  # it was not asked for
    else:
        print(f"\nPicture: {path}")


def bench(
    model: str = "crossmae_vit_base_patch16",
    part: Part = "decoder",
    image_size: int | None = None,
    prediction_ratios: Sequence[float] = (0.25, 0.5, 0.75),
    depths: Sequence[int] = (),
    mask_ratio: float = 0.75,
    batch: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    formulations: Sequence[Formulation] = ("ours", "release"),
    executions: Sequence[Execution] = ("eager",),
    rounds: int = 3,
    out: str = "bench",
) -> int:
    """Decoding by CrossMAE and by MAE on this machine, in arithmetic and in time.

    Times decoders alone on random feature maps, or whole training steps, forward and backward, all in turn, round by
    round, so that other work on the machine slows all alike. Each is checked before. Prints times and speed-ups over
    MAE beside multiply-accumulates in closed form and as PyTorch's FLOP counter sees them, and writes table, numbers
    (JSON) and a picture into a folder. Exit code 1 if something that was asked for could not be timed, or is wrong.
    With the defaults some two minutes on two CPU cores.

    Args:
        model: a CrossMAE, whose decoder is compared with that of the MAE of the same size; see crossmae.list_models.
        part: "decoder", or "step" for a whole training step: encoder, decoder, loss, backward pass and AdamW.
        image_size: side of the images in pixels; the model's own unless given.
        mask_ratio: share of patches hidden from the encoder.
        batch: images; by default 8 on a CPU and 256 elsewhere.
        dtype: of products, by autocast unless float32; by default float32 on a CPU and bfloat16 elsewhere.
        device: "cpu", "cuda", "cuda:1" and so on; by default a GPU if there is one.
        rounds: how often each is timed; the median counts.
        out: folder for table, numbers and picture; created if missing.
    """
    from crossmae.commands.bench import run, setting_of

    setting = setting_of(
        model,
        part,
        image_size,
        prediction_ratios,
        depths,
        mask_ratio,
        batch,
        dtype,
        device,
        formulations,
        executions,
        rounds,
    )
    return run(setting, model, out)
