"""The documentation is true: its Python runs, its links lead somewhere, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(
    r"`((?:csrc|glm_ext|python_tests|benchmarks|scripts|docs|cmake)/[\w./]+|[\w.]+\.(?:md|txt|toml))`"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLANNED = re.compile(r"rms_norm|exp2\.cpp")  # what the recipes tell the reader to write

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda path: path.name
)
def test_python_runs(page: Path) -> None:
    """The blocks of a page, top to bottom, share their names."""
    text = page.read_text()
    names: dict[str, object] = {}
    dtype = torch.get_default_dtype()
    try:
        for block in FENCED.finditer(text):
            if block[1] == "python":
                line = text.count("\n", 0, block.start(2))
                exec(compile("\n" * line + block[2], str(page), "exec"), names)
    finally:
        torch.set_default_dtype(dtype)


@pages
def test_named_files_exist(page: Path) -> None:
    named = {name for name in NAMED_FILE.findall(page.read_text()) if not PLANNED.search(name)}
    assert not sorted(name for name in named if not (ROOT / name).exists())


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """GitHub's anchors: the heading in lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
