"""A model in another library's format, and writing that library's files."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Never

import torch
from torch import Tensor

from crossmae.files import new_folder, replacing, require_folder_of, require_new_folder

Target = Literal["timm", "hf", "torchvision", "detectron2", "release"]

# Targets that store a folder, with a configuration beside the tensors; the others store one file.
_FOLDERS = ("timm", "hf")


@dataclass(frozen=True, eq=False)
class Exported:
    """A model in another library's format.

    Args:
        target: the library.
        state: its state dict, on the CPU, shared with nothing.
        config: for building its model: the content of ``config.json`` (timm, Hugging Face), else constructor arguments.
        notes: what was left out and what else the library needs to know, a sentence each.
    """

    target: Target
    state: dict[str, Tensor]
    config: dict[str, Any]
    notes: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file or folder that the library opens, whole or not at all.

        For timm (``timm.create_model("local-dir:PATH", pretrained=True)``) and Hugging Face (``from_pretrained(PATH)``)
        that is a new folder with ``config.json`` and ``model.safetensors``; else a file by ``torch.save``:
        torchvision's state dict, detectron2's detector checkpoint, or a release's checkpoint.

        Raises:
            ValueError: if the library's file cannot express what the model needs.
            OSError: if the path is not writable, or a folder is not empty.
        """
        if self.target in _FOLDERS:
            self._save_folder(path)
            return
        content: dict[str, Any] = {"model": self.state}
        if self.target == "torchvision":
            content = dict(self.state)
        elif self.target == "detectron2":
            content = {"model": {f"backbone.net.{name}": tensor for name, tensor in self.state.items()}}
        else:
            content["args"] = {**self.config, "input_size": self.config["img_size"]}  # the scripts' name
        with replacing(path) as beside:
            torch.save(content, beside)

    def _save_folder(self, path: str | os.PathLike[str]) -> None:
        from safetensors.torch import save_file

        def refuse(value: object) -> Never:
            raise ValueError(f"{self.target}'s config.json cannot hold {value}; build its model with config instead")

        config = json.dumps(self.config, indent=2, default=refuse)
        with new_folder(path) as folder:
            save_file(self.state, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(config, "utf-8")


def require_place(target: Target, path: str | os.PathLike[str]) -> None:
    """Raise OSError, before work starts, if ``Exported.save`` could not write."""
    (require_new_folder if target in _FOLDERS else require_folder_of)(Path(path))
