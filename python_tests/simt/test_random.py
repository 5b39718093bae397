"""Random problems under random schedules: what nobody thought of writing down as a case."""

from __future__ import annotations

import random

import pytest

from glm_ext import ops
from glm_ext.ops import reference

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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_span_attention(simt: Simt, seed: int) -> None:
    rng = random.Random(seed)
    inputs, options = make_inputs(random_case(rng), rng.choice(GPU_DTYPES))
    schedule = Schedule("random", seed=seed, deferred=rng.random() < 0.5)
    simt.configure(schedule)
    with simt.in_place_of_C():
        check_op(
            ops.span_attention,
            reference.span_attention,
            inputs,
            dropout_p=rng.choice([0.0, 0.2]),
            return_lse=True,
            **options,
        )
