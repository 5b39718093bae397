"""Batch: its checks, its counts, moving it."""

from typing import Any

import pytest
import torch

from glm_ext.batch import Batch, PackedBatch
from glm_ext.ops.reference import visible


def fields(b: int = 2, s: int = 5, **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokens": torch.zeros(b, s, dtype=torch.int64),
        "positions": torch.zeros(b, 2, s, dtype=torch.int64),
        "targets": torch.zeros(b, s, dtype=torch.int64),
        "loss_mask": torch.zeros(b, s),
        "prefix_len": torch.ones(b, dtype=torch.int64),
        "seq_len": torch.full((b,), s - 1, dtype=torch.int64),
    }
    return values | changed


@pytest.mark.parametrize(
    "name, value, error, said",
    [
        ("tokens", torch.zeros(5, dtype=torch.int64), ValueError, r"expected \[B, S\], got \[5\]"),
        ("tokens", torch.zeros(2, 5, dtype=torch.int32), TypeError, "expected torch.int64, got torch.int32"),
        (
            "positions",
            torch.zeros(2, 5, dtype=torch.int64),
            ValueError,
            r"expected \[2, 2, 5\].*got \[2, 5\]",
        ),
        ("targets", torch.zeros(2, 4, dtype=torch.int64), ValueError, r"expected \[2, 5\].*got \[2, 4\]"),
        (
            "loss_mask",
            torch.zeros(2, 5, dtype=torch.bool),
            TypeError,
            "expected torch.float32, got torch.bool",
        ),
        ("prefix_len", torch.ones(3, dtype=torch.int64), ValueError, r"expected \[2\].*got \[3\]"),
        ("prefix_len", 3, TypeError, "expected a tensor, got int"),
        ("seq_len", torch.ones(2), TypeError, "expected torch.int64, got torch.float32"),
        ("targets", torch.zeros(2, 5, dtype=torch.int64, device="meta"), ValueError, "expected device cpu"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(name: str, value: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=f"{name}: {said}"):
        Batch(**fields(**{name: value}))


def test_a_mask_may_have_been_cast() -> None:
    """As FSDP does with what it hands to a model."""
    assert Batch(**fields(loss_mask=torch.ones(2, 5, dtype=torch.bfloat16))).num_targets == 10


def test_counts_leave_out_padding_and_weightless_targets() -> None:
    weights = torch.tensor([[0, 0, 0.5, 1, 0], [0, 0, 0, 1, 0]])
    assert Batch(**fields(loss_mask=weights)).num_tokens == 8
    assert Batch(**fields(seq_len=None)).num_tokens == 10
    assert Batch(**fields(loss_mask=weights)).num_targets == 3


# (length, of Part A) of sequences; the last is one whose Part A is longer than it, which the mask cuts.
SEQUENCES = [(9, 4), (7, 7), (8, 0), (1, 1), (1, 0), (0, 0), (5, 6)]


def counted_in_the_mask(length: int, prefix: int, size: int) -> int:
    """In the dense mask of a sequence padded to `size`; what the rows of its padding see is nobody's."""
    return int(visible(size, size, prefix, length)[0, :length].sum())


@pytest.mark.parametrize("size", [9, 12])
def test_visible_pairs_are_those_of_the_dense_mask(size: int) -> None:
    lengths, prefixes = map(torch.tensor, zip(*SEQUENCES, strict=True))
    batch = Batch(**fields(len(SEQUENCES), size, seq_len=lengths, prefix_len=prefixes))
    assert batch.visible_pairs == sum(counted_in_the_mask(n, a, size) for n, a in SEQUENCES)
    whole = Batch(**fields(len(SEQUENCES), size, seq_len=None, prefix_len=prefixes))
    assert whole.visible_pairs == sum(counted_in_the_mask(size, a, size) for _, a in SEQUENCES)


def test_to_moves_every_tensor() -> None:
    moved = Batch(**fields()).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in fields())
    assert Batch(**fields(seq_len=None)).to("meta").seq_len is None


def test_an_empty_batch_is_a_batch() -> None:
    assert Batch(**fields(b=0)).num_tokens == 0


def packed(n: int = 7, g: int = 2, **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokens": torch.zeros(n, dtype=torch.int64),
        "positions": torch.zeros(2, n, dtype=torch.int64),
        "targets": torch.zeros(n, dtype=torch.int64),
        "loss_mask": torch.zeros(n),
        "prefix_len": torch.ones(g, dtype=torch.int64),
        "cu_seqlens": torch.linspace(0, n, g + 1).long(),
    }
    return values | changed


@pytest.mark.parametrize(
    "name, value, error, said",
    [
        ("tokens", torch.zeros(1, 7, dtype=torch.int64), ValueError, r"expected \[N\], got \[1, 7\]"),
        ("positions", torch.zeros(7, 2, dtype=torch.int64), ValueError, r"expected \[2, 7\].*got \[7, 2\]"),
        ("targets", torch.zeros(6, dtype=torch.int64), ValueError, r"expected \[7\].*got \[6\]"),
        ("loss_mask", torch.zeros(7, dtype=torch.bool), TypeError, "expected torch.float32"),
        ("prefix_len", torch.ones((), dtype=torch.int64), ValueError, r"expected \[G\], got \[\]"),
        ("cu_seqlens", torch.zeros(2, dtype=torch.int64), ValueError, r"expected \[3\].*got \[2\]"),
        ("cu_seqlens", torch.zeros(3, dtype=torch.int32), TypeError, "expected torch.int64, got torch.int32"),
        ("seq_len", torch.ones(2, dtype=torch.int64), ValueError, "expected None in a packed batch"),
    ],
)
def test_a_wrong_field_of_a_packed_batch_is_named(name: str, value: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=f"{name}: {said}"):
        PackedBatch(**packed(**{name: value}))


def test_visible_pairs_of_a_packed_batch_are_within_its_examples() -> None:
    lengths, prefixes = map(torch.tensor, zip(*SEQUENCES, strict=True))
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ragged = {"prefix_len": prefixes, "cu_seqlens": ends}
    batch = PackedBatch(**packed(int(lengths.sum()), len(SEQUENCES), **ragged))
    assert batch.visible_pairs == sum(counted_in_the_mask(n, a, n) for n, a in SEQUENCES)
    assert PackedBatch(**packed(0, 0)).visible_pairs == 0


def test_a_packed_batch_counts_and_moves() -> None:
    batch = PackedBatch(**packed(loss_mask=torch.tensor([0, 1, 0.5, 0, 0, 0, 1])))
    assert (batch.num_tokens, batch.num_targets) == (7, 3)
    moved = batch.to("meta")
    assert isinstance(moved, PackedBatch) and moved.seq_len is None
    assert all(getattr(moved, name).device.type == "meta" for name in packed())
