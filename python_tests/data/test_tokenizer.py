"""GLMTokenizer: any text comes back, special tokens are special only when asked, files travel."""

import copy
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data import MASK_TOKENS, SPECIAL_TOKENS, GLMTokenizer, SpecialIds

tokenizers = pytest.importorskip("tokenizers")

SMALL = GLMTokenizer.train(["the cat sat on the mat, the cat ran"] * 3, vocab_size=300)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text
    assert not set(ids) & set(SMALL.ids)


@pytest.mark.parametrize(
    "text", ["", " ", "naïve café – “quoted”", "你好，世界", "🙂🙃 👩‍👩‍👧", "a\tb\r\nc\x00", "  two  spaces "]
)
def test_unicode_comes_back(tokenizer: GLMTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    """What a byte that is not UTF-8 becomes on a command line, and half a pair of an escaped JSON string."""
    for text in ("the \udcff", "the \ud83d"):
        for encode in (SMALL.encode, SMALL.encode_batch, SMALL.encode_with_ends):
            with pytest.raises(ValueError, match="not UTF-8 at character 4"):
                encode(text if encode == SMALL.encode else ["cat", text])


def test_special_tokens_have_the_fixed_low_ids(tokenizer: GLMTokenizer) -> None:
    assert tokenizer.ids == SpecialIds() == tuple(range(11))
    named = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.gmask_id, tokenizer.smask_id]
    named += [tokenizer.dblock_id, tokenizer.eos_id, tokenizer.sop_id, tokenizer.eop_id]
    assert named == [0, 2, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("name", SPECIAL_TOKENS.values())
def test_a_special_token_typed_by_a_user_is_plain_text(tokenizer: GLMTokenizer, name: str) -> None:
    plain = tokenizer.encode(f"a {name} b")
    assert not set(plain) & set(tokenizer.ids) and tokenizer.decode(plain) == f"a {name} b"
    assert tokenizer.encode_batch([f"a {name} b"]) == [plain]
    special = tokenizer.encode(f"a {name} b", allow_special=True)
    assert [token for token in special if token in tokenizer.ids] == [
        tokenizer.encode(name, allow_special=True)[0]
    ]
    assert tokenizer.encode(f"a {name} b", allow_special=[name]) == special


def test_only_the_named_special_tokens_are_read(tokenizer: GLMTokenizer) -> None:
    ids = tokenizer.encode("[PAD] [MASK]", allow_special=["[MASK]"])
    assert ids == [*tokenizer.encode("[PAD]"), tokenizer.mask_id]
    with pytest.raises(ValueError, match=r"got \['\[mask\]'\]"):
        tokenizer.encode("a", allow_special=["[mask]"])


@pytest.mark.parametrize("mask", MASK_TOKENS)
def test_a_mask_swallows_the_space_before_it(tokenizer: GLMTokenizer, mask: str) -> None:
    ids = tokenizer.encode(f"the \n {mask} sat", allow_special=True)
    assert ids == [
        *tokenizer.encode("the"),
        tokenizer.encode(mask, allow_special=True)[0],
        *tokenizer.encode(" sat"),
    ]


def test_a_saved_tokenizer_is_the_same_also_for_the_library(tokenizer: GLMTokenizer, tmp_path: Path) -> None:
    file = tokenizer.save(tmp_path)
    assert file == tmp_path / "tokenizer.json" and file.read_bytes() == tokenizer.to_json().encode()
    text = "The [MASK] of a\nfile is [gMASK]"
    for loaded in (GLMTokenizer.load(file), GLMTokenizer.load(tmp_path)):
        assert loaded.ids == tokenizer.ids and loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode(text) == tokenizer.encode(text)
    library = tokenizers.Tokenizer.from_file(str(file))
    assert library.encode(text).ids == tokenizer.encode(text, allow_special=True)


class Subclass(GLMTokenizer):
    pass


def pickled(tokenizer: GLMTokenizer) -> Any:
    return pickle.loads(pickle.dumps(tokenizer))


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("cls", [GLMTokenizer, Subclass])
def test_a_copy_is_the_same_tokenizer(cls: type[GLMTokenizer], twin_of: Callable[[Any], Any]) -> None:
    original = cls.from_json(SMALL.to_json())
    twin = twin_of(original)
    assert type(twin) is cls and twin.ids == original.ids
    assert twin.encode("a [MASK] b") == original.encode("a [MASK] b")  # plain text
    assert twin.to_json() == original.to_json()


def test_training_twice_gives_the_same_tokenizer(tmp_path: Path) -> None:
    documents = ["one two three two one", "three four", "four two"] * 5
    files = [GLMTokenizer.train(documents, 300).save(tmp_path / f"{i}.json") for i in range(2)]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


def test_vocabulary_sizes(tokenizer: GLMTokenizer) -> None:
    assert tokenizer.vocab_size == tokenizer.padded_vocab_size() == 4096
    assert SMALL.vocab_size < 300  # a small corpus has no more pairs to merge
    assert SMALL.padded_vocab_size() == 384 and SMALL.padded_vocab_size(1) == SMALL.vocab_size
    with pytest.raises(ValueError, match="at least 267"):
        GLMTokenizer.train(["a"], vocab_size=266)


def test_english_takes_few_tokens(tokenizer: GLMTokenizer) -> None:
    text = "Return the name of the file that was opened by the function."
    assert len(tokenizer.encode(text)) <= len(text) / 3.5


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.json: no such file"):
        GLMTokenizer.load(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json: not a tokenizer.json"):
        GLMTokenizer.load(tmp_path / "broken.json")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "foreign.json"))
    with pytest.raises(ValueError, match=r"lacks GLM's special tokens \[PAD\], "):
        GLMTokenizer.load(tmp_path / "foreign.json")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"glm_ext\[train\]"):
        GLMTokenizer.train(["a"], vocab_size=300)
