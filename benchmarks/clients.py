"""A training step of other libraries' models on a CPU, before and after ``crossmae.accelerate``.

``python -m benchmarks.clients`` times a forward and a backward pass of the model of each library that is installed, in
float32 and under autocast to bfloat16: the model as it is and an accelerated copy of it in turn, on the same images and
masks.
"""

import argparse
import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import crossmae
from crossmae.benchmark.report import markdown
from crossmae.measure import interleaved_medians
from crossmae_kernels.command import run_command

# Width, depth and heads of the encoders. Decoders are as each library has them by default.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
IMAGE, PATCH = 224, 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS = 5


def birder(name: str, size: str) -> nn.Module:
    """A registered CrossMAE around a ViT."""
    from birder.model_registry import registry
    from birder.net.vit import ViT

    importlib.import_module("birder.net.mim.crossmae")  # registers the names
    width, depth, heads = SIZES[size]
    encoder = {"patch_size": PATCH, "num_layers": depth, "num_heads": heads, "hidden_dim": width, "mlp_dim": 4 * width}
    vit = ViT(3, 0, config={**encoder, "drop_path_rate": 0.0}, size=(IMAGE, IMAGE))
    return registry.mim_net_factory(name, vit, size=(IMAGE, IMAGE))


def stable_pretraining(name: str, size: str) -> nn.Module:
    """``MAE`` or ``CrossMAE`` around timm's ViT."""
    from stable_pretraining import methods

    return getattr(methods, name)(f"vit_{size}_patch16_224")


def hugging_face(size: str) -> nn.Module:
    """``ViTMAEForPreTraining``."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = SIZES[size]
    encoder = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return ViTMAEForPreTraining(ViTMAEConfig(**encoder, intermediate_size=4 * width, image_size=IMAGE))


def lightly(size: str) -> nn.Module:
    """MAE as lightly's documentation composes it."""
    import timm
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    class MAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit: Any = timm.create_model(f"vit_{size}_patch16_224")
            patches = vit.patch_embed.num_patches
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = MAEDecoderTIMM(num_patches=patches, patch_size=PATCH, embed_dim=vit.embed_dim)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            shape = (images.shape[0], self.backbone.sequence_length)
            idx_keep, idx_mask = utils.random_token_mask(size=shape, mask_ratio=0.75)
            visible = self.decoder.embed(self.backbone.encode(images=images, idx_keep=idx_keep))
            tokens = utils.repeat_token(self.decoder.mask_token, shape).type_as(visible)
            decoded = self.decoder.decode(utils.set_at_index(tokens, idx_keep, visible))
            predicted = self.decoder.predict(utils.get_at_index(decoded, idx_mask))
            target = utils.get_at_index(utils.patchify(images, PATCH), idx_mask - 1)
            return {"loss": nn.functional.mse_loss(predicted, target)}

    return MAE()


CLIENTS: dict[str, Callable[[str], nn.Module]] = {
    "birder, crossmae": partial(birder, "crossmae"),
    "birder, crossmae_dec512d12": partial(birder, "crossmae_dec512d12"),
    "stable-pretraining, CrossMAE": partial(stable_pretraining, "CrossMAE"),
    "stable-pretraining, MAE": partial(stable_pretraining, "MAE"),
    "lightly, MAE": lightly,
    "Hugging Face, ViTMAEForPreTraining": hugging_face,
}
HEADERS = ["model", "precision", "before, ms", "after, ms", "speed-up"]


def step(model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    """A forward and a backward pass under a mask that is the same in every call; gradients are left in ``grad``."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(images)["loss"]
    loss.backward()


def measure(plain: nn.Module, batch: int, dtype: torch.dtype) -> Mapping[str, float]:
    """Seconds of a step before and after."""
    images = torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    models = {"before": plain.train(), "after": crossmae.accelerate(copy.deepcopy(plain))}
    return interleaved_medians({name: partial(step, model, images, dtype) for name, model in models.items()}, ROUNDS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clients", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", choices=SIZES, default="small", help="of the encoders (%(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--client", choices=CLIENTS, action="append", help="may be repeated (all)")
    chosen = parser.parse_args()
    if chosen.batch < 1:
        raise ValueError(f"batch must be positive, got {chosen.batch}")
    print(
        f"ViT {chosen.size}, {IMAGE} px, batch {chosen.batch}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}\n"
    )
    rows, missing = [], []
    for name in chosen.client or CLIENTS:
        try:
            with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # where some of them log
                warnings.simplefilter("ignore")  # they warn of each other's deprecations
                plain = CLIENTS[name](chosen.size)
        except ModuleNotFoundError as error:
            missing.append(f"{name}: {error}")
            continue
        for dtype in DTYPES:
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            seconds = measure(plain, chosen.batch, DTYPES[dtype])
            before, after = seconds["before"], seconds["after"]
            rows.append([name, dtype, f"{1e3 * before:,.0f}", f"{1e3 * after:,.0f}", f"{before / after:.2f}"])
    print(markdown(HEADERS, rows))
    for line in missing:
        print(f"left out, {line}")


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.clients", main))
