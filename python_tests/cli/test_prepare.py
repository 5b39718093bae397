"""glm-ext prepare, glm-ext tokenizer, and a run on what they make."""

import json
import re
import shutil

import pytest

from glm_ext.cli import main, prepare, tokenizer
from glm_ext.data import GLMTokenizer, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory, text_folder):
    folder = tmp_path_factory.mktemp("stores") / "a store"
    arguments = ["prepare", str(text_folder), "--out", str(folder), "--tokenizer", "train"]
    assert main([*arguments, "--vocab_size", "300", "--sentences", "marks", "--workers", "1"]) == 0
    return folder


def refused(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("glm-ext: ")
    return error


def test_prepare_says_what_it_made(tmp_path, text_folder, store, capsys):
    arguments = [str(text_folder), "--tokenizer", str(store), "--sentences", "marks", "--workers", "1"]
    assert main(["prepare", *arguments, "--out", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    header = open_store(tmp_path / "s").header
    assert f"{header['tokens']:,} tokens in 200 documents" in printed and "shard 1/1" in printed
    assert printed.endswith(f"glm-ext pretrain --data.path {tmp_path / 's'}\n")
    assert (tmp_path / "s" / "tokens.bin").read_bytes() == (store / "tokens.bin").read_bytes()


@pytest.mark.parametrize("command", [prepare, tokenizer])
def test_sources_may_stand_between_the_options(command):
    more = ["--tokenizer", "train"] if command is prepare else ["--kind", "bpe"]
    assert command.parse(["a", "--out", "o", "b", *more, "c"]).sources == ["a", "b", "c"]


def test_pretrain_runs_on_a_store_and_resumes(tmp_path, store, small_run, capsys):
    options = [*small_run[:-2], "--data.path", str(store), "--threads", "1", "--run", str(tmp_path / "run")]
    assert main(["pretrain", *options, "--steps", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[MASK]") == 4  # three blanks of held-out text, and the command to try
    train, held_out = re.search(r"in (\d+) documents, (\d+) held out", printed).groups()
    assert int(train) + int(held_out) == 200
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--steps", "4"]) == 0
    saved = (tmp_path / "run" / "tokenizer.json").read_text()
    assert json.loads(saved) == json.loads((store / "tokenizer.json").read_text())


def test_pretrain_refuses_a_damaged_or_unfinished_store(tmp_path, store, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    (damaged / "tokens.bin").write_bytes((store / "tokens.bin").read_bytes()[:-2])
    arguments = ["pretrain", "--data.path", str(damaged), "--run", str(tmp_path / "run")]
    assert re.search(r"tokens\.bin: expected \d+ bytes", refused(capsys, arguments))
    (damaged / "store.json").rename(damaged / "plan.json")
    assert "run glm-ext prepare to its end" in refused(capsys, arguments)


def test_tokenizer_trains_and_adopts(tmp_path, text_folder, capsys):
    for kind in ("bpe", "wordpiece", "unigram"):
        out = tmp_path / f"{kind}.json"
        assert (
            main(["tokenizer", str(text_folder), "--kind", kind, "--vocab_size", "320", "--out", str(out)])
            == 0
        )
        assert f"{GLMTokenizer.load(out).vocab_size} tokens" in capsys.readouterr().out
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    assert main(["tokenizer", "--adopt", str(tmp_path / "vocab.txt"), "--out", str(tmp_path)]) == 0
    assert GLMTokenizer.load(tmp_path / "tokenizer.json").encode("The the") == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "nowhere"], "nowhere: no such file"),
        (["prepare", "empty"], "no text found"),
        (["prepare", "bad"], r"bad\.jsonl:2: broken JSON.*--on_error skip"),
        (["prepare", "bad", "--on_error", "ask"], 'expected "stop" or "skip"'),
        (["prepare", "bad", "--tokenizer", "no.json"], "no.json: no such file"),
        (["prepare", "bad", "--sentences", "nltk"], "expected auto, punkt or marks"),
        (["prepare", "bad", "--wokrers", "2"], "did you mean 'workers'"),
        (["prepare", "bad", "--workers", "0"], "at least 1, got 0"),
        (["tokenizer"], "give either files and folders"),
        (["tokenizer", "empty"], "no text found"),
        (["tokenizer", "bad"], r"bad\.jsonl:2: broken JSON"),
        (["tokenizer", "bad", "--adopt", "bad"], "give either files and folders"),
        (["tokenizer", "--adopt", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_what_the_user_can_mend_is_named(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "prepare":
        defaults = ["--out", "s", "--tokenizer", "train", "--sentences", "marks", "--workers", "1"]
        arguments = [*arguments[:2], *defaults, *arguments[2:]]
    assert re.search(said, refused(capsys, arguments))


@pytest.mark.parametrize("wrong", [["--kind", "word"], ["--vocab_size", "100"]])
def test_a_wrong_option_does_not_stand_in_the_way_of_the_right_one(tmp_path, text_folder, capsys, wrong):
    arguments = ["prepare", str(text_folder), "--out", str(tmp_path / "s"), "--tokenizer", "train"]
    arguments += ["--sentences", "marks", "--workers", "1", "--vocab_size", "300"]
    assert "expected" in refused(capsys, [*arguments, *wrong])
    assert main(arguments) == 0


def test_bad_documents_can_be_skipped(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "good words"}\n{"text": \n{"text": " "}\n')
    (tmp_path / "empty.txt").write_text("")
    arguments = ["prepare", str(tmp_path), "--out", str(tmp_path / "s"), "--tokenizer", "train"]
    options = ["--vocab_size", "280", "--on_error", "skip", "--sentences", "marks", "--workers", "1"]
    assert main([*arguments, *options]) == 0
    printed = capsys.readouterr()
    assert 'skipped {"broken JSON": 1, "empty document": 1, "empty file": 1}' in printed.out
    assert "a.jsonl:2: broken JSON" in printed.err
