"""Infer the configuration of a model whose file does not store one; ask for or assume the rest."""

import argparse
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crossmae.checkpoint import huggingface, torchvision
from crossmae.checkpoint.messages import ArgumentError, first_few
from crossmae.checkpoint.release import FIELDS, MAPS, feature_maps, release_name
from crossmae.checkpoint.shapes import told_by_tensors
from crossmae.checkpoint.wrappers import Layout, StateDict
from crossmae.model.config import Config, usual_heads
from crossmae.model.values import as_tuple, pair

# Heads that a downstream task adds to an encoder.
_ON_TOP = ("head.", "heads.", "fc_norm.", "attn_pool.", "classifier.", "pooler.")
_RELEASE_NAMES = {field: name for name, field in FIELDS.items()}


def named_as_released(state: StateDict) -> dict[str, Tensor]:
    """A model's tensors under the releases' names; tensors that are not ours keep their names."""
    if state.layout == "huggingface":
        return huggingface.renamed(state.tensors)
    if state.layout == "torchvision":
        return {torchvision.NAMES.read(name): tensor for name, tensor in state.tensors.items()}
    if state.layout != "ours":
        return state.tensors
    named = {}
    for name, tensor in state.tensors.items():
        try:
            named[release_name(name)] = tensor
        except ValueError:
            named[name] = tensor
    return named


def told_by_training(content: Any) -> dict[str, Any]:
    """Settings from the training script's arguments saved beside the weights, under the releases' names.

    The releases' scripts and many others store them under ``args``, Lightning under ``hyper_parameters``.
    """
    named = content if isinstance(content, Mapping) else {}
    arguments = named.get("args", named.get("hyper_parameters"))
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, Mapping):
        return {}
    told = {name: arguments[name] for name in ("norm_pix_loss", "use_input") if isinstance(arguments.get(name), bool)}
    # ``export`` writes these constructor arguments beside those of the script.
    counts = {"num_heads": "num_heads", "decoder_num_heads": "decoder_num_heads", "input_size": "img_size"}
    told |= {counts[name]: value for name, value in arguments.items() if name in counts and type(value) is int}
    blocks = arguments.get("use_fm")
    if isinstance(blocks, list | tuple) and all(isinstance(block, int) for block in blocks):
        told["use_fm"] = tuple(blocks)
    return told


def configuration(
    file: Path,
    tensors: Mapping[str, Tensor],
    layout: Layout | None,
    trained: Mapping[str, Any],
    arguments: Mapping[str, Any],
    said: list[str],
) -> Config:
    """Infer a model's configuration from its tensors and the settings saved with them.

    Args:
        file: named in messages.
        tensors: under the releases' names.
        layout: of the file.
        trained: see ``told_by_training``.
        arguments: of ``load`` that describe the model.
        said: receives a note for everything assumed or ignored.

    Raises:
        TypeError: if an argument does not exist.
        ValueError: if the tensors are not a model, two sources disagree, or a setting can be neither inferred nor
            assumed.
    """
    of_fields, of_maps = _translated(arguments)
    # Names as the file spells them; load's own image_size argument is the size to interpolate to.
    words = {**({} if layout == "ours" else _RELEASE_NAMES), "image_size": "img_size"}
    told = Told(file)
    told.add("its tensors", told_by_tensors(tensors, file))
    if layout == "huggingface":
        told.add("its config.json", huggingface.told_by_config(file.parent, tensors) or {})
    of_training, _ = _translated({name: value for name, value in trained.items() if name in FIELDS})
    if "image_size" in told or not _fits(of_training.get("image_size"), told, tensors["pos_embed"]):
        of_training.pop("image_size", None)
    if told["decoder"] is None:
        of_training.pop("decoder_heads", None)
    told.add("its args", of_training)
    maps = _maps(told["encoder_depth"], tensors.get("wfm.linear.weight"), trained, of_maps, file)
    if maps is not None:
        told.add("its mixing weights", {"feature_maps": maps})
    if told["decoder"] is None:
        if told["feature_maps"] is not None:
            said.append("there is no final norm, so encode() returns the last block's output as it is")
        unused = [name for name in of_fields if name.startswith("decoder_") or name == "normalize_targets"]
        of_fields = {name: value for name, value in of_fields.items() if name not in unused}
        if unused:
            said.append(f"ignored, as there is no decoder: {first_few([words.get(name, name) for name in unused])}")
    told.add("the arguments", of_fields)

    needed = huggingface.needed(told["decoder"]) if layout == "huggingface" else ()
    lacking = [words.get(field, field) for field in needed if field not in told]
    if lacking:
        raise ValueError(
            f"{file} has Hugging Face's layout but no config.json beside it, which holds the other settings: put it "
            f"there, or pass {'=, '.join(lacking)}="
        )
    assumed, asked = _assumed(told, tensors, layout, words)
    if asked:
        raise ValueError(f"{file} does not say {'; nor '.join(asked)}")
    if assumed:
        values = ", ".join(f"{words.get(field, field)}={value!r}" for field, value in assumed.items())
        said.append(f"not in the file, so assumed unless passed to load: {values}")
    if told["decoder"] is None and said:
        said.insert(0, "this is an encoder without a decoder")
    return Config.from_dict({**told, **assumed})


