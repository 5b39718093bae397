"""Random problems under random schedules: what nobody thought of writing down as a case."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from glm_ext import ops
from glm_ext.ops import _cuda, reference

from ..ops import test_gelu_mlp as mlp_tests
from ..ops import test_linear_cross_entropy as loss_tests
from ..ops.test_embedding_2d import make_ids, make_tables
from ..ops.tolerance import check_op
from .backend import Schedule, Simt
from .checks import GPU_DTYPES
from .test_span_attention import Case, make_inputs


def random_case(rng: random.Random) -> Case:
    keys = rng.randint(1, 200)
    rows = rng.choice([keys, rng.randint(1, keys)])
    kv_heads = rng.randint(1, 2)
    batch, heads = rng.randint(1, 2), kv_heads * rng.randint(1, 2)
    shape = (batch, heads, kv_heads, rows, keys, rng.choice([8, 64, 72, 128, 256]))
    lengths = [rng.randint(0, keys) for _ in range(batch)]
    return (
        shape,
        [rng.randint(0, length) for length in lengths],
        rng.choice([None, lengths]),
        rng.choice([None, [rng.randint(0, length) for length in lengths]]),
    )


def random_schedule(simt: Simt, rng: random.Random) -> None:
    simt.configure(Schedule("random", seed=rng.randint(1, 10**6), deferred=rng.random() < 0.5))


def has_few_keys(case: Case) -> bool:
    """The gradient of a row's only score is nought, which plain torch finds exactly; ours is dP - delta.

    With dropout out is no longer the value itself, and delta has the rounding of out. Where no row has more
    than a few keys, torch's errors, which the rule goes by, are no measure for that (on a CPU as on a GPU).
    """
    (batch, _, _, _, keys, _), _, lengths, starts = case
    return any(
        end - begin < 16 for end, begin in zip(lengths or [keys] * batch, starts or [0] * batch, strict=True)
    )


@pytest.fixture
def use_ffma(simt: Simt) -> Iterator[Callable[[bool], None]]:
    yield simt.module.use_ffma
    simt.module.use_ffma(False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_span_attention(
    simt: Simt, seed: int, monkeypatch: pytest.MonkeyPatch, use_ffma: Callable[[bool], None]
) -> None:
    """Also where dQ comes from sums, and where floats are multiplied by FFMA."""
    rng = random.Random(seed)
    use_ffma(seed % 5 > 1)
    monkeypatch.setattr(_cuda, ["atomics", "five_products"][seed % 2], seed % 3 > 0)
    case = random_case(rng)
    inputs, options = make_inputs(case, rng.choice(GPU_DTYPES))
    random_schedule(simt, rng)
    with simt.in_place_of_C():
        check_op(
            ops.span_attention,
            reference.span_attention,
            inputs,
            dropout_p=0.0 if has_few_keys(case) else rng.choice([0.0, 0.2]),
            return_lse=True,
            **options,
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_embedding_2d(simt: Simt, seed: int) -> None:
    """Few ids and many, all places of one id among them, with more than one slot and block of the sort."""
    rng = random.Random(seed)
    rows, width = (rng.choice([1, 2, 5, 300, 70_000]) for _ in range(3)), rng.choice([8, 13, 256, 300])
    tables = tuple(rows)
    ids = make_ids((rng.choice([1, 63, 64, 65, 500, 2049]),), tables)
    if rng.random() < 0.5:
        ids[2][: rng.randint(1, len(ids[2]))] = 0
    random_schedule(simt, rng)
    with simt.in_place_of_C():
        check_op(
            ops.embedding_2d,
            reference.embedding_2d,
            [*ids, *make_tables(tables, min(width, 16) if max(tables) > 10_000 else width)],
            dropout_p=rng.choice([0.0, 0.2]),
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_gelu_mlp(simt: Simt, seed: int) -> None:
    rng = random.Random(seed)
    unit = rng.choice([1, 8])
    sizes = [rng.randint(1, 300 // unit) * unit for _ in range(4)]
    # The rule takes torch's largest error in a tensor: of a bias of one number it may be nought by luck.
    sizes[2:] = [max(size, 8) for size in sizes[2:]]
    inputs = mlp_tests.make_inputs(*sizes, rng.choice(GPU_DTYPES))
    random_schedule(simt, rng)
    with simt.in_place_of_C():
        check_op(
            ops.gelu_mlp,
            reference.gelu_mlp,
            inputs,
            approximate=rng.choice(["tanh", "none"]),
            recompute=rng.choice(["none", "activation", "all"]),
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_linear_cross_entropy(simt: Simt, seed: int) -> None:
    rng = random.Random(seed)
    shape = rng.randint(1, 700), rng.choice([1, 8, 24, 67]), rng.randint(1, 400)
    x = loss_tests.Inputs(*shape, rng.choice(GPU_DTYPES), rows=rng.random())
    kwargs = {"label_smoothing": rng.choice([0.0, 0.1]), "reduction": rng.choice(["mean", "sum", "none"])}
    random_schedule(simt, rng)
    with simt.in_place_of_C():
        check_op(
            loss_tests.with_targets(ops.linear_cross_entropy, x, x.mask, **kwargs),
            loss_tests.with_targets(reference.linear_cross_entropy, x, x.mask, **kwargs),
            [x.hidden, x.weight],
        )
