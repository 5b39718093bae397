"""Language modelling: the last word of a text, the perplexity of long texts, and words missing within one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glm_ext.data.blocks import Example, make_blocks
from glm_ext.data.cloze import Prompt
from glm_ext.data.spans import Spans
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.generate import GenerationConfig, fill_prompts
from glm_ext.model import GLM

from .likelihood import Likelihood, continuation, mask_field, tokens_besides
from .records import Fields, Record, examples_of, read_records, read_text
from .task import batches, length_option
from .words import split_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a text whose targets are scored; words: of the whole text, told by its first piece."""

    blocks: Example
    words: int = 0


class LastWord(Likelihood):
    """Predicting the last word of a passage (LAMBADA): {"text": ...} a line.

    A word is right if each of its tokens is the likeliest, and none stands for what the vocabulary lacks.
    unidirectional: the passage is Part B, as a left-to-right model reads it; by default it is Part A.
    """

    name, primary = "last_word", "accuracy"

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        *,
        unidirectional: bool = False,
        mask: str = "[MASK]",
        max_length: int | None = None,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """max_length: tokens of the context; of longer ones the end is kept.

        By default 256, or what max_positions leaves where that is less.
        """
        super().__init__(tokenizer, eval_batch_size, max_positions)
        self.unidirectional, self.mask = unidirectional, mask_field(mask)
        besides = tokens_besides(self.mask, unidirectional=unidirectional)
        self.max_length = length_option("max_length", max_length, max_positions, besides=besides)

    def examples(self, path: Path) -> list[Passage]:
        return examples_of(path, read_records(path), self._example)

    def _example(self, record: Fields) -> Iterator[Passage]:
        before, _, word = _text(record).rpartition(" ")
        if not before.strip():
            raise ValueError(f"text: expected two words or more, got {word!r}")
        context, answer = self.tokenizer.encode(before.rstrip()), self.tokenizer.encode(f" {word}")
        length = self.max_length
        if self.max_positions is not None:
            if len(answer) >= self.max_positions:
                raise ValueError(
                    f"text: the last word has {len(answer)} tokens and the model takes "
                    f"{self.max_positions - 1} (max_positions - 1)"
                )
            if self.unidirectional:
                length = min(length, self.max_positions - len(answer))
        blocks = continuation(
            self.tokenizer,
            context[-length:],
            answer,
            mask=self.mask,
            unidirectional=self.unidirectional,
        )
        yield Passage(blocks=blocks, words=1)

    def metrics(self, model: GLM, examples: Sequence[Passage]) -> dict[str, float]:
        costs, right = zip(*self.nll_and_hits(model, examples), strict=True)
        return {"accuracy": 100 * sum(right) / len(right), "log_likelihood": -sum(costs) / len(costs)}


class Perplexity(Likelihood):
    """exp(-log p a token) of long texts by a sliding window: a .txt file, or {"text": ...} a line.

    A window holds `window` tokens, of which the last `stride` are scored, after the rest; the first window
    scores all but its first token. So each token but the first of a text is scored once. word_perplexity
    spreads the same cost over the text's words (of Chinese and Japanese, its characters), which makes
    different vocabularies comparable.
    """

    name, primary = "perplexity", "log_likelihood"

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        *,
        window: int | None = None,
        stride: int | None = None,
        unidirectional: bool = False,
        mask: str = "[gMASK]",
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """window: 256 by default, or what max_positions leaves where that is less. stride: half of it."""
        super().__init__(tokenizer, eval_batch_size, max_positions)
        self.unidirectional, self.mask = unidirectional, mask_field(mask)
        # One token of the window at least is scored, and no context.
        besides = tokens_besides(self.mask, unidirectional=unidirectional) - 1
        self.window = length_option("window", window, max_positions, besides=besides, lowest=2)
        self.stride = self.window // 2 if stride is None else stride
        if not 1 <= self.stride < self.window:
            raise ValueError(f"stride: expected 1 to {self.window - 1}, less than window, got {self.stride}")

    def examples(self, path: Path) -> list[Passage]:
        if path.suffix.lower() == ".txt":
            records = [Record(1, {"text": read_text(path)})]
        else:
            records = read_records(path)
        return examples_of(path, records, self._examples)

    def _examples(self, record: Fields) -> Iterator[Passage]:
        text = _text(record)
        tokens = self.tokenizer.encode(text)
        if len(tokens) < 2:
            raise ValueError(f"text: expected two tokens or more, got {text!r}")
        words = len(split_words(text))
        end = 1
        while end < len(tokens):
            begin = end  # of what is scored
            end = min(self.window if begin == 1 else begin + self.stride, len(tokens))
            context = tokens[max(0, end - self.window) : begin]
            blocks = continuation(
                self.tokenizer,
                context,
                tokens[begin:end],
                mask=self.mask,
                unidirectional=self.unidirectional,
            )
            yield Passage(blocks=blocks, words=words if begin == 1 else 0)

    def metrics(self, model: GLM, examples: Sequence[Passage]) -> dict[str, float]:
        total = sum(self.nll(model, examples))
        per_token = total / sum(int(example.blocks.loss_mask.sum()) for example in examples)
        values = {"log_likelihood": -per_token, "perplexity": _exp(per_token)}
        if words := sum(example.words for example in examples):
            values["word_perplexity"] = _exp(total / words)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """A text with words missing, and what stood there, left to right."""

    blocks: Example
    prompt: Prompt
    answers: list[str]


