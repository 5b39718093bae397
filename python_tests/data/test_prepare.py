"""glm_ext.data.prepare: the store of real files, in any number of processes and across stops."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_ext.data import (
    ExampleBatches,
    GLMTokenizer,
    PrepareSettings,
    find_sentences,
    open_store,
    prepare,
    standard_objectives,
)
from glm_ext.data.shards import Encoder, chunks, sample_texts
from glm_ext.data.sources import Piece

from .sentence_texts import random_sentences

SENTENCES = [
    f"The {a} of the {b} is {c}. " for a in ("cat", "dog") for b in ("house", "mill") for c in ("old", "new")
]
TOKENIZER = GLMTokenizer.train(SENTENCES * 3, vocab_size=320)
ROOT = Path(__file__).resolve().parents[2]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
SMALL = PrepareSettings(punkt=False, shard_bytes=400)


def given_tokenizer(texts: Iterator[str]) -> GLMTokenizer:
    return TOKENIZER


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("".join(SENTENCES[number:] * 2))
    records = [{"text": sentence, "prompt": "Say: "} for sentence in SENTENCES]
    (folder / "z.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_the_store_holds_the_documents(sources: Path, tmp_path: Path) -> None:
    header = prepare([sources], tmp_path / "store", given_tokenizer, settings=SMALL)
    documents, tokenizer, read = open_store(tmp_path / "store")
    texts = [tokenizer.decode(documents[d].tolist()) for d in range(len(documents))]
    assert texts[:6] == [(sources / f"{number}.txt").read_text() for number in range(6)]
    assert texts[6:] == [f"Say: {sentence}" for sentence in SENTENCES]
    assert all(documents[d][-1] == tokenizer.eos_id for d in range(len(documents)))
    assert header == read and header["documents"] == len(texts) and header["files_read"] == 7
    assert documents.weights is not None
    for d in range(6, len(texts)):
        weights = documents.weights[documents.where(d)]
        prompt = len(tokenizer.encode("Say: "))
        assert not weights[:prompt].any() and weights[prompt:].all()
    assert {file.name for file in (tmp_path / "store").iterdir()} == {*header["files"], "store.json"}
    batch = ExampleBatches(documents=documents, ids=tokenizer.ids, batch_size=4, max_length=32).batch(0)
    assert batch.num_targets > 0


@settings(max_examples=25, deadline=None)
@given(
    records=st.lists(st.tuples(WORDS, st.just("") | WORDS), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 400),
)
def test_every_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str]], shard_bytes: int
) -> None:
    """Whatever its characters, and however the file is cut; prompts are told apart to the token."""
    folder = tmp_path_factory.mktemp("round")
    lines = [json.dumps({"text": text, "prompt": prompt}) + "\n" for text, prompt in records]
    (folder / "a.jsonl").write_text("".join(lines))
    made = PrepareSettings(punkt=False, shard_bytes=shard_bytes)
    header = prepare([folder / "a.jsonl"], folder / "store", given_tokenizer, settings=made)
    documents, tokenizer, _ = open_store(folder / "store")
    assert [tokenizer.decode(documents[d].tolist()) for d in range(len(documents))] == [
        prompt + text for text, prompt in records
    ]
    prompts = [len(tokenizer.encode(prompt)) for _, prompt in records]
    assert header["prompt_tokens"] == sum(prompts)
    for d, prompt in enumerate(prompts):
        where = documents.where(d)
        if documents.weights is not None:
            assert np.flatnonzero(documents.weights[where]).tolist() == list(
                range(prompt, where.stop - where.start)
            )


def test_special_tokens_that_a_document_spells_are_plain_text(tmp_path: Path) -> None:
    text = "the [MASK] and [gMASK] of <|endoftext|> and <|startofpiece|>"
    (tmp_path / "a.txt").write_text(text)
    prepare([tmp_path / "a.txt"], tmp_path / "store", given_tokenizer, settings=SMALL)
    documents, tokenizer, _ = open_store(tmp_path / "store")
    assert tokenizer.decode(documents[0].tolist()) == text
    assert np.flatnonzero(np.isin(documents[0], tokenizer.ids)).tolist() == [len(documents[0]) - 1]


def test_any_number_of_processes_makes_the_same_store(sources: Path, tmp_path: Path) -> None:
    stores = [tmp_path / "one", tmp_path / "two"]
    for workers, store in enumerate(stores, start=1):
        prepare([sources], store, given_tokenizer, settings=SMALL, workers=workers)
    assert contents(stores[0]) == contents(stores[1])


def test_a_killed_run_goes_on_with_what_is_missing(sources: Path, tmp_path: Path) -> None:
    killed = """
