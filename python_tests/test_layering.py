"""The floors of the project: what each part may include or import. Nothing points up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folder of csrc -> the folders that it may include; each may include itself.
CPP = {
    "core": set[str](),
    "ops": {"core"},
    "cpu": {"ops", "core"},
    "cuda": {"ops", "core"},
    "binding": {"cpu", "cuda", "ops", "core"},
    "simt": {
        "binding",
        "cpu",
        "cuda",
        "ops",
        "core",
    },  # a second module, with the CUDA kernels compiled for the host
    "tests": {"cpu", "ops", "core"},
}
KNOWS_PYTHON = ("binding", "simt")
# Where the CUDA sources are compiled for the host, their instructions get host bodies: doors upwards.
DOORS = {("csrc/cuda/ptx.cuh", "simt/ptx.h"), ("csrc/cuda/wgmma.cuh", "simt/wgmma.h")}

# Part of glm_ext -> the parts that it may import; each may import itself. "" is glm_ext/__init__.py.
PYTHON = {
    "_C": set[str](),
    "ops": {"_C"},
    "branches": {"ops"},
    "cache": {"ops"},
    "nn": {"ops", "branches", "cache"},
    "config": set[str](),
    "batch": set[str](),
    "data": {"batch", "extras"},
    "model": {"nn", "cache", "config", "batch", "branches", "ops"},
    "generate": {"model", "nn", "cache", "config", "data"},
    "interop": {"model", "config"},
    "info": {"_C", "ops"},
    "extras": set[str](),
    "spelling": set[str](),
    "tasks": {"generate", "model", "branches", "data", "config", "batch", "extras", "spelling"},
    "train": {
        "tasks",
        "model",
        "nn",
        "data",
        "config",
        "batch",
        "generate",
        "info",
        "extras",
        "_C",
        "spelling",
    },
    "cli": {
        *("train", "tasks", "generate", "interop", "model", "data", "config", "batch", "info", "ops", "nn"),
        "extras",
        "spelling",
    },
    "": {"_C", "ops", "nn", "cache", "config", "batch", "model", "generate", "interop"},
}


def cpp_violations(root: Path) -> Iterator[str]:
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        folder = path.relative_to(root / "csrc").parts[0]
        for line in path.read_text().splitlines():
            include = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if include is None:
                continue
            kind, target = include.groups()
            where = f"{path.relative_to(root)} includes {target}"
            if (path.relative_to(root).as_posix(), target) in DOORS:
                continue
            if re.match(r"(torch|ATen|c10)/", target):
                yield f"{where}: nothing under csrc knows torch"
            elif target.startswith("pybind11/") and folder not in KNOWS_PYTHON:
                yield f"{where}: only {' and '.join(KNOWS_PYTHON)} know Python"
            elif kind == '"' and target.split("/")[0] not in {folder, *CPP[folder]}:
                yield f"{where}: {folder} may include {', '.join(sorted(CPP[folder])) or 'nothing else'}"


def imported_modules(path: Path, package: list[str]) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; `package` holds the parts of its package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def python_violations(root: Path) -> Iterator[str]:
    for path in sorted((root / "glm_ext").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        here = {"__init__": "", "__main__": "cli"}.get(parts[1], parts[1])
        for module in imported_modules(path, list(parts[:-1])):
            target = module.split(".")[1] if "." in module else ""
            if not module.startswith("glm_ext.") or target == here:
                continue
            if target not in PYTHON:  # a name of glm_ext/__init__.py, which imports nearly everything
                yield f"{path.relative_to(root)} imports {module}: import it from the module that defines it"
            elif target not in PYTHON[here]:
                allowed = ", ".join(sorted(PYTHON[here])) or "nothing else"
                yield f"{path.relative_to(root)} imports {module}: {here or 'glm_ext'} may import {allowed}"


def test_includes_point_down() -> None:
    assert list(cpp_violations(ROOT)) == []


def test_imports_point_down() -> None:
    assert list(python_violations(ROOT)) == []


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("csrc/core/x.h", '#include "cpu/simd.h"'),
        ("csrc/ops/x.h", '#include "binding/view.h"'),
        ("csrc/cpu/attention/x.cpp", '#include "cuda/check.cuh"'),
        ("csrc/cuda/x.cu", "#include <torch/extension.h>"),
        ("csrc/binding/x.cpp", "#include <ATen/ATen.h>"),
        ("csrc/cpu/x.cpp", "#include <pybind11/pybind11.h>"),
    ],
)
def test_planted_includes_are_caught(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, text)
    assert len(list(cpp_violations(tmp_path))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glm_ext/ops/x.py", "from glm_ext.nn import SpanAttention"),
        ("glm_ext/ops/x.py", "from ..nn import SpanAttention"),
        ("glm_ext/ops/x.py", "def f():\n    import glm_ext.model"),
        ("glm_ext/nn.py", "from . import model"),
        ("glm_ext/data/x.py", "from glm_ext import config"),
        ("glm_ext/data/objectives/x.py", "from ...train import optimizer"),
        ("glm_ext/model.py", "from glm_ext import GLM"),
        ("glm_ext/train/x.py", "from glm_ext.cli import main"),
    ],
)
def test_planted_imports_are_caught(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, text)
    assert len(list(python_violations(tmp_path))) == 1


def test_imports_that_point_down_are_not(tmp_path: Path) -> None:
    write(
        tmp_path,
        "glm_ext/ops/x.py",
        "import torch\nfrom glm_ext import _C\nfrom . import reference\nfrom .y import z",
    )
    write(tmp_path, "csrc/cpu/x.h", '#include <vector>\n#include "core/check.h"\n#include "cpu/simd.h"')
    assert not list(python_violations(tmp_path))
    assert not list(cpp_violations(tmp_path))
