"""The Winograd schema challenge (SuperGLUE's WSC): whom a pronoun means is written into a blank.

As in the public implementation: the model learns from the true examples alone, what the pronoun refers to;
an example is judged true if it writes the very span that was asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from glm_ext.data.blocks import Example
from glm_ext.data.cloze import Prompt
from glm_ext.generate import GenerationConfig, fill_prompts
from glm_ext.model import GLM

from .likelihood import Likelihood
from .pattern import encode_pattern, parse_pattern
from .records import Fields, examples_of, read_records

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer

_PATTERN = parse_pattern("{text} The pronoun '*{pronoun}*' refers to [MASK].")


@dataclass(frozen=True, slots=True, kw_only=True)
class Referent:
    """A text with a marked pronoun, and a span that it may refer to; label: whether it does."""

    blocks: Example
    prompt: Prompt
    span: str
    label: bool | None


class Wsc(Likelihood):
    name, primary = "wsc", "accuracy"

    def __init__(
        self, tokenizer: GLMTokenizer, *, max_length: int = 128, num_beams: int = 1, eval_batch_size: int = 16
    ) -> None:
        super().__init__(tokenizer, eval_batch_size)
        self.max_length, self.num_beams = max_length, num_beams

    def examples(self, path: Path) -> list[Referent]:
        return examples_of(path, read_records(path), self._example)

    def _example(self, record: Fields) -> Iterator[Referent]:
        target, text = record.get("target"), record.get("text")
        if not isinstance(target, dict) or not isinstance(text, str):
            raise ValueError('expected "text" and "target" with two spans')
        words, pronoun = text.split(" "), str(target["span2_text"])
        first, last = int(target["span2_index"]), int(target["span2_index"]) + len(pronoun.split(" "))
        if not " ".join(words[first:last]).lower().startswith(pronoun.lower()):
            raise ValueError(f"span2_index: expected the place of {pronoun!r}, got {words[first:last]}")
        marked = [*words[:first], f"*{pronoun}*", *words[last:]]
        context = encode_pattern(
            self.tokenizer,
            _PATTERN,
            {"text": " ".join(marked), "pronoun": pronoun},
            max_length=self.max_length,
            shorten=["text"],
        )
        ids, span = self.tokenizer.ids, str(target["span1_text"]).strip()
        place = context.index(ids.mask)
        answer = [*self.tokenizer.encode(f" {span}"), ids.eop]
        a, b = len(context), len(answer)
        positions = np.zeros((2, a + b), dtype=np.int64)
        positions[0] = [*range(a), *[place] * b]
        positions[1, a:] = range(1, b + 1)
        blocks = Example(
            tokens=np.array([*context, ids.sop, *answer[:-1]]),
            targets=np.array([*context, *answer]),
            positions=positions,
            loss_mask=np.repeat(np.array([0, 1], dtype=np.float32), [a, b]),
            prefix_len=a,
        )
        yield Referent(
            blocks=blocks,
            prompt=Prompt(context, [place], [ids.mask]),
            span=span,
            label=record.get("label"),
        )

    def loss(self, model: GLM, examples: Sequence[Referent]) -> Tensor:  # type: ignore[override]
        """Over the true examples; 0 where there is none."""
        true = [example for example in examples if example.label]
        if not true:
            return model.word_embeddings.weight.sum() * 0.0
        return super().loss(model, true)

    def metrics(self, model: GLM, examples: Sequence[Referent]) -> dict[str, float]:
        longest = max(int(example.blocks.loss_mask.sum()) for example in examples)
        config = GenerationConfig(max_length=longest, num_beams=self.num_beams)
        right = []
        for first in range(0, len(examples), self.eval_batch_size):
            batch = examples[first : first + self.eval_batch_size]
            written = fill_prompts(model, self.tokenizer, [e.prompt for e in batch], None, config)
            for example, [span] in zip(batch, written, strict=True):
                same = self.tokenizer.decode(span).strip().lower() == example.span.lower()
                right.append(same == example.label)
        return {"accuracy": 100 * sum(right) / len(right)}
