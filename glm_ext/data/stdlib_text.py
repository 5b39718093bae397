"""The default corpus, the English inside every Python: language reference and library docstrings.

Sources are parsed, never imported, so that nothing of theirs runs. Documents come in a fixed order; a
paragraph that occurs twice (most of the reference's topics quote each other) is kept once, so that held-out
text is not also training text.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# Not the library's own prose: other people's packages, tests and their data, and what only some installations
# have.
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "pydoc_data",
    "__pycache__",
}

_UNDERLINE = re.compile(r"^\W{3,}$")  # "=====" below a heading
_BULLET = re.compile(r"^(?:[*+•-]|\d+\.)\s+")
_WORD = re.compile(r"^[(\"'`*]*[A-Za-z]+(?:['-][A-Za-z]+)*[)\"'`*]*[.,;:!?]*[)\"']*$")
_MARKUP = (
    (re.compile(r":[a-z:]+:`~?([^`]*)`"), r"\1"),  # :class:`list` -> list
    (re.compile(r"`+([^`']*)[`']+"), r"\1"),  # ``x``, `x', `x` -> x
    (re.compile(r"\*{1,2}(\w[^*\n]*)\*{1,2}"), r"\1"),  # *x*, **x** -> x
    (re.compile(r'"([^"\s]+)"'), r"\1"),  # "x" -> x: how the reference writes code
    (re.compile(r"::$"), ":"),
    (re.compile(r"\s+"), " "),
)


def default_documents() -> list[str]:
    """Documents in a fixed order: the topics of the language reference, then the modules of the library.

    A document is its paragraphs, a line each. FileNotFoundError if this Python carries no sources.
    """
    documents = []
    seen: set[str] = set()
    for text in (*_reference_topics(), *_module_docstrings()):
        paragraphs = []
        for paragraph in prose_paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        if paragraphs:
            documents.append("\n".join(paragraphs))
    if not documents:
        raise FileNotFoundError(
            f"no Python sources below {_library_root()}: this Python has no text to train on; "
            "give a corpus with --data PATH"
        )
    return documents


def prose_paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring that read as English, a line each, without markup, code and tables.

    >>> prose_paragraphs('''Return the *sum* of the two
    ... given numbers, as in ``a + b``.
    ...
    ...     >>> add(1, 2)
    ...     3
    ... ''')
    ['Return the sum of the two given numbers, as in a + b.']
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines: list[str] = []
        for line in block.split("\n"):
            if line.lstrip().startswith((">>>", "$ ", "% ")):
                break  # what follows is output
            if _UNDERLINE.match(line.strip()):
                continue
            if _BULLET.match(line.strip()) and lines:
                paragraphs.append(lines)
                lines = []
            lines.append(line)
        paragraphs.append(lines)
    return [prose for lines in paragraphs if (prose := _as_prose(lines)) is not None]


def _as_prose(lines: list[str]) -> str | None:
    indented = all(line.startswith(" ") for line in lines)
    text = _BULLET.sub("", " ".join(line.strip() for line in lines))
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = text.strip()
    pieces = text.split(" ")
    words = sum(1 for piece in pieces if _WORD.match(piece))
    # Code is mostly indented and does not end in a full stop; tables and grammar have few words.
    if len(pieces) < 4 or words < 0.75 * len(pieces) or (indented and text[-1] not in ".!?"):
        return None
    return text


def _library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _reference_topics() -> Iterator[str]:
    if importlib.util.find_spec("pydoc_data") is None:  # left out by some distributions
        return
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _module_docstrings() -> Iterator[str]:
    root = _library_root()
    files = (file.relative_to(root) for file in root.rglob("*.py"))
    for file in sorted(files, key=lambda file: file.as_posix()):
        if not _SKIPPED_FOLDERS.isdisjoint(file.parts[:-1]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # e.g. an invalid escape in somebody else's docstring
                module = ast.parse((root / file).read_bytes())
        except (SyntaxError, ValueError):  # a template, or a file of another Python
            continue
        yield "\n\n".join(_docstrings(module))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module, in the order of its lines."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield inspect.cleandoc(text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _docstrings(child)
