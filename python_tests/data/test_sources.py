"""Documents out of every kind of file, and every kind of bad file: skipped and counted, or named."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data import Document, Piece, Problem, find_files, read_documents
from glm_ext.data.shards import plan_shards

TEXTS = ["One.\nTwo.", "drei \u2028 vier", "五。六"]


def lines(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def read(file: Path) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []
    return list(read_documents(Piece(file), problems.append)), problems


@pytest.mark.parametrize("packed", [False, True])
def test_text_and_json_lines(tmp_path: Path, packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    (tmp_path / f"a.txt{end}").write_bytes(pack(TEXTS[0].encode("utf-8-sig")))
    (tmp_path / f"b.jsonl{end}").write_bytes(pack(b"\xef\xbb\xbf" + lines(TEXTS)))
    (tmp_path / "c.csv").write_text("not read")
    files = find_files(tmp_path)
    assert [file.name for file in files] == [f"a.txt{end}", f"b.jsonl{end}"]
    assert read(files[0]) == ([Document(TEXTS[0])], [])
    assert read(files[1]) == ([Document(text) for text in TEXTS], [])


def test_prompts_are_kept_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "2 + 2 =", "text": " 4"}\n{"prompt": null, "text": "none", "id": 7}\n')
    assert read(file) == ([Document(" 4", "2 + 2 ="), Document("none")], [])


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": ["one", " ", "two", None], "prompt": ["p", None, None, None], "id": range(4)}),
        file,
    )
    documents, problems = read(file)
    assert documents == [Document("one", "p"), Document("two")]
    assert [problem.kind for problem in problems] == ["empty document", "broken record"]
    assert problems[1].message.startswith(f"{file}:4: expected an object")
    file.write_bytes(file.read_bytes()[:-10])
    assert [problem.kind for problem in read(file)[1]] == ["broken file"]
    parquet.write_table(pyarrow.table({"body": ["one"]}), file)
    assert 'expected a column "text", got body' in read(file)[1][0].message


def test_a_broken_page_of_parquet_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    texts = [f"{letter * 200}" for letter in "abcdef"]
    parquet.write_table(
        pyarrow.table({"text": texts}), file, row_group_size=2, compression="gzip", use_dictionary=False
    )
    column = parquet.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 20 : end - 8] = b"\xff" * 12
    file.write_bytes(data)
    documents, [problem] = read(file)
    assert [document.text[0] for document in documents] == ["a", "b", "e", "f"]
    assert problem.message.startswith(f"{file}:3: rows 3 to 4 cannot be read: ")


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    texts = pyarrow.array([b"good", b"\xff", b"too"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), file)
    documents, [problem] = read(file)
    assert documents == [Document("good"), Document("too")]
    assert problem.kind == "bad UTF-8" and problem.message.startswith(f"{file}:2: not UTF-8")


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"needs pyarrow; .*glm_ext\[data\]"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "good", "kind", "said"),
    [
        (
            b'{"text": "a"}\n{"text": \n{"text": "b"}',
            "ab",
            "broken JSON",
            r":2: broken JSON: .* at column 9",
        ),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', "a", "bad UTF-8", r":3: not UTF-8 at byte 10 of the line"),
        (b'{"text": "\\ud800"}\n{"text": "b"}', "b", "bad UTF-8", r":1: half a surrogate pair"),
        (
            b'{"text": "a"}\n{"n": ' + b"1" * 5000 + b'}\n{"text": "b"}',
            "ab",
            "broken JSON",
            r":2: JSON that cannot be read: Exceeds the limit",
        ),
        (
            b'{"text": "a"}\n' + b"[" * 100_000 + b'\n{"text": "b"}',
            "ab",
            "broken JSON",
            r":2: JSON that cannot be read: maximum recursion depth",
        ),
        (b'{"text": 3}\n["text"]\n', "", "broken record", r':1: expected an object with a string "text"'),
        (b'{"text": "a", "prompt": 3}', "", "broken record", r":1: expected an object"),
        (b'{"text": ""}\n{"text": "b"}', "b", "empty document", r":1: empty text, skipped"),
        (b'{"prompt": "p", "text": " "}', "", "empty document", r":1: empty text, skipped"),
        (b"\n \n", "", "empty file", ": empty, skipped"),
        (b"", "", "empty file", ": empty, skipped"),
    ],
)
def test_bad_lines_are_named_and_the_rest_is_read(
    tmp_path: Path, content: bytes, good: str, kind: str, said: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    documents, problems = read(file)
    assert [document.text for document in documents] == list(good)
    assert problems[0].kind == kind and problems[0].empty == kind.startswith("empty")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problems[0].message)


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("a.txt", b"good \xff bad", "bad UTF-8", "a.txt: not UTF-8 at byte 5"),
        ("a.txt", b" \n", "empty file", "a.txt: empty, skipped"),
        (
            "a.txt.gz",
            gzip.compress(b"words " * 50, mtime=0)[:-9],
            "broken file",
            "a.txt.gz: broken or cut off",
        ),
        ("a.txt.gz", b"no gzip", "broken file", "a.txt.gz: broken or cut off"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "empty file", "a.txt.gz: empty, skipped"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, kind: str, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    documents, [problem] = read(tmp_path / name)
    assert documents == [] and problem.kind == kind and said in problem.message


def test_lines_before_the_cut_of_a_packed_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(lines([f"{i} words" * 40 for i in range(9000)]))[:-4000])
    documents, [problem] = read(file)
    assert problem.kind == "broken file" and 0 < len(documents) < 9000


def test_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        find_files(tmp_path / "nowhere")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"expected a file of .*\.parquet, got suffix '\.csv'"):
        find_files(tmp_path / "a.csv")


@given(
    contents=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8), max_size=5
    ),
    shard_bytes=st.integers(1, 300),
)
def test_shards_hold_every_document_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[str]], shard_bytes: int
) -> None:
    """Wherever the bytes of a file are cut."""
    folder = tmp_path_factory.mktemp("shards")
    for number, texts in enumerate(contents):
        (folder / f"{number}.jsonl").write_bytes(lines(texts))
    shards = plan_shards(find_files(folder), shard_bytes)
    found = [
        document.text
        for shard in shards
        for piece in shard
        for document in read_documents(piece, lambda problem: None)
    ]
    assert found == [text for texts in contents for text in texts if text.strip()]


def test_a_bad_line_of_a_later_piece_has_its_number_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(["words"] * 100) + b"{\n")
    [*_, [last]] = plan_shards([file], 200)
    assert last.begin > 0
    problems: list[Problem] = []
    assert list(read_documents(last, problems.append))
    assert problems[0].message.startswith(f"{file}:101: broken JSON")
