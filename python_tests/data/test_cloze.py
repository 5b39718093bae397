"""Prompts with blanks, and blanks in held-out sentences."""

import numpy as np
import pytest

from glm_ext.data import GLMTokenizer, Split, encode_prompt, held_out_cloze


def test_a_prompt_is_part_a_of_the_text(tokenizer: GLMTokenizer) -> None:
    prompt = encode_prompt(tokenizer, "The [MASK] ran. [sMASK] Then it slept.", 64)
    words = [tokenizer.encode(piece) for piece in ("The", " ran.", " Then it slept.")]
    masks = [tokenizer.mask_id, tokenizer.smask_id]
    assert prompt.tokens == [
        tokenizer.cls_id, *words[0], masks[0], *words[1], masks[1], *words[2], tokenizer.eos_id,
    ]  # fmt: skip
    assert [prompt.tokens[place] for place in prompt.mask_positions] == masks


def test_a_text_to_be_continued_is_not_closed(tokenizer: GLMTokenizer) -> None:
    prompt = encode_prompt(tokenizer, "Once upon a time [gMASK]", 64)
    assert prompt.tokens[-1] == tokenizer.gmask_id and prompt.mask_positions == [len(prompt.tokens) - 1]
    assert encode_prompt(tokenizer, "[gMASK]", 64).tokens == [tokenizer.cls_id, tokenizer.gmask_id]


def test_other_special_tokens_in_a_prompt_are_plain_text(tokenizer: GLMTokenizer) -> None:
    prompt = encode_prompt(tokenizer, "<|endoftext|> [PAD] [MASK] <|endofpiece|>", 64)
    special = [token for token in prompt.tokens if token in tokenizer.ids]
    assert special == [tokenizer.cls_id, tokenizer.mask_id, tokenizer.eos_id]


def test_prompts_that_cannot_be_filled_are_refused(tokenizer: GLMTokenizer) -> None:
    for text in ("", "no blank here", "[mask] [MASK"):
        with pytest.raises(ValueError, match=r"no blank to fill .*write \[MASK\]"):
            encode_prompt(tokenizer, text, 64)
    tokens = encode_prompt(tokenizer, "the cat [MASK] on the mat", 64).tokens
    assert encode_prompt(tokenizer, "the cat [MASK] on the mat", len(tokens)).tokens == tokens
    with pytest.raises(ValueError, match=f"has {len(tokens)} tokens and the model takes {len(tokens) - 1}"):
        encode_prompt(tokenizer, "the cat [MASK] on the mat", len(tokens) - 1)


def test_a_blank_has_the_place_it_has_in_training(tokenizer: GLMTokenizer) -> None:
    """Putting the truth's tokens where the mask stands gives the tokens of the sentence."""
    sentence = "The name of the file is returned."
    prompt = encode_prompt(tokenizer, sentence.replace("name", "[MASK]"), 64)
    place = prompt.mask_positions[0]
    filled = [*prompt.tokens[:place], *tokenizer.encode(" name"), *prompt.tokens[place + 1 :]]
    assert filled == [tokenizer.cls_id, *tokenizer.encode(sentence), tokenizer.eos_id]


def test_held_out_blanks_restore_to_held_out_sentences(split: Split) -> None:
    text = "\n".join(split.held_out)
    for seed in range(20):
        chosen = held_out_cloze(split.held_out, np.random.default_rng(seed), 3)
        sentences = [cloze.text.replace("[MASK]", cloze.truth) for cloze in chosen]
        assert len(set(sentences)) == 3
        for cloze, sentence in zip(chosen, sentences, strict=True):
            assert sentence in text and cloze.text.count("[MASK]") == 1
            assert 8 <= len(sentence.split()) <= 30 and len(cloze.truth.split()) in (1, 2)


def test_held_out_blanks_are_reproducible(split: Split) -> None:
    first, second = (held_out_cloze(split.held_out, np.random.default_rng(5), 3) for _ in range(2))
    assert first == second


def test_too_little_text_gives_fewer_blanks() -> None:
    one = ["This is the one good sentence of the whole lot. Short one."]
    assert len(held_out_cloze(one, np.random.default_rng(0), 3)) == 1
    assert held_out_cloze(["短。"], np.random.default_rng(0), 3) == []