import multiprocessing, os, sys
from glm_ext.data import GLMTokenizer, PrepareSettings, prepare
def progress(done, total):
    if done == 2:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os._exit(9)
if __name__ == "__main__":
    prepare([sys.argv[1]], sys.argv[2], lambda texts: GLMTokenizer.load(sys.argv[3]),
            settings=PrepareSettings(punkt=False, shard_bytes=400), progress=progress, workers=2)
"""
    script = tmp_path / "killed.py"
    script.write_text(killed)
    store, whole = tmp_path / "store", tmp_path / "whole"
    file = TOKENIZER.save(tmp_path / "t.json")
    child = subprocess.run(
        [sys.executable, script, sources, store, file],
        timeout=120,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.returncode == 9
    assert child.stdout.split()
    for process in map(int, child.stdout.split()):
        assert gone(process)
    with pytest.raises(FileNotFoundError, match="no finished token store"):
        open_store(store)
    seen: list[tuple[int, int]] = []
    prepare([sources], store, given_tokenizer, settings=SMALL, progress=lambda *state: seen.append(state))
    assert seen[0][0] >= 2 and seen[-1][0] == seen[-1][1] > 2
    prepare([sources], whole, given_tokenizer, settings=SMALL)
    assert contents(store) == contents(whole)


def gone(process: int, seconds: float = 30) -> bool:
    """Whether the process ends within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat")
            if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def begin(sources: Path, store: Path, **changed: Any) -> None:
    """Stops after the first shard."""

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([sources], store, given_tokenizer, settings=SMALL, progress=stop, **changed)


@pytest.mark.parametrize("change", ["file", "settings", "tokenizer"])
def test_a_run_goes_on_only_with_the_same(sources: Path, tmp_path: Path, change: str) -> None:
    store = tmp_path / "store"
    begin(sources, store)
    options: dict[str, Any] = {"settings": SMALL}
    if change == "file":
        (sources / "new.txt").write_text("new text")
    elif change == "settings":
        options["settings"] = PrepareSettings(punkt=False, shard_bytes=500)
    else:
        options["tokenizer_name"] = "another"
    with pytest.raises(ValueError, match="begun with other files or settings"):
        prepare([sources], store, given_tokenizer, **options)


def test_no_folder_is_written_over(sources: Path, tmp_path: Path) -> None:
    prepare([sources], tmp_path / "store", given_tokenizer, settings=SMALL)
    with pytest.raises(FileExistsError, match="a finished token store"):
        prepare([sources], tmp_path / "store", given_tokenizer, settings=SMALL)
    with pytest.raises(FileExistsError, match="is no token store"):
        prepare([sources], sources, given_tokenizer, settings=SMALL)


