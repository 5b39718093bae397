import re

import pytest

from glm_ext.cli import main
from glm_ext.cli import show as module

from ..train import worked_sample as worked


@pytest.fixture
def show(text_folder, tmp_path, capsys):
    """show(options...) -> (exit code, what was printed); the picture is tmp_path / sample.png."""

    def run(*options):
        code = main(
            ["show", "--path", str(text_folder), "--out", str(tmp_path / "sample.png"), *map(str, options)]
        )
        printed = capsys.readouterr()
        return code, printed.out if code == 0 else printed.err

    return run


def rows(printed):
    """(input, place, in span, what it sees, target) of every token."""
    found = re.findall(r"^(\S+) +(\d+) +(\d+)  ([■·]+) *(\S*) *$", printed, re.MULTILINE)
    return [(word, int(place), int(within), sees, target) for word, place, within, sees, target in found]


@pytest.mark.parametrize(
    ("objective", "mask"),
    [("token", "[MASK]"), ("single", "[MASK]"), ("sentence", "[sMASK]"), ("document", "[gMASK]")],
)
def test_a_sample_is_text_and_a_picture(show, tmp_path, objective, mask):
    code, printed = show("--objective", objective, "--seed", 3, "--ratio", 0.3)
    assert code == 0 and (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    table = rows(printed)
    size, a = len(table), next(place for place, row in enumerate(table) if row[2] > 0)
    assert any(row[0] == mask for row in table[:a])
    assert [row[1:3] for row in table[:a]] == [(place, 0) for place in range(a)]
    for place, (word, span_place, within, sees, target) in enumerate(table):
        if place >= a:  # in a span: it stands at its mask, and counts from 1
            assert table[span_place][0] == mask and span_place < a
            before = (span_place, within - 1)
            assert within == 1 or table[place - 1][1:3] == before
        end = max(a, place + 1)
        assert sees == "■" * end + "·" * (size - end)
        assert bool(target) == (place >= a)
        assert (word == "‹sop›") == (place >= a and within == 1)


def test_the_rows_of_a_known_sample(capsys):
    module.print_sample(worked.worked_view())
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "the old [cat]2 saw [a dog]1 ‹eos›"
    heading = next(line.split() for line in printed.splitlines() if "place" in line)
    assert heading == ["input", "place", "in", "span", "sees", "target"]
    targets = [word if counted else "" for word, counted in zip(worked.TARGETS, worked.COUNTED, strict=True)]
    columns = (worked.INPUTS, worked.PLACES, worked.IN_SPAN, worked.SEES, targets)
    assert rows(printed) == list(zip(*columns, strict=True))


def test_a_text_of_ones_own(show):
    code, printed = show("--text", "The cat sees another dog near the old house.", "--seed", 1)
    assert code == 0
    words = re.sub(r"\]\d|\[(?!CLS)", " ", printed.splitlines()[0]).split()
    assert words == [
        "[CLS]",
        *["The", "cat", "sees", "another", "dog", "near", "the", "old", "house", "."],
        "‹eos›",
    ]
    assert show("--text", "The cat sees another dog near the old house.", "--seed", 1)[1] == printed
    assert show("--text", "The cat sees another dog near the old house.", "--seed", 2)[1] != printed


def test_special_tokens_in_a_text_are_plain_text(show):
    code, printed = show(
        "--text", "The cat [MASK] sees another <|endoftext|> dog.", "--objective", "document"
    )
    assert code == 0
    assert sum(row[0].endswith("MASK]") for row in rows(printed)) == 1


def test_a_piece_of_a_token_store(show, text_folder, tmp_path):
    store = ["prepare", str(text_folder), "--out", str(tmp_path / "store"), "--tokenizer", "train"]
    assert main([*store, "--vocab_size", "300", "--sentences", "marks", "--workers", "1"]) == 0
    code, printed = show("--path", tmp_path / "store", "--objective", "sentence")
    assert code == 0 and any(row[0] == "[sMASK]" for row in rows(printed))
    code, printed = show("--path", tmp_path / "store", "--run", tmp_path)
    assert code == 2 and "has a tokenizer of its own; leave out --run" in printed


def test_a_text_and_a_tokenizer_need_no_corpus(show, finished, monkeypatch):
    monkeypatch.setattr(module, "load_documents", lambda path: pytest.fail("read without need"))
    assert show("--text", "The cat sees another dog.", "--run", finished, "--ratio", 0.3)[0] == 0


def test_odd_characters_have_labels(show):
    assert show("--text", "A tab\there, a line\nthere, 好的 and the cat.", "--objective", "single")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratio", "1.5"], "ratio: expected a number between 0 and 1"),
        (["--out", "/no/such/folder/x.png"], "out: expected a file in a folder that exists"),
        (["--out", "/"], "out: expected a file in a folder that exists"),
        (["--text", "a \udcff b"], "not UTF-8 at character 2"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(show, monkeypatch, options, message):
    monkeypatch.setattr(module, "load_documents", lambda path: pytest.fail("read first"))
    code, said = show(*options)
    assert code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "tokens"], "objective: expected one of token, document, sentence, single"),
        (["--length", "7"], "length: expected 8 to 64 tokens, got 7"),
        (["--seed", "-1"], "seed: expected 0 or more"),
        (["--ration", "0.5"], "did you mean 'ratio'"),
        (["--text", "cat"], "hold no blank at ratio 0.15; give a longer one"),
        (["--text", "long " * 100], "a picture holds 64"),
        (["--run", "/no/such/run"], "/no/such/run"),
        (["--path", "/no/such/text"], "/no/such/text"),
    ],
)
def test_wrong_options_are_one_line(show, options, message):
    code, said = show(*options)
    assert code == 2 and message in said and said.count("\n") == 1
