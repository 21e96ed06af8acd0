"""Whether a checkpoint's encoder is that of the model which a recipe names."""

from crossmae.model.config import Config

# What models of a name have in common.
_SHAPE = ("encoder_width", "encoder_depth", "encoder_heads", "patch_size", "mlp_ratio")


def refuse_another(checkpoint: str | None, model: str | None, named: Config, found: Config) -> None:
    """Raise ValueError if a checkpoint's encoder has another shape than that of the named model."""
    other = [
        f"{name} {getattr(found, name)} and not {getattr(named, name)}"
        for name in _SHAPE
        if getattr(found, name) != getattr(named, name)
    ]
    if other:
        raise ValueError(f"{checkpoint} is no {model}: it has {', '.join(other)}; model=null accepts it")
