"""Texts and prompts: blanks in their places, special tokens as plain text, streams."""

import importlib

import numpy as np
import pytest
import torch

from glm_ext import GLM, GLMConfig, fill, fill_tokens
from glm_ext.data import GLMTokenizer, encode_continuation, encode_prompt
from glm_ext.generate import continued, fill_all, generate, stream
from glm_ext.generate.fill import _insert, _pieces
from glm_ext.generate.writer import Written


@pytest.fixture(scope="module")
def tokenizer():
    return GLMTokenizer.train(
        ["the cat sat on the mat and the dog ran to the house 好的"] * 3, vocab_size=290
    )


@pytest.fixture(scope="module")
def glm(tokenizer):
    torch.manual_seed(0)
    return GLM(
        GLMConfig(vocab_size=384, num_layers=1, hidden_size=32, num_heads=4, max_positions=64, init_std=0.3)
    )


SAMPLING = {"temperature": 1.0, "seed": 3}
TEXTS = ["the [MASK] sat on [MASK].", "[MASK]", "the cat ran [sMASK] to the house [gMASK]"]


def test_texts_together_are_texts_alone(glm, tokenizer):
    alone = [
        fill(glm, tokenizer, text, max_length=6, temperature=1.0, seed=3 + i) for i, text in enumerate(TEXTS)
    ]
    assert fill_all(glm, tokenizer, TEXTS, max_length=6, **SAMPLING) == alone
    beams = [fill(glm, tokenizer, text, max_length=6, num_beams=3) for text in TEXTS]
    assert fill_all(glm, tokenizer, TEXTS, max_length=6, num_beams=3) == beams


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, SAMPLING])
def test_blanks_are_filled_in_the_order_asked_for(glm, tokenizer, options):
    text = "the [MASK] sat on [MASK] and [MASK]."
    prompt = encode_prompt(tokenizer, text, 64)
    ids = {"start_id": tokenizer.sop_id, "end_ids": [tokenizer.eop_id]}

    def spans(places, order):
        return fill_tokens(glm, prompt.tokens, places, order=order, max_length=4, **ids, **options)

    a, b, c = prompt.mask_positions
    in_order = spans([a, b, c], [2, 0, 1])
    assert in_order != spans([a, b, c], None)
    # The same by giving the places themselves in the order of filling.
    third, first, second = spans([c, a, b], None)
    assert in_order == [first, second, third]


@pytest.mark.parametrize("order", [[0], [0, 0, 1], [0, 1, 3]])
def test_an_order_names_every_blank_once(glm, tokenizer, order):
    with pytest.raises(ValueError, match=r"order: expected each of 0 to 2 once, got"):
        fill(glm, tokenizer, "[MASK] [MASK] [MASK]", order=order)


def test_what_is_written_is_text(glm, tokenizer):
    """No special token, no row that only pads the table, however flat the draw."""
    ids = {"start_id": tokenizer.sop_id, "end_ids": [tokenizer.eop_id]}
    prompt = encode_prompt(tokenizer, "[MASK]", 64)
    free = fill_tokens(glm, prompt.tokens, [1], max_length=60, temperature=99.0, seed=0, **ids)[0]
    assert any(token >= tokenizer.vocab_size or token in tokenizer.ids for token in free)
    written = []
    decode, tokenizer_type = GLMTokenizer.decode, type(tokenizer)
    try:
        tokenizer_type.decode = lambda self, ids, **more: written.extend(ids) or decode(self, ids, **more)
        fill(glm, tokenizer, "[MASK]", max_length=60, temperature=99.0, seed=0, min_length=60)
    finally:
        tokenizer_type.decode = decode
    assert len(written) == 60
    assert not [token for token in written if token >= tokenizer.vocab_size or token in tokenizer.ids]


def test_a_blank_takes_the_space_before_it():
    assert _insert("the [MASK] sat[sMASK]", [" cat", "."]).text == "the cat sat."
    assert _insert("the [MASK], [MASK]", ["cat", ""]).text == "the cat, "


def test_special_tokens_are_plain_text_unless_asked(tokenizer):
    text = "[MASK] [SEP] the <|endofpiece|>"
    plain = encode_prompt(tokenizer, text, 64).tokens
    asked = encode_prompt(tokenizer, text, 64, allow_special=True).tokens
    assert tokenizer.ids.sep not in plain
    assert plain.count(tokenizer.eop_id) == 0
    assert asked.count(tokenizer.ids.sep) == asked.count(tokenizer.eop_id) == 1
    prompt = encode_continuation(tokenizer, "the [MASK] [gMASK] ", 64)
    assert prompt.mask_positions == [len(prompt.tokens) - 1] and prompt.tokens[-1] == tokenizer.gmask_id


def test_continuations(tokenizer):
    words = tokenizer.encode("the cat")
    cls, gmask, smask, eos = tokenizer.cls_id, tokenizer.gmask_id, tokenizer.smask_id, tokenizer.eos_id
    assert encode_continuation(tokenizer, "the cat \n", 64).tokens == [cls, *words, gmask]
    assert encode_continuation(tokenizer, "the cat", 64, mask="[sMASK]").tokens == [cls, *words, smask, eos]
    with pytest.raises(ValueError, match=r"mask: expected one of \[MASK\], .* got '\[mask\]'"):
        encode_continuation(tokenizer, "the cat", 64, mask="[mask]")
    with pytest.raises(ValueError, match=r"the model takes 3 \(max_positions\); shorten it"):
        encode_continuation(tokenizer, "the cat sat on the mat", 3)


