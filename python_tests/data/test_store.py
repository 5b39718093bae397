"""The token store: what goes in comes out, and an altered or unfinished one is refused by name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data import (
    ExampleBatches,
    GLMTokenizer,
    TokenDocuments,
    is_store,
    open_store,
    split_token_documents,
)
from glm_ext.data.bits import Bits
from glm_ext.data.store import StoreWriter

TOKENIZER = GLMTokenizer.train(["one two three four five six"], vocab_size=300)


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[list[bool]]]:
    """Token lists, how many of each are prompt, and a flag for each token."""
    tokens = draw(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), min_size=1, max_size=12))
    prompts = [draw(st.integers(0, len(ids) - 1)) for ids in tokens]
    ends = [draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))) for ids in tokens]
    return tokens, prompts, ends


def write(root: Path, tokens: Any, prompts: Any, ends: Any, at_once: int = 3, vocab_size: int = 300) -> None:
    TOKENIZER.save(root)
    writer = StoreWriter(root, vocab_size, sentences=True)
    for first in range(0, len(tokens), at_once):
        part = slice(first, first + at_once)
        writer.add(
            np.concatenate(tokens[part]),
            np.array([len(ids) for ids in tokens[part]]),
            np.array(prompts[part]),
            np.concatenate(ends[part]),
        )
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path, [[20, 21, 22, 8]] * 5, [0, 1, 0, 2, 0], [[False, True, False, True]] * 5)
    return tmp_path


@given(made=documents(), at_once=st.integers(1, 5), vocab_size=st.sampled_from([300, 65536, 65537]))
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, made: Any, at_once: int, vocab_size: int
) -> None:
    tokens, prompts, ends = made
    root = tmp_path_factory.mktemp("store")
    write(root, tokens, prompts, ends, at_once, vocab_size)
    opened, tokenizer, header = open_store(root)
    assert [opened[d].tolist() for d in range(len(opened))] == tokens
    assert header["tokens"] == opened.num_tokens and header["prompt_tokens"] == sum(prompts)
    assert opened.tokens.dtype == (np.uint16 if vocab_size <= 65536 else np.uint32)
    assert tokenizer.ids == TOKENIZER.ids
    if sum(prompts):
        assert isinstance(opened.weights, Bits)
        counted = [i >= prompt for ids, prompt in zip(tokens, prompts, strict=True) for i in range(len(ids))]
        assert opened.weights[:].tolist() == counted
    else:
        assert opened.weights is None and not (root / "weights.bits").exists()
    assert opened.sentence_ends is not None
    assert opened.sentence_ends[:].tolist() == [flag for flags in ends for flag in flags]


@given(flags=st.lists(st.booleans(), max_size=70), begin=st.integers(0, 80), end=st.integers(0, 80))
def test_bits_slice_like_an_array(flags: list[bool], begin: int, end: int) -> None:
    array = np.array(flags, dtype=np.bool_)
    assert Bits.pack(array)[begin:end].tolist() == array[begin:end].tolist()


def test_bits_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 bytes for 9 flags, got 1"):
        Bits(np.zeros(1, dtype=np.uint8), 9)


def test_tokens_are_mapped_not_copied(store: Path) -> None:
    opened = open_store(store).documents
    for array in (opened.tokens, opened.offsets):
        assert isinstance(array, np.memmap)
    part = opened.select(np.array([True, False, True, False, True]))
    assert np.shares_memory(part.tokens, opened.tokens) and len(part) == 3


def test_a_store_travels_by_the_names_of_its_files(tmp_path: Path) -> None:
    write(tmp_path, [[20] * 9000], [1], [[True] * 9000])
    opened = open_store(tmp_path).documents
    travelled = pickle.dumps(opened)
    assert len(travelled) < 4000
    there = pickle.loads(travelled)
    assert there.tokens.tolist() == opened.tokens.tolist() and isinstance(there.tokens, np.memmap)
    assert there.weights[:].tolist() == opened.weights[:].tolist()
    assert pickle.loads(pickle.dumps(opened.tokens[3:5])).tolist() == [20, 20]


@pytest.mark.parametrize(
    "name", ["tokens.bin", "offsets.bin", "sentences.bits", "weights.bits", "tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(store: Path, name: str, damage: str) -> None:
    data = bytearray((store / name).read_bytes())
    data[-1] ^= 1
    if damage == "flip":
        (store / name).write_bytes(data)
    elif damage == "cut":
        (store / name).write_bytes(data[:-1])
    else:
        (store / name).unlink()
    said = {"flip": "altered", "cut": "expected .* bytes, got", "remove": "missing"}[damage]
    with pytest.raises(ValueError, match=f"{name}: {said}"):
        open_store(store)
    if damage == "flip" and name in ("tokens.bin", "sentences.bits", "weights.bits"):
        open_store(store, verify=False)  # sizes alone do not tell


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "expected format 1, got 9"),
        ({"tokens": 19}, "does not fit|counts"),
        ({"documents": 4}, "counts 4 documents"),
        ({"dtype": "<f4"}, "not the header"),
        ({"files": None}, "not the header"),
    ],
)
def test_a_wrong_header_is_refused(store: Path, change: dict[str, Any], said: str) -> None:
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(header | change))
    with pytest.raises(ValueError, match=rf"store.json: .*({said})"):
        open_store(store)
    (store / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"store\.json: altered or cut off"):
        open_store(store)


def test_an_unfinished_store_is_none(store: Path) -> None:
    assert is_store(store)
    (store / "store.json").unlink()
    assert not is_store(store)
    (store / "plan.json").write_text("{}")
    assert is_store(store)
    with pytest.raises(FileNotFoundError, match="no finished token store"):
        open_store(store)


def many(count: int, length: int) -> TokenDocuments:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 299, count * length)
    tokens[length - 1 :: length] = TOKENIZER.eos_id
    return TokenDocuments(tokens.astype(np.uint16), np.arange(count + 1) * length)


def test_a_split_shares_out_the_documents() -> None:
    whole = many(2000, 12)
    train, held_out = split_token_documents(whole)

    def all_of(part: TokenDocuments) -> list[tuple[int, ...]]:
        return [tuple(part[d].tolist()) for d in range(len(part))]

    assert sorted(all_of(train) + all_of(held_out)) == sorted(all_of(whole))
    assert not set(all_of(train)) & set(all_of(held_out))
    assert 0.03 < len(held_out) / 2000 < 0.07
    again = split_token_documents(whole.select(np.arange(2000) % 2 == 0))
    assert set(all_of(again.held_out)) <= set(all_of(held_out))  # a document's side is its own


def test_one_long_document_is_cut_before_it_is_split() -> None:
    train, held_out = split_token_documents(many(1, 100_000))
    assert train.num_tokens + held_out.num_tokens == 100_000
    assert 0 < held_out.num_tokens < 20_000
    with pytest.raises(ValueError, match="too small to hold a part"):
        split_token_documents(many(1, 100))
    with pytest.raises(ValueError, match="held_out: expected"):
        split_token_documents(many(9, 9), 1.0)


def test_a_part_of_the_documents_is_drawn_from_alone() -> None:
    whole = many(50, 40)
    part = whole.select(np.arange(50) % 5 == 0)
    assert len(part) == 10 and part.num_tokens == 400
    rng = np.random.default_rng(0)
    drawn = {part.draw(rng).start for _ in range(400)}
    assert drawn == set(range(0, 2000, 200))
    copied = TokenDocuments(np.concatenate([part[d] for d in range(10)]), np.arange(11) * 40)
    batches = [
        ExampleBatches(documents=source, ids=TOKENIZER.ids, batch_size=4, max_length=32).batch(3)
        for source in (part, copied)
    ]
    assert batches[0].tokens.tolist() == batches[1].tokens.tolist()


def test_starts_that_do_not_fit_are_refused() -> None:
    whole = many(4, 10)
    for starts in (np.array([0, 10, 20]), np.array([0, 10, 20, 31]), np.array([-1, 10, 20, 30])):
        with pytest.raises(ValueError, match="a start for each of 4 documents"):
            TokenDocuments(whole.tokens, whole.offsets, starts=starts)
