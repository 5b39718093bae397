"""Understanding as filling a blank (Du et al. 2022, "GLM", section 2.3).

A task is a short description: a pattern that makes a text with one blank of a record, and what may stand in
the blank, the same for all records (a verbalizer) or each record's own choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.extras import require
from glm_ext.model import GLM, inference

from .choices import Question, check_question, choice_log_probs, choice_loss
from .description import Description
from .metrics import METRICS
from .pattern import encode_pattern, parse_pattern, render
from .records import Fields, examples_of, field_of, read_records
from .task import Task, at_least, batches, length_option


def _label(value: object) -> str:
    """How a label is spelled in a description: true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole(value: Any) -> int:
    """JSON has numbers, CSV their texts. TypeError or ValueError for what is no whole number."""
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _check_told_apart(texts: Sequence[str], choices: Sequence[Sequence[int]], gold: frozenset[int]) -> None:
    """ValueError for a right and a wrong answer of the same tokens, as two that the vocabulary lacks.

    Two spellings of one word may be the same to an uncased vocabulary.
    """
    for right in gold:
        for other in set(range(len(choices))) - gold:
            if choices[right] == choices[other] and texts[right].casefold() != texts[other].casefold():
                raise ValueError(
                    f"choices: {texts[right]!r} and {texts[other]!r} are the same tokens in this vocabulary"
                )


