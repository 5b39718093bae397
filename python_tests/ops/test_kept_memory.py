"""Memory that is kept: never shared, and no more than one block of it."""

from __future__ import annotations

import threading

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _kept_memory, reference

pytestmark = pytest.mark.any_isa


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks count as large from 64 bytes on, and none is kept at first."""
    monkeypatch.setattr(_kept_memory, "KEPT_BYTES", 64)
    monkeypatch.setattr(_kept_memory, "_kept", [])


def _empty(bytes_: int) -> torch.Tensor:
    return _kept_memory.new_empty(torch.empty(0, dtype=torch.uint8), (bytes_,))


def test_a_freed_block_comes_again() -> None:
    first = _empty(100)
    place = first.data_ptr()
    del first
    again = _empty(100)
    assert again.data_ptr() == place and place % 64 == 0
    assert again.shape == (100,)


def test_a_block_in_use_is_nobody_elses() -> None:
    """Also where a view, or an array, is all that is left of the tensor."""
    view = _empty(96).view(torch.float32)[4:].fill_(1)
    array = _empty(96).fill_(2).numpy()
    other = _empty(96).fill_(3)
    assert (view == 1).all() and (array == 2).all() and (other == 3).all()
    del view
    assert len(_kept_memory._kept) == 1


def test_the_last_freed_block_is_kept_alone() -> None:
    blocks = [_empty(bytes_) for bytes_ in (64, 128, 192)]
    while blocks:
        blocks.pop(0)
    assert [block.nbytes for block in _kept_memory._kept] == [192 + 64]
    _empty(128)  # of another size: what was kept goes
    assert [block.nbytes for block in _kept_memory._kept] == [128 + 64]
    _empty(8)  # small ones are not kept
    assert [block.nbytes for block in _kept_memory._kept] == [128 + 64]


def test_threads_never_share_a_block() -> None:
    wrong: list[bool] = []

    def work(mark: int) -> None:
        for _ in range(200):
            block = _empty(4096)
            block.fill_(mark)
            wrong.append(not (block == mark).all())

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)


def test_gradients_that_take_turns_in_one_block() -> None:
    """The second step's gradient holds nothing of the first's, whose memory it has."""
    tables = [torch.randn(50, 8, requires_grad=True) for _ in range(3)]
    for seed in range(3):
        torch.manual_seed(seed)
        ids = torch.randint(0, 50, (3, 6)).unbind()
        ops.embedding_2d(*ids, *tables).sum().backward()
        found = [table.grad for table in tables]
        expected = torch.autograd.grad(reference.embedding_2d(*ids, *tables).sum(), tables)
        assert all(map(torch.equal, found, expected))
        for table in tables:
            table.grad = None
        del found
    assert len(_kept_memory._kept) == 1


@pytest.mark.parametrize("width", [64, 65, 192])  # less than a chunk of 128 columns, and more
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_gradient_is_zero_where_nothing_came_to_it(width: int, dtype: torch.dtype) -> None:
    """Also in memory that holds anything. Rows of whole vectors are written past the caches, others not."""
    rows = 2**24 // (width * dtype.itemsize) + 1
    table = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    places = torch.zeros(4, width, dtype=dtype)
    tokens, indices = torch.tensor([0, 7, rows - 1, 7]), torch.arange(4)
    grad_out = torch.randn(4, width, dtype=dtype)
    expected = torch.zeros(rows, width, dtype=dtype).index_add_(0, tokens, grad_out)
    seen = set()
    for _ in range(2):
        out = ops.embedding_2d(tokens, indices, indices, table, places, places)
        (grad,) = torch.autograd.grad(out, table, grad_out)
        assert torch.equal(grad, expected)
        seen.add(grad.data_ptr())
        grad.fill_(float("nan"))
        del grad, out
    assert len(seen) == 1  # the second gradient lay in the first one's memory
