"""Code in documents runs as it stands there."""

import re
import tomllib
from pathlib import Path

import doc_blocks
import pytest
import yaml

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


def test_the_version_is_the_same_everywhere():
    root = Path(__file__).parents[2]
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))["version"] == version
    assert re.search(r"^## \[(.*?)\]", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version
