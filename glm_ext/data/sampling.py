"""From tokenized documents to batches, a pure function of (seed, step, index): no loader state to lose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..batch import Batch, PackedBatch
from .bits import Flags
from .blocks import Example, Weights
from .collate import collate, collate_packed
from .documents import TokenDocuments
from .objectives import Mixture, Objective, token_spans
from .packing import Drawn, fill_budget
from .spans import Ints
from .special import SpecialIds

# A text whose spans do not fit is dropped and the next one drawn, and so is an objective that fits none of so
# many texts: rare, unless the corpus holds nothing that can be blanked.
_MAX_DRAWS = 100
_MAX_OBJECTIVES = 10

_EMPTY_BUFFER = np.zeros(4, dtype=np.uint64)


class Text(NamedTuple):
    """Tokens, the loss weight of each, and which of them end a sentence, where that is known."""

    tokens: Ints
    weights: Weights
    ends: Flags | None = None


def sample_text(
    documents: TokenDocuments,
    rng: np.random.Generator,
    max_length: int,
    cls: int,
    *,
    alone: slice | None = None,
) -> Text:
    """A text of max_length tokens, or one less where nothing more fits: [CLS] and a piece of a document.

    A document longer than the text is cut at a random place. One that is shorter is taken whole and others
    follow, each with its own [CLS] (of loss weight 0), the last one cut to the room left. They share the
    sequence: attention crosses from one to the next. alone: the place of a document that is taken by itself,
    instead of one drawn at random.
    """
    tokens = np.full(max_length, cls, dtype=np.int64)
    weights = np.zeros(max_length, dtype=np.float32)
    ends = None if documents.sentence_ends is None else np.zeros(max_length, dtype=np.bool_)
    longest = max_length - 1
    document = documents.draw(rng) if alone is None else alone
    begin, end = document.start, document.stop
    if end - begin > longest:
        begin += int(rng.integers(0, end - begin - longest, endpoint=True))
    filled = 0
    while True:
        source = slice(begin, min(end, begin + longest - filled))
        room = slice(filled + 1, filled + 1 + source.stop - source.start)
        tokens[room] = documents.tokens[source]
        weights[room] = 1.0 if documents.weights is None else documents.weights[source]
        if ends is not None and documents.sentence_ends is not None:
            ends[room] = documents.sentence_ends[source]
        filled = room.stop
        if alone is not None or filled + 2 > max_length:
            return Text(tokens[:filled], weights[:filled], None if ends is None else ends[:filled])
        document = documents.draw(rng)
        begin, end = document.start, document.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleBatches:
    """An endless supply of batches; batch k is the same whenever and wherever it is asked for.

    objective: what makes an example of a text, or a Mixture of such.

    max_length is the length of the text before blanking. Every position, of both rows, is below it, so a
    model with max_positions >= max_length can take every batch. Part A and Part B together have two tokens
    more than the text for every span.

    The examples of one optimizer step are numbered micro step first, then rank, then place in the batch: 1 x
    8, 2 x 4 in accumulation and 2 ranks x 4 draw the same eight (unless a mixture draws once per batch).

    token_budget: gives PackedBatches of so many tokens or a few less, instead of batch_size padded examples.
    join_documents: a text that has room left goes on with other documents, and they see each other, as in the
    public implementation; otherwise every example is of one document, and a token of a long document is read
    as often as one of a short document.
    """

    documents: TokenDocuments
    ids: SpecialIds
    batch_size: int
    max_length: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    objective: Objective | Mixture = token_spans
    token_budget: int | None = None
    join_documents: bool = True
    _reach: Ints = field(init=False, repr=False, compare=False)  # cumulative weight of each document

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.max_length < 2:
            raise ValueError(f"max_length: expected at least 2, [CLS] and a token, got {self.max_length}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size ({self.world_size}), got {self.rank}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: expected 0 <= seed < 2**64, got {self.seed}")
        if self.token_budget is not None and self.token_budget < self.max_length:
            raise ValueError(
                f"token_budget: expected at least max_length, {self.max_length}, got {self.token_budget}"
            )
        # A document is read whole, or max_length - 1 tokens of it: it has to come in proportion to how often
        # that goes into it, at least once, for all tokens to be read equally often.
        lengths = np.zeros(0) if self.join_documents else np.diff(self.documents.offsets)
        object.__setattr__(self, "_reach", np.cumsum(np.maximum(lengths, self.max_length - 1)))

    def sample(self, step: int, index: int) -> Example:
        """Example `index` of optimizer step `step`: a pure function of (seed, step, index).

        A text that does not fit its objective, or that has no target of weight, gives way to another; an
        objective that fits none of a hundred to another draw of both. ValueError if nothing will do.
        """
        return self._sample(self._generator(0, step, index), step, index)

    def share_that_fits(self) -> float:
        """Of a hundred texts of full length, the part that the objective makes an example of."""
        rng = self._generator(3, 0, 0)
        objective = self._objective(rng, 0, 0)
        fitting = [self._try(rng, objective, self.max_length) is not None for _ in range(_MAX_DRAWS)]
        return sum(fitting) / len(fitting)

    def _sample(self, rng: np.random.Generator, step: int, index: int) -> Example:
        return self._draw_whole(rng, step, index // self.batch_size).example

    def _draw_whole(self, rng: np.random.Generator, step: int, batch: int) -> Drawn:
        """An example of a text of full length."""
        for _ in range(_MAX_OBJECTIVES):
            if drawn := self._draw(rng, self._objective(rng, step, batch), self.max_length):
                return drawn
        raise self._no_example()

    def _draw(self, rng: np.random.Generator, objective: Objective, max_length: int) -> Drawn | None:
        tries = (self._try(rng, objective, max_length) for _ in range(_MAX_DRAWS))
        return next((drawn for drawn in tries if drawn is not None), None)

    def _try(self, rng: np.random.Generator, objective: Objective, max_length: int) -> Drawn | None:
        alone = None
        if not self.join_documents:
            place = rng.integers(self._reach[-1])
            alone = self.documents.where(int(self._reach.searchsorted(place, side="right")))
        text = sample_text(self.documents, rng, max_length, self.ids.cls, alone=alone)
        example = objective(text.tokens, rng, self.ids, weights=text.weights, ends=text.ends)
        if example is None or not example.loss_mask.any():
            return None
        return Drawn(example, len(text.tokens))

    def _no_example(self) -> ValueError:
        names = ", ".join(self.objective.active) + ": " if isinstance(self.objective, Mixture) else ""
        return ValueError(
            f"{names}no room for blanks in {_MAX_DRAWS * _MAX_OBJECTIVES} texts of {self.max_length} tokens: "
            "texts or documents too short, without whole sentences, or all prompt; lengthen the texts, or "
            f"join the documents, {self.documents.num_tokens / len(self.documents):.1f} tokens on average"
        )

    def _objective(self, rng: np.random.Generator, step: int, batch: int) -> Objective:
        if not isinstance(self.objective, Mixture):
            return self.objective
        if self.objective.per_batch:
            rng = self._generator(1, step, batch)
        return self.objective.draw(rng)

    def _generator(self, stream: int, step: int, index: int) -> np.random.Generator:
        # A counter-based generator: the coordinates are the state, the low word counts the draws.
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, index, step]))

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        """The batch of this rank: examples of step `step`, part `micro_step` of its gradient accumulation."""
        number = micro_step * self.world_size + self.rank
        if self.token_budget is not None:
            return self._packed(step, number, self.token_budget)
        first = number * self.batch_size
        rng = self._generator(0, step, first)
        examples = []
        for index in range(first, first + self.batch_size):
            _move(rng, [self.seed, 0], [0, 0, index, step])
            examples.append(self._sample(rng, step, index))
        return collate(examples, self.ids.pad)

    def _packed(self, step: int, number: int, budget: int) -> PackedBatch:
        rng = self._generator(2, step, number)

        def draw(place: int, limit: int) -> Drawn | None:
            _move(rng, [self.seed, 2], [0, place, number, step])
            if limit == self.max_length:
                return self._draw_whole(rng, step, number)
            return self._draw(rng, self._objective(rng, step, number), limit)  # else the batch is full

        examples = fill_budget(budget, self.max_length, draw)
        if not examples:
            raise self._no_example()
        return collate_packed(examples)

    def take(self, count: int) -> list[Batch]:
        """The batches of steps 0 .. count - 1: of held-out documents, the fixed set to evaluate on."""
        return [self.batch(step) for step in range(count)]


def _move(rng: np.random.Generator, key: list[int], counter: list[int]) -> None:
    """Makes a Philox generator that of Philox(key=key, counter=counter); a new one costs many times more."""
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.array(counter, dtype=np.uint64), "key": np.array(key, dtype=np.uint64)},
        "buffer": _EMPTY_BUFFER,
        "buffer_pos": len(_EMPTY_BUFFER),  # all of it used up
        "has_uint32": 0,
        "uinteger": 0,
    }