class Cloze(Task):
    """A description with a tokenizer: the Task.

    In training, cross-entropy over the choices' log-probabilities; the likeliest is the prediction.
    """

    module: nn.Module | None = None

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        description: Description | str | Path,
        *,
        max_length: int | None = None,
        length_penalty: float = 0.0,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """max_length: of Part A, 256 by default, or what max_positions leaves where that is less.

        length_penalty: see `choice_log_probs`. A path is a description's file.
        """
        if not isinstance(description, Description):
            description = Description.load(description)
        at_least(1, eval_batch_size=eval_batch_size)
        self.tokenizer, self.description = tokenizer, description
        self.max_length = length_option("max_length", max_length, max_positions, lowest=8)
        self.length_penalty, self.eval_batch_size = length_penalty, eval_batch_size
        self.max_positions = max_positions
        self.name = description.name
        self.primary = description.primary
        self._pieces = parse_pattern(description.pattern)
        self._check_verbalizer()

    def check(self) -> None:
        for metric in self.description.metrics:
            if package := METRICS[metric].package:
                require(package, extra="eval", purpose=metric)

    def examples(self, path: Path) -> list[Question]:
        return self._questions(path, self._expand)

    def labelled_examples(self, path: Path) -> list[Question]:
        return self._questions(path, self._expand, labelled=True)

    def training_examples(self, path: Path, rng: np.random.Generator) -> list[Question]:
        expand = self.description.expand_training
        if expand is None:
            return self.labelled_examples(path)
        return self._questions(path, lambda record: expand(record, rng), labelled=True)

    def _expand(self, record: Fields) -> Iterable[Fields]:
        expand = self.description.expand
        return [record] if expand is None else expand(record)

    def _questions(
        self, path: Path, expand: Callable[[Fields], Iterable[Fields]], *, labelled: bool = False
    ) -> list[Question]:
        def make(line: Fields) -> Iterator[Question]:
            for record in expand(line):
                question = self.question(record)
                if labelled:
                    self._check_gold(record, question)
                yield question

        return examples_of(path, read_records(path), make)

    def _check_gold(self, record: Fields, question: Question) -> None:
        """ValueError for a record that does not tell what is right, or tells more than a metric can judge."""
        value = field_of(record, self.description.label)
        single = any(METRICS[metric].one_right for metric in self.description.metrics)
        if not question.gold or (single and len(question.gold) > 1):
            expected = "one right choice" if single else "at least one right choice"
            raise ValueError(f"{self.description.label}: expected {expected}, got {value!r}")

    def question(self, record: Fields) -> Question:
        """ValueError for a field that is missing, an unknown label, no choices, or one that is too long."""
        context = encode_pattern(
            self.tokenizer,
            self._pieces,
            record,
            max_length=self.max_length,
            shorten=self.description.shorten,
        )
        texts = self._choices(record)
        choices, gold = self._encode(texts), self._gold(record, len(texts))
        _check_told_apart(texts, choices, gold)
        question = Question(
            context=context,
            place=self._place(context),
            choices=choices,
            gold=gold,
            texts=texts,
            group=str(record.get(self.description.group, "")),
        )
        if self.max_positions is not None:
            check_question(question, self.max_positions)
        return question

    def loss(self, model: GLM, examples: Sequence[Question]) -> Tensor:
        return choice_loss(self.log_probs(model, examples), examples)

    def log_probs(self, model: GLM, examples: Sequence[Question]) -> Tensor:
        """Of every choice [Q, K], as `choice_log_probs`."""
        return choice_log_probs(
            model,
            examples,
            start_id=self.tokenizer.sop_id,
            end_id=self.tokenizer.eop_id,
            length_penalty=self.length_penalty,
        )

    def predict(self, model: GLM, examples: Sequence[Question]) -> list[int]:
        """The number of each question's likeliest choice."""
        predictions: list[int] = []
        with inference(model):
            for batch in batches(examples, self.eval_batch_size):
                predictions += self.log_probs(model, batch).argmax(1).tolist()
        return predictions

    def metrics(self, model: GLM, examples: Sequence[Question]) -> dict[str, float]:
        for question in examples:
            if not question.gold:
                raise ValueError("expected a label in every example to judge by, found one without")
        predictions = self.predict(model, examples)
        values: dict[str, float] = {}
        for metric in self.description.metrics:
            values |= METRICS[metric].score(examples, predictions)
        return values

    def _place(self, context: Sequence[int]) -> int:
        return next(place for place, token in enumerate(context) if token in self.tokenizer.mask_ids)

    def _choices(self, record: Fields) -> list[str]:
        description = self.description
        if description.verbalizer:
            return list(description.verbalizer.values())
        if len(description.choices) == 1 and description.choices[0].startswith("*"):
            name = description.choices[0][1:]
            texts = record.get(name)
            if not isinstance(texts, list):
                raise ValueError(f"{name}: expected a list of choices, got {texts!r}")
            texts = [str(text).strip() for text in texts]
        else:
            texts = [render(pattern, record).strip() for pattern in description.choices]
        if not texts or not all(texts):
            raise ValueError(f"choices: expected at least one and none empty, got {texts!r}")
        if len(set(texts)) < len(texts):
            raise ValueError(f"choices: expected different ones, got {texts!r}")
        return texts

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A blank swallows the white space on its left, so what fills it brings its own."""
        return [self.tokenizer.encode(f" {text}") for text in texts]

    def _check_verbalizer(self) -> None:
        """ValueError for answers that the vocabulary lacks or cannot tell apart."""
        texts = list(self.description.verbalizer.values())
        answers = self._encode(texts)
        for text, tokens in zip(texts, answers, strict=True):
            if self.tokenizer.ids.unk in tokens:
                raise ValueError(f"{self.name}: verbalizer: {text!r} is not in the vocabulary")
        if len({tuple(tokens) for tokens in answers}) < len(answers):
            raise ValueError(f"{self.name}: verbalizer: expected different answers, got {texts}")

    def _gold(self, record: Fields, count: int) -> frozenset[int]:
        name = self.description.label
        if name not in record:
            return frozenset()  # a test set
        value = record[name]
        if self.description.verbalizer:
            labels = self.description.labels
            if _label(value) not in labels:
                raise ValueError(f"{name}: expected one of {', '.join(labels)}, got {_label(value)!r}")
            return frozenset([labels.index(_label(value))])
        numbers = value if isinstance(value, list) else [value]
        try:
            gold = frozenset(map(_whole, numbers))
        except (TypeError, ValueError):
            raise ValueError(f"{name}: expected a whole number, that of a choice, got {value!r}") from None
        if not gold <= set(range(count)):
            raise ValueError(f"{name}: expected 0 to {count - 1}, the number of a choice, got {value!r}")
        return gold
