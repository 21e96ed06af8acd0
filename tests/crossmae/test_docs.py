"""Code in documents runs as it stands there."""

import doc_blocks
import pytest


@pytest.mark.parametrize(("code", "document"), doc_blocks.blocks_of("docs/decoder.md"))
def test_a_block_runs(code, document):
    doc_blocks.run(code, document)


def test_a_block_that_fails_fails():
    with pytest.raises(AssertionError):
        doc_blocks.run("assert 1 + 1 == 3", "a document")
    with pytest.raises(ModuleNotFoundError):
        doc_blocks.run("import no_such_module", "a document")
