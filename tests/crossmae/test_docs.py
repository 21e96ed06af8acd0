"""Code in documents runs as it stands there."""

import doc_blocks
import pytest

BLOCKS = [block for document in ("docs/decoder.md", "docs/porting.md") for block in doc_blocks.blocks_of(document)]


@pytest.mark.parametrize(("code", "document"), BLOCKS)
def test_a_block_runs(code, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doc_blocks.run(code, document)


def test_a_block_that_fails_fails():
    with pytest.raises(AssertionError):
        doc_blocks.run("assert 1 + 1 == 3", "a document")
    with pytest.raises(ModuleNotFoundError):
        doc_blocks.run("import no_such_module", "a document")
