"""The code in docs/porting.md runs as it stands there."""

import warnings

import doc_blocks
import pytest
import torch

import crossmae


@pytest.mark.parametrize(("code", "document"), doc_blocks.blocks_of("docs/porting.md"))
def test_a_block_runs(code, document, tmp_path, monkeypatch):
    for client in ("timm", "transformers", "torchvision"):
        if client in code.partition("import crossmae")[0]:
            pytest.importorskip(client)
    monkeypatch.chdir(tmp_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", crossmae.CheckpointWarning)
        doc_blocks.run(code, document)
