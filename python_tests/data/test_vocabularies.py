"""Vocabularies of three kinds, and those of GPT-2, BERT and sentencepiece: ids, round trips, specials."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data import MASK_TOKENS, SPECIAL_TOKENS, GLMTokenizer, SpecialIds

tokenizers = pytest.importorskip("tokenizers")

TEXT = ["the cat sat on the mat, the cat ran; a dog (small) barked: no one [saw] it <here>!"] * 4
WORDPIECE = GLMTokenizer.train(TEXT, vocab_size=90, kind="wordpiece")
UNIGRAM = GLMTokenizer.train(TEXT, vocab_size=330, kind="unigram")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back_from_a_unigram_vocabulary(text: str) -> None:
    ids = UNIGRAM.encode(text)
    assert UNIGRAM.decode(ids) == text
    assert not set(ids) & set(UNIGRAM.ids)


def test_a_wordpiece_vocabulary_keeps_words() -> None:
    assert WORDPIECE.decode(WORDPIECE.encode("the  cat\nran")) == "the cat ran"
    assert WORDPIECE.encode("the Ω") == [*WORDPIECE.encode("the"), WORDPIECE.ids.unk]
    assert WORDPIECE.ids == tuple(range(11))


@pytest.mark.parametrize("tokenizer", [WORDPIECE, UNIGRAM], ids=["wordpiece", "unigram"])
@pytest.mark.parametrize("name", SPECIAL_TOKENS.values())
def test_special_tokens_are_plain_unless_asked_for(tokenizer: GLMTokenizer, name: str) -> None:
    special = set(tokenizer.ids) - ({tokenizer.ids.unk} if tokenizer is WORDPIECE else set())
    assert not set(tokenizer.encode(f"the {name} cat")) & special
    asked = tokenizer.encode(f"the {name} cat", allow_special=True)
    assert len(set(asked) & special) == (name != "[UNK]" or tokenizer is UNIGRAM)
    if name in MASK_TOKENS:
        [mask] = set(asked) & special
        assert asked == [*tokenizer.encode("the"), mask, *tokenizer.encode(" cat")]


def test_byte_pieces_are_plain_text() -> None:
    assert UNIGRAM.decode(UNIGRAM.encode("a <0x41> b")) == "a <0x41> b"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_text_full_of_special_tokens_teaches_none_of_them(kind: Any) -> None:
    names = list(SPECIAL_TOKENS.values())
    texts = [*names * 300, *(f"{name}\n{name} the cat" for name in names * 100)]
    tokenizer = GLMTokenizer.train(texts, 400, kind)
    for name in names:
        assert not set(tokenizer.encode(name)) & (set(tokenizer.ids) - {tokenizer.ids.unk})


def test_a_broken_character_leaves_those_beside_it_whole() -> None:
    ids = UNIGRAM.encode("ΩΨ🙂")
    assert UNIGRAM.decode(ids[:-1]) == "ΩΨ\N{REPLACEMENT CHARACTER}"
    assert UNIGRAM.decode([ids[0], *ids]) == "\N{REPLACEMENT CHARACTER}ΩΨ🙂"


@pytest.mark.parametrize("tokenizer", [WORDPIECE, UNIGRAM], ids=["wordpiece", "unigram"])
def test_pieces_spell_the_text(tokenizer: GLMTokenizer, tmp_path: Path) -> None:
    text = "the cat ran; a dog sat!"
    pieces = tokenizer.pieces()
    spelled = b"".join(pieces[token] for token in tokenizer.encode(text)).decode()
    assert spelled.replace(" ", "") == text.replace(" ", "")
    again = GLMTokenizer.load(tokenizer.save(tmp_path))
    assert again.encode(text) == tokenizer.encode(text) and again.pieces() == pieces
    assert GLMTokenizer.from_json(tokenizer.to_json()).ids == tokenizer.ids


def test_sizes_and_kinds_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 12"):
        GLMTokenizer.train(TEXT, vocab_size=11, kind="wordpiece")
    with pytest.raises(ValueError, match="at least 268"):
        GLMTokenizer.train(TEXT, vocab_size=267, kind="unigram")
    with pytest.raises(ValueError, match="kind: expected one of bpe, wordpiece, unigram, got 'word'"):
        GLMTokenizer.train(TEXT, vocab_size=300, kind="word")  # type: ignore[arg-type]


# GPT-2.


@pytest.fixture(params=[("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def gpt2(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small vocabulary in GPT-2's form: bytes, merges, <|endoftext|> last."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXT, trainer)
    model = json.loads(library.to_str())["model"]
    vocabulary, merges = request.param
    ids = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (tmp_path / vocabulary).write_text(json.dumps(ids))
    (tmp_path / merges).write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    library.save(str(tmp_path / "plain"))
    return tmp_path / vocabulary


def test_gpt2_gets_the_ids_of_the_public_models(gpt2: Path) -> None:
    tokenizer = GLMTokenizer.adopt(gpt2)
    end = 290
    assert tokenizer.ids == SpecialIds(
        pad=end, eos=end, sop=end + 1, eop=end + 2, cls=end + 3, mask=end + 4,
        sep=end + 5, unk=end + 6, gmask=end + 7, smask=end + 8, dblock=end + 9,
    )  # fmt: skip
    assert tokenizer.vocab_size == end + 10
    text = "the cat  sat\n[MASK] <|endoftext|> naïve 你"
    plain = tokenizers.Tokenizer.from_file(str(gpt2.parent / "plain"))
    assert tokenizer.encode(text) == plain.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("the [MASK] sat", allow_special=MASK_TOKENS) == [
        *tokenizer.encode("the"), tokenizer.mask_id, *tokenizer.encode(" sat"),
    ]  # fmt: skip
    assert GLMTokenizer.adopt(gpt2.parent).ids == tokenizer.ids


def test_gpt2_needs_its_merges(gpt2: Path) -> None:
    for name in ("merges.txt", "vocab.bpe"):
        (gpt2.parent / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"expected merges\.txt or vocab\.bpe beside it"):
        GLMTokenizer.adopt(gpt2)


# BERT.

BERT = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "##s",
    "[",
    "]",
    "mask",
    "哈",
]


@pytest.mark.parametrize("cased", [False, True])
def test_bert_gets_the_ids_of_the_public_models(tmp_path: Path, cased: bool) -> None:
    words = [*BERT, "Paris"] if cased else BERT
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = GLMTokenizer.adopt(tmp_path / "vocab.txt")
    size = len(words)
    assert tokenizer.ids == SpecialIds(
        pad=0, eos=0, unk=2, cls=3, sep=4, mask=5,
        sop=size, eop=size + 1, gmask=size + 2, smask=size + 3, dblock=size + 4,
    )  # fmt: skip
    assert tokenizer.encode("the cats 哈") == [6, 7, 8, 12]
    assert tokenizer.encode("The") == [2 if cased else 6]
    assert tokenizer.encode("[mask]") == [9, 11, 10]
    assert not set(tokenizer.encode("[MASK] [PAD]")) & {0, 5}
    assert tokenizer.encode("the [MASK]", allow_special=["[MASK]"]) == [6, 5]


def test_a_bert_folder_gives_the_same_ids_with_and_without_a_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT) + "\n")
    alone = GLMTokenizer.adopt(tmp_path)
    library = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: n for n, word in enumerate(BERT)}, unk_token="[UNK]")
    )
    library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    library.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = GLMTokenizer.adopt(path)
        assert tokenizer.ids == alone.ids and tokenizer.vocab_size == alone.vocab_size == len(BERT) + 5
        assert tokenizer.encode("the cats 哈 [MASK]") == alone.encode("the cats 哈 [MASK]")


@pytest.mark.parametrize(("line", "missing"), [("", 7), ("the", 6), ("the\r", 6)])
def test_blank_and_repeated_lines_are_refused(tmp_path: Path, line: str, missing: int) -> None:
    """They would leave an id without a token, and the special tokens would share the ids of words."""
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT[:7], line, *BERT[7:]]) + "\n", newline="")
    with pytest.raises(ValueError, match=rf"none of them has id {missing};.*put a word of its own"):
        GLMTokenizer.adopt(tmp_path)


def test_bert_needs_its_unknown_word_and_utf8(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: not UTF-8 at byte 4"):
        GLMTokenizer.adopt(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"it has no \[UNK\]"):
        GLMTokenizer.adopt(tmp_path)


# sentencepiece.


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """(file, processor)"""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT, "你好，世界。哈哈！", "naïve ﬁne Ａ１"]),
        model_writer=written,
        vocab_size=340,
        model_type=request.param,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file = tmp_path_factory.mktemp("spm") / "tiny.model"
    file.write_bytes(written.getvalue())
    return file, sentencepiece.SentencePieceProcessor(model_file=str(file))


@pytest.mark.parametrize(
    "text",
    [
        "the cat sat",
        " two  spaces ",
        "你好，世界 the cat",
        "ﬁne Ａ１",
        "zebra Ω 🙂",
        "a\tb\nc",
        "",
        "dog (small).",
    ],
)
def test_sentencepiece_gives_the_same_ids(sentencepiece_model: Any, text: str) -> None:
    file, processor = sentencepiece_model
    assert GLMTokenizer.adopt(file).encode(text) == processor.encode(text)


def test_sentencepiece_gets_the_ids_of_the_public_models(sentencepiece_model: Any) -> None:
    file, processor = sentencepiece_model
    tokenizer = GLMTokenizer.adopt(file.parent)
    size = processor.vocab_size()
    assert tokenizer.ids == SpecialIds(
        pad=size, eos=size, sep=size + 1, cls=size + 2, mask=size + 3, unk=size + 4,
        sop=size + 6, eop=size + 7, smask=size + 8, gmask=size + 9, dblock=size + 10,
    )  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"
    for name in ("<s>", "</s>", "<unk>", "<0x41>", "[MASK]", "<|endoftext|>"):
        ids = tokenizer.encode(f"the {name} cat")
        assert not set(ids) & {*tokenizer.ids, 0, 1, 2}
        assert tokenizer.decode(ids) == f"the {name} cat"


def test_a_special_token_of_sentencepiece_is_plain_text_too(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT, *["the [MASK] sat", "a [CLS] ran"] * 40]),
        model_prefix=str(tmp_path / "tiny"),
        vocab_size=60,
        user_defined_symbols=["[MASK]", "[CLS]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = GLMTokenizer.adopt(tmp_path / "tiny.model")
    for text in ("the [MASK] sat", "[CLS]", "[MASK][CLS]"):
        assert not set(tokenizer.encode(text)) & {tokenizer.ids.mask, tokenizer.ids.cls}
    assert tokenizer.encode("[MASK]", allow_special=True) == [tokenizer.ids.mask]


def test_a_sentencepiece_model_comes_before_a_tokenizer_json(
    sentencepiece_model: Any, tmp_path: Path
) -> None:
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model[0].read_bytes())
    WORDPIECE.save(tmp_path)
    assert GLMTokenizer.adopt(tmp_path).ids == GLMTokenizer.adopt(sentencepiece_model[0]).ids


# Other files.


def test_a_tokenizer_json_gets_what_it_lacks(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = GLMTokenizer.adopt(tmp_path)
    assert tokenizer.ids.eos == tokenizer.ids.pad == 1 and tokenizer.vocab_size == 11
    assert GLMTokenizer.adopt(WORDPIECE.save(tmp_path)).ids == WORDPIECE.ids


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("nowhere", None, FileNotFoundError, "no such file or folder"),
        ("words.csv", b"x", ValueError, "expected a tokenizer.json, GPT-2's"),
        ("a.model", b"\xff\xff no model", ValueError, "not a sentencepiece model"),
        ("tokenizer.json", b"{", ValueError, "not a tokenizer.json"),
    ],
)
def test_what_is_no_vocabulary_is_refused(
    tmp_path: Path, name: str, content: bytes | None, error: Any, said: str
) -> None:
    if name.endswith(".model"):
        pytest.importorskip("sentencepiece")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        GLMTokenizer.adopt(tmp_path / name)
    with pytest.raises(ValueError, match="holds no vocabulary"):
        GLMTokenizer.adopt(Path(__file__).parent)
