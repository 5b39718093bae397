"""Runs ops of glm_ext on their CUDA kernels, executed on the host."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Which thread goes on, and when a cp.async lands. A right kernel gives the same bits under all."""

    order: str
    seed: int = 0
    deferred: bool = False

    def __str__(self) -> str:
        copies = "deferred" if self.deferred else "eager"
        return f"{self.order}{self.seed or ''}-{copies}"


ORDERS = [("in_order", 0), ("reversed", 0), ("skewed", 0), ("random", 1), ("random", 2)]
SCHEDULES = [Schedule(*order, deferred) for order, deferred in itertools.product(ORDERS, (False, True))]


class Simt:
    """glm_ext_simt as a stand-in for glm_ext._C; a call's kernels may touch its tensors' storage only."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def configure(self, schedule: Schedule, **options: bool) -> None:
        order = getattr(self.module.Order, schedule.order)
        self.module.configure(order=order, seed=schedule.seed, deferred_copies=schedule.deferred, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.fenced(getattr(self.module, name))

    def fenced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose kernels may touch the storage of its tensor arguments and nothing else."""

        def call(*args: Any) -> Any:
            self.module.allow([extent(t) for t in args if isinstance(t, Tensor) and t.numel() > 0])
            try:
                return function(*args)
            finally:
                self.module.allow([])

        return call

    @contextmanager
    def in_place_of_C(self) -> Iterator[None]:
        """Inside, the ops run on CUDA kernels, and fresh tensors hold NaN until they are written."""
        with ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                if name.startswith("glm_ext.ops.") and hasattr(module, "_C"):
                    stack.enter_context(mock.patch.object(module, "_C", self))
            stack.enter_context(nan_filled_memory())
            yield


def extent(tensor: Tensor) -> tuple[int, int]:
    """First and one past the last byte that a view reaches."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def assert_same_bits(name: str, expected: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> None:
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert (a is None) == (b is None), f"{name}: tensor {i} is missing on one side"
        if a is not None and b is not None:
            assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)), (
                f"{name}: tensor {i} differs"
            )
