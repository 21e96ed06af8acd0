"""Code in documents runs as it stands there."""

import re
import tomllib

import doc_blocks
import pytest
import yaml

ROOT = doc_blocks.ROOT
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")))
BLOCKS = [block for page in PAGES for block in doc_blocks.blocks_of(page)]


@pytest.mark.parametrize(("code", "document"), BLOCKS)
def test_a_block_runs(code, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doc_blocks.run(code, document)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To files, and to headings of pages; addresses elsewhere are not followed."""
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    lost = [link for link in links if not _is_there((ROOT / page).parent, link, ROOT / page)]
    assert lost == []


def _is_there(folder, link, page):
    path, _, heading = link.partition("#")
    target = folder / path if path else page
    if not target.exists() or not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_a_block_that_fails_fails():
    with pytest.raises(AssertionError):
        doc_blocks.run("assert 1 + 1 == 3", "a document")
    with pytest.raises(ModuleNotFoundError):
        doc_blocks.run("import no_such_module", "a document")


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    assert re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version


def test_what_holds_each_promise_is_there():
    """Files named in CONTRIBUTING.md's table, whose patterns are relative to tests/."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("which promise")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| ([^|]*) \|$", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+\.py)`", row)]
    assert len(named) > 20
    assert [name for name in named if not any((ROOT / "tests").glob(name))] == []