def test_bad_documents_stop_or_are_counted(sources: Path, tmp_path: Path) -> None:
    (sources / "b.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": ""}\n')
    (sources / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.jsonl:2: broken JSON: .*--on_error skip"):
        prepare([sources], tmp_path / "stopped", given_tokenizer, settings=SMALL)
    skip = PrepareSettings(punkt=False, on_error="skip")
    with pytest.warns(UserWarning, match="empty|broken") as warned:
        header = prepare([sources], tmp_path / "store", given_tokenizer, settings=skip)
    went_on = dataclasses.replace(SMALL, on_error="skip")  # what was stopped may go on by skipping
    with pytest.warns(UserWarning, match="empty|broken"):
        prepare([sources], tmp_path / "stopped", given_tokenizer, settings=went_on)
    assert (tmp_path / "stopped" / "tokens.bin").read_bytes() == (
        tmp_path / "store" / "tokens.bin"
    ).read_bytes()
    assert header["skipped"] == {"broken JSON": 1, "empty document": 1, "empty file": 1}
    assert header["documents"] == 6 + 8 + 1
    assert any("b.jsonl:2" in str(warning.message) for warning in warned)


def test_errors_of_a_pool_reach_the_caller(sources: Path, tmp_path: Path) -> None:
    (sources / "0.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"0\.txt: not UTF-8 at byte 0"):
        prepare([sources], tmp_path / "store", given_tokenizer, settings=SMALL, workers=2)


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("files", [{}, {"a.txt": b""}, {"a.txt": b" ", "b.jsonl": b'{"text": ""}'}])
def test_a_corpus_of_nothing_is_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "sources").mkdir()
    for name, data in files.items():
        (tmp_path / "sources" / name).write_bytes(data)
    with pytest.raises(ValueError, match="no text found"):
        prepare([tmp_path / "sources"], tmp_path / "store", given_tokenizer, settings=SMALL)


def test_sentence_ends_are_punkts_and_reach_the_objective(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    sentences = random_sentences(300)
    (tmp_path / "a.txt").write_text(" ".join(sentences) + "\n\nNo mark here\n\nAn end.")
    prepare([tmp_path / "a.txt"], tmp_path / "store", given_tokenizer, settings=PrepareSettings())
    documents, tokenizer, header = open_store(tmp_path / "store")
    assert header["punkt"] and documents.sentence_ends is not None
    tokens = documents[0].astype(np.int64)
    spans = find_sentences(tokens, tokenizer.ids, [], documents.sentence_ends[:])
    found = [
        tokenizer.decode(tokens[start : start + length].tolist()).strip()
        for start, length in zip(*spans, strict=True)
    ]
    assert found == [*sentences, "No mark here", "An end."]
    objective = standard_objectives([])["sentence"]  # no bytes of tokens: only the store can tell
    batches = ExampleBatches(
        documents=documents, ids=tokenizer.ids, batch_size=4, max_length=64, objective=objective
    )
    example = batches.sample(0, 0)
    assert (example.tokens == tokenizer.smask_id).any()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_tokenizer_may_be_trained_on_the_sources(sources: Path, tmp_path: Path, kind: Any) -> None:
    sizes = {"bpe": 300, "wordpiece": 60, "unigram": 310}

    def train(texts: Iterator[str]) -> GLMTokenizer:
        return GLMTokenizer.train(texts, sizes[kind], kind)

    prepare([sources], tmp_path / "store", train, settings=SMALL)
    documents, tokenizer, header = open_store(tmp_path / "store")
    assert header["vocab_size"] == tokenizer.vocab_size <= sizes[kind]
    words = tokenizer.decode(documents[0].tolist()).split()
    assert words[:3] == ["The", "cat", "of"]


@pytest.mark.parametrize(
    "text", ["", "a", "a b\n\nc d\ne", "word " * 100, "x" * 100, "a\n\n\n\nb" * 20, " " * 50]
)
def test_chunks_join_to_the_text(text: str) -> None:
    for longest in (1, 7, 30):
        parts = list(chunks(text, longest))
        assert "".join(parts) == text and all(len(part) <= longest for part in parts)
        assert all(parts) or not text


def test_a_long_run_of_white_space_is_cut_in_long_pieces() -> None:
    text = "a" + " " * 3_000_000 + "b\n\n" + "c" * 1_500_000 + " d"
    parts = list(chunks(text))
    assert "".join(parts) == text
    assert [len(part) for part in parts] == [1, 1 << 20, 1 << 20, 902849, 1 << 20, 451428]


def test_what_is_encoded_at_once_is_bounded_however_long_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("the cat\n" * 600_000)
    sizes: list[int] = []

    def encode_batch(tokenizer: GLMTokenizer, texts: list[str]) -> list[list[int]]:
        sizes.append(sum(map(len, texts)))
        return [[20, 21] for _ in texts]

    monkeypatch.setattr(GLMTokenizer, "encode_batch", encode_batch)
    arrays = Encoder(TOKENIZER, None).encode_shard([Piece(tmp_path / "a.txt")], lambda problem: None)
    assert sum(sizes) == 8 * 600_000 and max(sizes) < 2 << 20
    assert arrays["lengths"].tolist() == [len(arrays["tokens"])]


def test_a_sample_has_as_many_characters_as_were_asked_for(tmp_path: Path) -> None:
    """What short files lack of their share comes from the long one, wherever it is among them."""
    for number in range(50):
        (tmp_path / f"{number:02}.txt").write_text("x" * 10)
    (tmp_path / "25.txt").write_text("é" * 10_000)
    pieces = [Piece(file) for file in sorted(tmp_path.iterdir())]
    for asked, of_short in ((100, 2), (5_000, 10), (10_490, 10)):
        texts = "".join(sample_texts(pieces, asked))
        assert len(texts) == asked and texts.count("x") == 49 * of_short
    assert len("".join(sample_texts(pieces, 20_000))) == 10_490
    assert list(sample_texts([], 100)) == []


def test_tokens_of_chunks_are_those_of_the_whole(tokenizer: GLMTokenizer, corpus: list[str]) -> None:
    text = "\n\n".join(corpus[:10]).replace("\n", "\n\n")[:20_000]
    parts = list(chunks(text, 1000))
    assert len(parts) > 15
    assert [token for ids in tokenizer.encode_batch(parts) for token in ids] == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_error": "ask"}, 'expected "stop" or "skip", got \'ask\''),
        ({"shard_bytes": 0}, "shard_bytes: expected"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrepareSettings(**settings)