class _Run(NamedTuple):
    text: str
    tokens: list[int]
    missing: bool


class Infill(Likelihood):
    """Words missing within a text, {"text": ...} a line: each is left out with probability `ratio`.

    Words are those of `split_words`. Neighbours share a blank; a text has one blank at least. exact: blanks
    that greedy filling restores word for word, left to right, each seeing what was written before. The gaps
    follow from seed and text alone.
    """

    name, primary, mask = "infill", "log_likelihood", "mask"

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        *,
        ratio: float = 0.15,
        seed: int = 0,
        max_length: int | None = None,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """max_length: tokens of a text; of longer ones the beginning is kept.

        By default 256, or what max_positions leaves where that is less.
        """
        super().__init__(tokenizer, eval_batch_size, max_positions)
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio: expected 0 < ratio <= 1, got {ratio}")
        self.ratio, self.seed = ratio, seed
        self.max_length = length_option("max_length", max_length, max_positions, lowest=8)

    def examples(self, path: Path) -> list[Gaps]:
        return examples_of(path, read_records(path), self._example)

    def _example(self, record: Fields) -> Iterator[Gaps]:
        text = _text(record)
        words, seed = self._beginning(text), [self.seed, *text.encode()]
        runs = self._runs(words, np.random.default_rng(seed))
        # Words may have more tokens together than apart, where no white space is between them.
        while sum(len(run.tokens) for run in runs) > self.max_length - 2:
            words.pop()
            runs = self._runs(words, np.random.default_rng(seed))

        ids = self.tokenizer.ids
        tokens, starts, ends, answers = [ids.cls], list[int](), list[int](), list[str]()
        for run in runs:
            begin = len(tokens)
            tokens += run.tokens
            if run.missing:
                starts.append(begin)
                ends.append(len(tokens))
                answers.append(run.text.strip())
        tokens.append(ids.eos)
        blocks = make_blocks(
            np.array(tokens),
            Spans(np.array(starts), np.array(ends) - np.array(starts)),
            np.arange(len(starts)),
            mask=ids.mask,
            sop=ids.sop,
            eop=ids.eop,
        )
        part_a = blocks.tokens[: blocks.prefix_len].tolist()
        places = [place for place, token in enumerate(part_a) if token == ids.mask]
        yield Gaps(blocks=blocks, prompt=Prompt(part_a, places), answers=answers)

    def _beginning(self, text: str) -> list[str]:
        """The words that fit into max_length, each taken alone; of a first word that does not, a part."""
        words = split_words(text)
        lengths = np.cumsum([len(tokens) for tokens in self.tokenizer.encode_batch(words)])
        if fitting := words[: int((lengths <= self.max_length - 2).sum())]:
            return fitting
        word = words[0]
        while len(self.tokenizer.encode(word)) > self.max_length - 2:
            if len(word) == 1:
                raise ValueError(f"text: expected {self.max_length - 2} tokens or fewer in {word!r}")
            word = word[: len(word) // 2]
        return [word]

    def _runs(self, words: list[str], rng: np.random.Generator) -> list[_Run]:
        """Runs of words that are all there or all missing; one is missing at least."""
        missing = rng.random(len(words)) < self.ratio
        missing[rng.integers(len(words))] |= not missing.any()
        edges = [0, *(np.flatnonzero(np.diff(missing)) + 1).tolist(), len(words)]
        texts = ["".join(words[first:last]) for first, last in pairwise(edges)]
        return [
            _Run(text, self.tokenizer.encode(text), bool(missing[first]))
            for text, first in zip(texts, edges, strict=False)
        ]

    def metrics(self, model: GLM, examples: Sequence[Gaps]) -> dict[str, float]:
        per_target = sum(self.nll(model, examples)) / sum(
            int(example.blocks.loss_mask.sum()) for example in examples
        )
        longest = max(len(self.tokenizer.encode(f" {a}")) for example in examples for a in example.answers)
        config = GenerationConfig(
            max_length=min(longest + 1, model.config.max_positions - 1), max_blanks=self.max_length
        )
        right = []
        for batch in batches(examples, self.eval_batch_size):
            prompts = [example.prompt for example in batch]
            written = fill_prompts(model, self.tokenizer, prompts, None, config)
            for example, spans in zip(batch, written, strict=True):
                texts = [self.tokenizer.decode(span).strip() for span in spans]
                right += [text == answer for text, answer in zip(texts, example.answers, strict=True)]
        return {
            "log_likelihood": -per_target,
            "perplexity": _exp(per_target),
            "exact": 100 * sum(right) / len(right),
        }


def _text(record: Fields) -> str:
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'expected a text in the field "text", got {text!r}')
    return text.strip()


def _exp(nll: float) -> float:
    """inf where no float is as large, as for an untrained model and a word of hundreds of tokens."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
