import pytest

from glm_ext.tasks.records import read_records


def test_only_ends_of_lines_end_rows(write):
    """Other separators of Unicode, which str.splitlines knows too, are text."""
    path = write("a.csv", 'text,label\n"a\u2028b\x0cc\x85d\ne",1\nf,0\n')
    assert read_records(path) == [
        (2, {"text": "a\u2028b\x0cc\x85d\ne", "label": "1"}),
        (4, {"text": "f", "label": "0"}),
    ]


def test_bad_bytes_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: not UTF-8 \(byte 16\)"):
        read_records(tmp_path / "a.jsonl")
