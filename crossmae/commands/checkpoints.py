"""Commands that look at checkpoints, or write them in another format."""

from collections.abc import Sequence
from typing import Any, Literal

from crossmae.export import Target
from crossmae.masking import MaskShape
from crossmae_kernels.extras import require


def reconstruct(
    images: list[str],
    checkpoint: str,
    masking: MaskShape = "random",
    mask_ratio: float = 0.75,
    seed: int = 0,
    out: str = "reconstruction.png",
    statistics: Literal["visible", "true"] = "visible",
    mixing: str | None = None,
    blocks: bool = False,
    prediction_ratios: Sequence[float] = (),
    norm_pix_loss: bool = False,
    load_options: dict[str, Any] | None = None,
) -> None:
    """Draw images, what the encoder sees of them, and the model's reconstruction.

    One row per image, of any size: each is scaled to cover the model's image size and cropped at its centre. Hides
    patches, different ones for every image and seed, and decodes all of them; for each of --prediction-ratios there is
    also a picture of what is predicted then. Prints the loss on them, and where
    brightness and contrast come from if the model was trained on normalised pixels.

    Args:
        checkpoint: a checkpoint that crossmae.load reads: of this package, of CrossMAE's or MAE's release, or a folder
            of a run or of Hugging Face's ViTMAE.
        masking: which patches to hide: random ones, all but one of each cell of a grid, or a block.
        mask_ratio: share of patches to hide.
        seed: of the masks.
        out: where to write the picture.
        statistics: brightness and contrast of normalised pixels: interpolated between the visible patches, or the
            hidden patches' true ones, which leaks them.
        mixing: where to write a heat map of the learned mixing weights; not drawn by default.
        load_options: arguments of crossmae.load that the checkpoint does not contain, such as
            --load_options.num_heads 3 or --load_options.key model_ema.
    """
    require("train", "torchvision", "PIL", "tifffile", *(["matplotlib"] if mixing is not None else []))
    from crossmae.commands.reconstruct import run

    options = load_options or {}
    run(
        images,
        checkpoint,
        masking,
        mask_ratio,
        seed,
        out,
        statistics,
        mixing,
        blocks,
        prediction_ratios,
        norm_pix_loss,
        options,
    )


def convert(path: str, destination: str, to: Target, load_options: dict[str, Any] | None = None) -> None:
    """Write a checkpoint in another library's format.

    Prints what is left out and what the library has to be told to give the model's own features. timm's and Hugging
    Face's models are new folders of config.json and model.safetensors, the others files of torch.save.

    Args:
        to: timm's VisionTransformer; hf, Hugging Face's ViTMAE for MAE and ViT else; torchvision's VisionTransformer;
            detectron2's ViT, the backbone of ViTDet; or release, that of CrossMAE or MAE, decoder included.
        load_options: arguments of crossmae.load that the checkpoint does not contain, such as
            --load_options.num_heads 3, or --load_options.image_size 448 to interpolate its positions.
    """
    from crossmae.commands.convert import run

    run(path, destination, to, load_options or {})


def probe(
    checkpoints: list[str],
    source: str,
    evaluation: str | None = None,
    out: str = "probe",
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    share: float = 1.0,
    workers: int = 4,
    pooling: Literal["average", "class"] = "average",
    attentive: bool = False,
    epochs: int | None = None,
    batch_size: int = 16384,
    base_learning_rate: float = 0.1,
    seed: int = 0,
    load_options: dict[str, Any] | None = None,
) -> None:
    """What frozen features of checkpoints tell of images.

    Classifies held-out images by the five nearest training images and by a linear probe as the papers train it: batch
    normalisation without affine parameters and a linear layer, LARS, no weight decay. Features are computed once, of
    centred images, and kept in the folder. Prints a table of all checkpoints and draws confusion matrices.

    Args:
        source: images with labels: a folder with train/ and val/ and a subfolder for each class in both, WebDataset
            shards, or a bundled set, "digits" or "photographs".
        evaluation: held-out images, where the source has none itself.
        out: folder for table, pictures and features; created if missing.
        image_size: side of the images in pixels; positions are interpolated.
        mean: of each channel of the pixels, where a checkpoint does not tell; found in the images unless given.
        std: standard deviation, likewise.
        share: how much of the height and width of the largest centred part is looked at; 0.875 is usual at 224 pixels.
        workers: processes that load images.
        pooling: the average of the patch tokens, or the class token.
        epochs: passes over the features; by default 90, or more where these are less than 1,000 steps.
        batch_size: features of a step; all of them where there are fewer.
        base_learning_rate: peak for 256 features, in proportion to batch_size.
        seed: of the probes' initialisation and order.
        load_options: arguments of crossmae.load that a checkpoint does not contain, such as --load_options.num_heads 3.
    """
    require("train")
    from crossmae.commands.probe import run
    from crossmae.training.data.config import DataConfig
    from crossmae.training.linear_probe import ProbeRecipe

    data = DataConfig(source, evaluation, mean=mean, std=std, evaluation_share=share, workers=workers)
    recipe = ProbeRecipe(epochs, batch_size, base_learning_rate, seed)
    run(checkpoints, data, out, image_size, pooling, attentive, recipe, load_options or {})
