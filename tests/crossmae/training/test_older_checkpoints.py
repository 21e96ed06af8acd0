"""A run goes on from a checkpoint that was written before a field of the configuration was there."""

import json

import pytest
import torch
from safetensors.torch import save_file

import crossmae
from crossmae.training.run_state import _files, verify


def test_a_missing_field_has_its_default(tmp_path):
    model = crossmae.create_model("mae_vit_tiny_patch4")
    config = model.config.to_dict()
    del config["norm_eps"]
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"crossmae_config": json.dumps(config)})
    torch.save({}, tmp_path / "training.pt")
    (tmp_path / "manifest.json").write_text(json.dumps({"step": 1, "score": None, "files": _files(tmp_path)}))
    verify(tmp_path, model.config)
    other = crossmae.create_model("mae_vit_tiny_patch4", norm_eps=1e-5).config
    with pytest.raises(ValueError, match="belongs to another model: norm_eps 1e-06, here 1e-05"):
        verify(tmp_path, other)
