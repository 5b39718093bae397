import csv

import pytest

from glm_ext.tasks.records import read_records


def test_only_ends_of_lines_end_rows(write):
    """Other separators of Unicode, which str.splitlines knows too, are text."""
    path = write("a.csv", 'text,label\n"a\u2028b\x0cc\x85d\ne",1\nf,0\n')
    assert read_records(path) == [
        (2, {"text": "a\u2028b\x0cc\x85d\ne", "label": "1"}),
        (4, {"text": "f", "label": "0"}),
    ]


def test_a_field_may_be_as_long_as_the_file(write):
    before = csv.field_size_limit()
    long = "a" * (before + 1)
    assert read_records(write("a.csv", f"text\n{long}\n")) == [(2, {"text": long})]
    assert csv.field_size_limit() == before
    with pytest.raises(ValueError, match=r"a\.csv, line 2: unexpected end of data"):
        read_records(write("a.csv", f'text\n"{long}'))
    assert csv.field_size_limit() == before


def test_two_columns_of_one_name_are_refused(write):
    with pytest.raises(ValueError, match=r"a\.tsv, line 1: expected columns .*, got 'text' more than once"):
        read_records(write("a.tsv", "text\tlabel\ttext\na\t1\tb\n"))
    unnamed = write("a.csv", "text,,\na,,\n")  # as spreadsheets leave them
    assert read_records(unnamed) == [(2, {"text": "a", "": ""})]


def test_lines_are_counted_from_the_end_of_the_header(write):
    assert read_records(write("a.csv", '"a\nb",c\n1,2\n')) == [(3, {"a\nb": "1", "c": "2"})]


def test_bad_bytes_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: not UTF-8 \(byte 16\)"):
        read_records(tmp_path / "a.jsonl")
