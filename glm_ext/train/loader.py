"""The batches of one optimizer step after another, made ahead of time by other processes if wanted.

A step's batches are a pure function of its number, so nothing depends on who makes them or when: the same
bits with any number of workers, and no position in the data to remember.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from glm_ext.batch import Batch


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """All micro batches of an optimizer step.

    batch_at: (step, micro step) -> Batch, pure.
    step_tokens: where given, a step has as many micro batches as it takes to hold so many tokens; else it has
    `accumulation`.
    """

    batch_at: Callable[[int, int], Batch]
    accumulation: int = 1
    step_tokens: int | None = None

    def __getitem__(self, step: int) -> list[Batch]:
        if self.step_tokens is None:
            return [self.batch_at(step, micro_step) for micro_step in range(self.accumulation)]
        batches: list[Batch] = []
        tokens = 0
        while tokens < self.step_tokens:
            batches.append(self.batch_at(step, len(batches)))
            tokens += batches[-1].num_tokens
        return batches

    def load(self, steps: range, *, workers: int = 0) -> Iterator[list[Batch]]:
        """The batches of each of the steps, in order; workers processes make them, or with 0 the caller."""
        loader: DataLoader[Any] = DataLoader(
            self,  # type: ignore[arg-type]  # __getitem__ is all that it asks for
            sampler=steps,
            batch_size=None,
            collate_fn=_to_arrays,
            num_workers=workers,
            worker_init_fn=_leave_interrupts_to_the_parent,
            # Without one of its own, the loader would draw from the generator that dropout draws from.
            generator=torch.Generator(),
        )
        return map(_to_batches, loader)


# A tensor would come through shared memory, each with a file that is open until it is freed: a step of many
# micro batches has more of them than a process may open. An array comes as its bytes.
_Arrays = list[tuple[type["Batch"], dict[str, Any]]]


def _to_arrays(batches: list[Batch]) -> _Arrays:
    return [
        (type(batch), {name: t if t is None else t.numpy() for name, t in _tensors(batch)})
        for batch in batches
    ]


def _to_batches(made: _Arrays) -> list[Batch]:
    batches = []
    for kind, arrays in made:
        tensors: dict[str, Any] = {n: a if a is None else torch.from_numpy(a) for n, a in arrays.items()}
        batches.append(kind(**tensors))
    return batches


def _tensors(batch: Batch) -> Iterator[tuple[str, Tensor | None]]:
    return ((field.name, getattr(batch, field.name)) for field in fields(batch))


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent still saves
