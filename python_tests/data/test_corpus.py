"""The default corpus and the user's: size, order, cleanness, split, and every kind of bad file."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from glm_ext.data import Split, load_documents, split_documents
from glm_ext.data.stdlib_text import prose_paragraphs


def test_the_default_corpus_is_large_distinct_english(corpus: list[str]) -> None:
    text = "\n".join(corpus)
    assert 1_000_000 < len(text) < 4_000_000
    assert len(corpus) > 300
    letters = sum(character.isalpha() or character == " " for character in text)
    assert letters > 0.9 * len(text)
    assert "\n>>>" not in text and "\n\n" not in text and "  " not in text
    repeated = [line for line, count in Counter(text.split("\n")).items() if count > 1]
    assert not repeated


def test_the_default_corpus_is_the_same_in_every_process(corpus: list[str]) -> None:
    script = "import sys, glm_ext.data as d; sys.stdout.buffer.write('\\0'.join(d.load_documents()).encode())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert other.stdout.decode().split("\0") == corpus


@pytest.mark.parametrize(
    "docstring, paragraphs",
    [
        ("One sentence that goes\nover two lines.", ["One sentence that goes over two lines."]),
        ("Title of it all\n===============", ["Title of it all"]),
        ("See :class:`~io.Base` and ``x`` for *more* text.", ["See io.Base and x for more text."]),
        ('The "assert" statement of it.', ["The assert statement of it."]),
        (
            "- the first point made\n- the second point made",
            ["the first point made", "the second point made"],
        ),
        ("Such as the following:\n\n    if x:\n        return y", ["Such as the following:"]),
        ('if_stmt ::= "if" expr ":" suite\n   ("elif" expr)*', []),
        ("The sum of two numbers:\n>>> add(1, 2)\n3", ["The sum of two numbers:"]),
        ("Too short.", []),
        ("", []),
    ],
)
def test_prose_is_kept_and_code_is_not(docstring: str, paragraphs: list[str]) -> None:
    assert prose_paragraphs(docstring) == paragraphs


def test_the_split_holds_out_documents_never_trained_on(corpus: list[str], split: Split) -> None:
    assert sorted(split.train + split.held_out) == sorted(corpus)
    assert not set("\n".join(split.train).split("\n")) & set("\n".join(split.held_out).split("\n"))
    held_out = sum(map(len, split.held_out)) / sum(map(len, corpus))
    assert 0.02 < held_out < 0.12
    backwards = split_documents(corpus[::-1])
    assert set(backwards.held_out) == set(split.held_out)


def test_one_long_document_is_cut_before_it_is_split() -> None:
    book = "".join(f"This is line {line} of a book of many lines.\n" for line in range(4000))
    train, held_out = split_documents([book])
    assert "".join(sorted(train + held_out, key=book.index)) == book
    assert 0 < sum(map(len, held_out)) < 0.2 * len(book)


def test_at_least_one_document_is_held_out() -> None:
    for seed in range(20):
        train, held_out = split_documents([f"{seed} a", f"{seed} b"])
        assert len(train) == len(held_out) == 1


@pytest.mark.parametrize("documents", [[], ["only one line"], ["twice", "twice"]])
def test_what_cannot_be_split_is_refused(documents: list[str]) -> None:
    with pytest.raises(ValueError, match=r"too small to hold a part of it out.* different documents"):
        split_documents(documents)


def test_a_part_that_is_no_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"held_out: expected a number between 0 and 1, got 1\.5"):
        split_documents(["a", "b"], 1.5)


def test_a_folder_is_read_in_order_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "first"}\n\n{"text": "of\\u2028two", "id": 1}\n', encoding="utf-8"
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_bytes("\ufeffthird é".encode())
    (tmp_path / "notes.md").write_text("not read")
    assert load_documents(tmp_path) == ["first", "of\u2028two", "second", "third é"]
    assert load_documents(tmp_path / "b.txt") == ["second"]


def test_an_empty_file_is_skipped_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "full.jsonl").write_text('{"text": ""}\n{"text": "words"}\n')
    with pytest.warns(UserWarning, match="skipped") as warned:
        assert load_documents(tmp_path) == ["words"]
    said = [str(warning.message) for warning in warned]
    assert said[0].endswith("empty.txt: empty, skipped") and said[1].endswith(
        "full.jsonl:1: empty text, skipped"
    )


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", b"good \xff bad", r"a\.txt: not UTF-8 at byte 5"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "bad"\n', r"a\.jsonl:2: broken JSON: .* at column"),
        (
            "a.jsonl",
            b'{"text": "good"}\n\n{"txt": "bad"}',
            r'a\.jsonl:3: expected an object with a string "text"',
        ),
        ("a.jsonl", b'{"text": "t", "prompt": "p"}', "a.jsonl: has prompts; .* glm-ext prepare"),
        ("a.csv", b"text", r"expected a file of \.txt, .* got suffix '\.csv'"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_documents(tmp_path / name)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_documents(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no text found"):
        load_documents(tmp_path)