@pytest.mark.parametrize("prompt", ["", "the cat [MASK]"])
@pytest.mark.parametrize("mask", ["[gMASK]", "[sMASK]"])
def test_a_stream_is_the_text_in_pieces(glm, tokenizer, prompt, mask):
    options = {"max_length": 40, "min_length": 10, **SAMPLING}
    whole = generate(glm, tokenizer, prompt, mask=mask, **options)
    pieces = list(stream(glm, tokenizer, prompt, mask=mask, **options))
    assert "".join(pieces) == whole and all(pieces)
    assert len(pieces) > 1
    # The same as filling a text that ends in the mask.
    if "[MASK]" not in prompt:
        assert fill(glm, tokenizer, f"{prompt}{mask}", **options).spans == [whole]


def test_characters_of_several_tokens_come_whole(tokenizer):
    fresh = GLMTokenizer.train(["abc"], vocab_size=268)
    tokens = fresh.encode("a好b哈")
    assert list(_pieces(fresh, [], iter(tokens))) == ["a", "好", "b", "哈"]
    cut = list(_pieces(fresh, [], iter(tokens[:-1])))
    assert cut[:3] == ["a", "好", "b"] and "".join(cut) == fresh.decode(tokens[:-1])


KINDS = ["bpe", "wordpiece", "unigram", "sentencepiece"]
WORDS = ["the cat sat on the mat and the dog ran to the house"] * 4


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request, tmp_path_factory):
    if request.param != "sentencepiece":
        return GLMTokenizer.train(WORDS, vocab_size=300, kind=request.param)
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "tiny"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_prefix=str(prefix),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return GLMTokenizer.adopt(prefix.with_suffix(".model"))


def test_pieces_joined_are_the_text_whatever_is_written(any_tokenizer):
    """Also where bytes follow each other that are no characters."""
    words = sorted({*range(any_tokenizer.vocab_size)} - {*any_tokenizer.ids})
    for seed in range(30):
        tokens = np.random.default_rng(seed).choice(words, 24).tolist()
        assert "".join(_pieces(any_tokenizer, [], iter(tokens))) == any_tokenizer.decode(tokens)


@pytest.mark.parametrize("prompt", ["the cat", "the cat ", "the cat\n", ""])
def test_prompt_and_continuation_are_one_text(glm, any_tokenizer, monkeypatch, prompt):
    """Whether the vocabulary knows a space at the beginning of what is written, or not."""
    text = "the cat sat on the mat"
    known = any_tokenizer.encode(prompt.rstrip())
    assert any_tokenizer.encode(text)[: len(known)] == known
    span = any_tokenizer.encode(text)[len(known) :]
    module = importlib.import_module("glm_ext.generate.fill")
    monkeypatch.setattr(module, "write", lambda *a, **k: (Written(0, 0, token) for token in span))
    assert "".join(continued(prompt, stream(glm, any_tokenizer, prompt, max_length=32))) == text
    assert "".join(continued(prompt, [generate(glm, any_tokenizer, prompt, max_length=32)])) == text


def test_pieces_go_on_within_words(any_tokenizer):
    tokens = any_tokenizer.encode("the house")
    for cut in range(len(tokens) + 1):
        pieces = _pieces(any_tokenizer, tokens[:cut], iter(tokens[cut:]))
        assert any_tokenizer.decode(tokens[:cut]) + "".join(pieces) == "the house"


def test_white_space_after_a_prompt_comes_back():
    assert "".join(continued("one\n", ["two", " three"])) == "one\ntwo three"
    assert "".join(continued("one \n", [" two"])) == "one two"
    assert "".join(continued("one\n", [])) == "one\n"


def test_a_stream_starts_before_it_ends(glm, tokenizer, monkeypatch):
    steps = []
    hidden = GLM.hidden
    monkeypatch.setattr(GLM, "hidden", lambda *a, **k: steps.append(1) or hidden(*a, **k))
    pieces = stream(glm, tokenizer, "the cat", max_length=40, min_length=40)
    next(pieces)
    first = len(steps)
    list(pieces)
    assert first < len(steps) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *m: fill(*m, "no blank"), r"no blank to fill in 'no blank': write \[MASK\]"),
        (lambda *m: fill(*m, "[MASK] " * 33), "33 blanks, more than max_blanks = 32; fill it in parts"),
        (lambda *m: fill(*m, "word [MASK] " * 60), r"the model takes 64 \(max_positions\)"),
        (lambda *m: fill(*m, "[MASK]", max_length=64), "max_length: expected 1 to 63 for this model, got 64"),
        (lambda *m: stream(*m, num_beams=2), "num_beams: a beam search cannot be streamed"),
        (lambda *m: fill_all(*m, ["[MASK]"] * 2, orders=[[0]]), "orders: expected one for each of 2 texts"),
    ],
)
def test_what_cannot_be_written_is_refused(glm, tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(glm, tokenizer)


def test_an_unknown_setting_is_refused(glm, tokenizer):
    with pytest.raises(TypeError, match="beam_size"):
        fill(glm, tokenizer, "[MASK]", beam_size=2)