def on_top(tensors: Mapping[str, Tensor], said: list[str]) -> set[str]:
    """Names of the tensors that a downstream task added to an encoder; they are left out."""
    names = sorted(name for name in tensors if name.startswith(_ON_TOP))
    if names:
        said.append(f"left out, as part of a task's head: {first_few(names)}")
    return set(names)


class Told(dict[str, Any]):
    """Settings by name, each from one source or from several that agree."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file, self._sources = file, dict[str, str]()

    def add(self, source: str, values: Mapping[str, Any]) -> None:
        """Add the settings of another source; raises ValueError if an earlier one disagrees."""
        for name, value in values.items():
            if name in self and self[name] != value:
                raise ValueError(
                    f"{self._file}: {name} is {self[name]!r} according to {self._sources[name]}, but {value!r} "
                    f"according to {source}"
                )
            self[name] = value
            self._sources.setdefault(name, source)


def _translated(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments in either spelling as fields of ``Config``, and those that choose maps as the releases do."""
    there_are = {*FIELDS, *MAPS, *Config.__dataclass_fields__} - {"image_size"}
    unknown = [name for name in arguments if name not in there_are]
    if unknown:
        raise ArgumentError(f"load: no argument {', '.join(unknown)}; choose from {', '.join(sorted(there_are))}")
    maps, translated = dict[str, Any](), dict[str, Any]()
    spelling: dict[str, str] = {}
    for name, value in arguments.items():
        plain = as_tuple(value)
        if name in MAPS:
            maps[name] = plain
            continue
        field = FIELDS.get(name, name)
        plain = pair(plain) if name == "img_size" else plain
        if translated.setdefault(field, plain) != plain:
            first = spelling[field]
            raise ValueError(
                f"load: {first}={arguments[first]!r} and {name}={value!r} disagree: both are the same setting"
            )
        spelling[field] = name
    return translated, maps


def _fits(image_size: tuple[int, int] | None, told: Mapping[str, Any], positions: Tensor) -> bool:
    """Whether an image of this size has as many patches as there are position embeddings."""
    if image_size is None:
        return False
    height, width = pair(told["patch_size"])
    return bool(image_size[0] // height * (image_size[1] // width) == positions.shape[1] - told["class_tokens"])


def _maps(
    depth: int, mixing: Tensor | None, trained: Mapping[str, Any], given: Mapping[str, Any], file: Path
) -> tuple[int, ...] | None:
    """``feature_maps``, if the mixing weights and the releases' arguments for them determine it."""
    choice = Told(file)
    choice.add("its tensors", {"weight_fm": mixing is not None})
    if mixing is None:
        choice.add("its tensors", {"use_fm": (-1,), "use_input": False})
    else:
        choice.add("its args", {name: trained[name] for name in ("use_fm", "use_input") if name in trained})
    choice.add("the arguments", given)
    if mixing is None:
        return None
    try:
        return feature_maps(depth, mixing.shape[-1], choice.get("use_fm"), choice.get("use_input"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _assumed(
    told: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout | None, words: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Missing fields that have a usual value, and descriptions of those that must be asked for."""
    asked = []
    parts: list[Literal["encoder", "decoder"]] = ["encoder"] if told["decoder"] is None else ["encoder", "decoder"]
    assumed: dict[str, Any] = {
        f"{part}_heads": usual_heads(part, told[f"{part}_width"]) for part in parts if f"{part}_heads" not in told
    }
    unusual = [field for field, heads in assumed.items() if heads is None]
    if unusual:
        widths = ", ".join(f"{part} width {told[f'{part}_width']}" for part in parts)
        asked.append(
            f"how many attention heads it has ({widths}); "
            f"pass {' and '.join(f'{words.get(field, field)}=' for field in unusual)}"
        )
    if "image_size" not in told:
        rows = tensors["pos_embed"].shape[1]
        patches = rows - told["class_tokens"]
        side = isqrt(patches)
        if side * side == patches:
            height, width = pair(told["patch_size"])
            assumed["image_size"] = (side * height, side * width)
        else:
            # timm's no_embed_class adds position embeddings to the patches alone.
            other = f" (or its {rows} position embeddings have no row for the class token, which is not supported)"
            other *= isqrt(rows) ** 2 == rows
            asked.append(
                f"how its {patches} patches are arranged{other}; pass img_size=(height, width), the size it was "
                "trained on"
            )
    if "feature_maps" not in told:
        columns = tensors["wfm.linear.weight"].shape[-1]
        names = "feature_maps=" if layout == "ours" else "use_fm= and use_input="
        asked.append(f"which {columns} feature maps of its encoder it mixes; pass {names}")
    if told["decoder"] is None and "norm_eps" not in told:
        # MAE's and timm's value; other encoders use 1e-5 or 1e-12.
        assumed["norm_eps"] = Config.norm_eps
    if told["decoder"] is not None and "normalize_targets" not in told:
        # CrossMAE's release always trains with it; MAE's released models with a decoder, meant for
        # visualization, were trained without.
        assumed["normalize_targets"] = told["decoder"] == "crossmae" or layout == "ours"
    if told["decoder"] is not None and layout == "ours":
        # These differ between model families, and no tensor shows them.
        usual = {"norm_eps": Config.norm_eps, "pixel_order": Config.pixel_order}
        assumed |= {name: value for name, value in usual.items() if name not in told}
    return assumed, asked
