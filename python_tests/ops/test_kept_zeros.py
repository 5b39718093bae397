"""Zeros whose memory is kept: never shared, never dirty, and no more than one block of them."""

from __future__ import annotations

import threading

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _kept_zeros as kept_zeros
from glm_ext.ops import reference

pytestmark = pytest.mark.any_isa


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks count as large from 64 bytes on, and none is kept at first."""
    monkeypatch.setattr(kept_zeros, "KEPT_BYTES", 64)
    monkeypatch.setattr(kept_zeros, "_kept", [])


def test_a_freed_block_comes_again_with_zeros() -> None:
    first = kept_zeros.zeros(100)
    place = first.data_ptr()
    first.fill_(7)
    del first
    again = kept_zeros.zeros(100)
    assert again.data_ptr() == place
    assert again.shape == (100,) and not again.any()


def test_a_block_in_use_is_nobody_elses() -> None:
    """Also where a view, or an array, is all that is left of the tensor."""
    view = kept_zeros.zeros(96).view(torch.float32)[4:]
    array = kept_zeros.zeros(96).numpy()
    other = kept_zeros.zeros(96).fill_(1)
    assert not view.any() and not array.any() and other.all()
    del view
    assert len(kept_zeros._kept) == 1


def test_the_last_freed_block_is_kept_alone() -> None:
    blocks = [kept_zeros.zeros(bytes_) for bytes_ in (64, 128, 192)]
    while blocks:
        blocks.pop(0)
    assert [block.nbytes for block in kept_zeros._kept] == [192]
    kept_zeros.zeros(128)  # of another size: what was kept goes
    assert [block.nbytes for block in kept_zeros._kept] == [128]
    kept_zeros.zeros(8)  # small ones are not kept
    assert [block.nbytes for block in kept_zeros._kept] == [128]


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(mark: int) -> None:
        for _ in range(200):
            block = kept_zeros.zeros(4096)
            if block.any():
                wrong.append("dirty")
            block.fill_(mark)
            if not (block == mark).all():
                wrong.append("shared")

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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
    assert len(kept_zeros._kept) == 1
