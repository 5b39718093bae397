"""The Winograd schema challenge (SuperGLUE's WSC): whom a pronoun means is written into a blank.

As in the public implementation: the model learns from the true examples alone, what the pronoun refers to;
an example is judged true if it writes the very span that was asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from glm_ext.data.blocks import Example
from glm_ext.data.cloze import Prompt
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.generate import GenerationConfig, fill_prompts
from glm_ext.model import GLM

from .likelihood import Likelihood, one_blank
from .pattern import encode_pattern, parse_pattern
from .records import Fields, examples_of, field_of, read_records
from .task import batches, length_option

_PATTERN = parse_pattern("{text} The pronoun '*{pronoun}*' refers to [MASK].")


@dataclass(frozen=True, slots=True, kw_only=True)
class Referent:
    """A text with a marked pronoun, and a span that it may refer to; label: whether it does."""

    blocks: Example
    prompt: Prompt
    span: str
    label: bool | None  # None: not known


class Wsc(Likelihood):
    name, primary = "wsc", "accuracy"

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        *,
        max_length: int | None = None,
        num_beams: int = 1,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """max_length: of Part A, 128 by default, or what max_positions leaves where that is less."""
        super().__init__(tokenizer, eval_batch_size, max_positions)
        self.max_length = length_option("max_length", max_length, max_positions, lowest=8, usual=128)
        self.generation = GenerationConfig(num_beams=num_beams)

    def examples(self, path: Path) -> list[Referent]:
        return examples_of(path, read_records(path), self._example)

    def labelled_examples(self, path: Path) -> list[Referent]:
        def make(record: Fields) -> Iterator[Referent]:
            field_of(record, "label")
            yield from self._example(record)

        return examples_of(path, read_records(path), make)

    def _example(self, record: Fields) -> Iterator[Referent]:
        target, text = record.get("target"), record.get("text")
        if not isinstance(target, dict) or not isinstance(text, str):
            raise ValueError('expected "text" and "target" with two spans')
        for name in ("span1_text", "span2_text"):
            if not isinstance(target[name], str) or not target[name].strip():
                raise ValueError(f"{name}: expected a text, got {target[name]!r}")
        marked, pronoun = mark(text, " ".join(target["span2_text"].split()), target["span2_index"])
        context = encode_pattern(
            self.tokenizer,
            _PATTERN,
            {"text": marked, "pronoun": pronoun},
            max_length=self.max_length,
            shorten=["text"],
        )
        ids, span = self.tokenizer.ids, target["span1_text"].strip()
        place = context.index(ids.mask)
        answer = [*self.tokenizer.encode(f" {span}"), ids.eop]
        if self.max_positions is not None and len(answer) >= self.max_positions:
            raise ValueError(
                f"span1_text: it has {len(answer) - 1} tokens and the model takes {self.max_positions - 2} "
                "(max_positions - 2)"
            )
        yield Referent(
            blocks=one_blank(self.tokenizer, context, place, answer),
            prompt=Prompt(context, [place]),
            span=span,
            label=_label(record),
        )

    def loss(self, model: GLM, examples: Sequence[Referent]) -> Tensor:  # type: ignore[override]
        """The mean over examples, of which the false ones cost nothing."""
        true = [example for example in examples if _known(example)]
        if not true:
            return model.word_embeddings.weight.sum() * 0.0
        return super().loss(model, true) * (len(true) / len(examples))

    def metrics(self, model: GLM, examples: Sequence[Referent]) -> dict[str, float]:
        longest = max(int(example.blocks.loss_mask.sum()) for example in examples)
        config = replace(self.generation, max_length=longest)
        labels, same = [_known(example) for example in examples], list[bool]()
        for batch in batches(examples, self.eval_batch_size):
            written = fill_prompts(model, self.tokenizer, [e.prompt for e in batch], None, config)
            for example, [span] in zip(batch, written, strict=True):
                same.append(self.tokenizer.decode(span).strip().lower() == example.span.lower())
        right = sum(found == label for found, label in zip(same, labels, strict=True))
        return {"accuracy": 100 * right / len(labels)}


def mark(text: str, pronoun: str, index: object) -> tuple[str, str]:
    """The text with stars around the pronoun at word `index`, and the pronoun as the text spells it.

    In the benchmark some indices are off by one, and marks may follow the pronoun.

    >>> mark("The man saw it, he said.", "it", 2)
    ('The man saw *it*, he said.', 'it')
    """
    words, count = text.split(), len(pronoun.split())
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f"span2_index: expected the place of a word, got {index!r}")
    for first in (index, index - 1, index + 1):
        found = " ".join(words[first : first + count]) if first >= 0 else ""
        rest = found[len(pronoun) :]
        if found.lower().startswith(pronoun.lower()) and not rest[:1].isalnum():
            spelled = found[: len(pronoun)]
            return " ".join([*words[:first], f"*{spelled}*{rest}", *words[first + count :]]), spelled
    raise ValueError(f"span2_index: expected the place of {pronoun!r}, got {words[index : index + count]}")


def _label(record: Fields) -> bool | None:
    """JSON has true and false, CSV their names."""
    if "label" not in record:
        return None  # a test set
    label = {"true": True, "false": False}.get(str(record["label"]).lower())
    if label is None:
        raise ValueError(f"label: expected true or false, got {record['label']!r}")
    return label


def _known(example: Referent) -> bool:
    if example.label is None:
        raise ValueError("expected a label in every example, found one without")
    return example.label
