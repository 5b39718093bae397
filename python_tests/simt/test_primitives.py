"""Each primitive's host body against the definition of the instruction."""

from __future__ import annotations

import pytest
import torch

from .backend import SCHEDULES, Schedule, Simt


@pytest.fixture(autouse=True, params=[SCHEDULES[0], SCHEDULES[2], SCHEDULES[6]], ids=str)
def schedule(simt: Simt, request: pytest.FixtureRequest) -> Schedule:
    simt.configure(request.param)
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_layout(simt: Simt, count: int, transposed: bool) -> None:
    tile = torch.arange(count * 64, dtype=torch.int16)
    words = torch.empty(32, count)
    run = getattr(simt.module.testing, f"load_matrices_{count}{'_transposed' if transposed else ''}")
    simt.fenced(run)(tile.view(torch.bfloat16), words)
    for matrix, content in enumerate(tile.reshape(count, 8, 8)):
        rows = content.T if transposed else content
        # lane l holds elements 2(l%4) and 2(l%4)+1 of row l/4: 32 lanes in order are the matrix in order
        assert torch.equal(words[:, matrix].contiguous().view(torch.int16), rows.reshape(-1)), (
            f"matrix {matrix}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mma_is_a_matrix_product(simt: Simt, dtype: torch.dtype) -> None:
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    expected = a.double() @ b.double() + d
    simt.fenced(getattr(simt.module.testing, f"mma_{str(dtype)[6:]}"))(a, b, d)
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=1e-5)


def test_tf32_mma_is_a_matrix_product_of_rounded_operands(simt: Simt) -> None:
    a, b, d = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
    expected = _tf32(a).double() @ _tf32(b).double() + d
    simt.fenced(simt.module.testing.mma_tf32)(a, b, d)
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=1e-5)


def test_mma_cuts_off_towards_zero(simt: Simt) -> None:
    """What is added counts to 2 bits more than the sum has, and the sum to its own 24."""
    ulp = 2.0**-23  # of the accumulator, which is in [1, 2)
    # added to 1: eight terms of each, and what is left of their sum
    cases = [(ulp, 8 * ulp), (ulp / 2, 4 * ulp), (0.45 * ulp, 2 * ulp), (ulp / 8, 0.0), (ulp / 16, 0.0)]
    a, b, d = torch.zeros(16, 8), torch.ones(8, 8), torch.ones(16, 8)
    for i, (term, _) in enumerate(cases):
        a[2 * i], a[2 * i + 1] = term, -term
        d[2 * i + 1] = -1.0  # the same, mirrored
    a[10, 0], a[11, 0] = 3 * ulp / 4, -3 * ulp / 4  # one term, which alone does not reach the next float
    d[11] = -1.0
    simt.fenced(simt.module.testing.mma_tf32)(a, b, d)
    for i, (_, sum_) in enumerate([*cases, (0.0, 0.0)]):
        assert torch.equal(d[2 * i], torch.full((8,), 1.0 + sum_)), i
        assert torch.equal(d[2 * i + 1], -d[2 * i]), i


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """To nearest with 10 bits of mantissa, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("amount", [1, 3, 7])
def test_shuffles_and_votes(simt: Simt, amount: int, width: int) -> None:
    x, out = torch.randn(32), torch.empty(6, 32)
    simt.fenced(simt.module.testing.shuffles)(x, out, amount, width)
    lane = torch.arange(32)
    place, segment = lane % width, lane // width * width
    assert torch.equal(out[0], x[segment + amount % width])
    assert torch.equal(out[1], x[lane ^ amount])
    assert torch.equal(out[2], x[torch.where(place >= amount, lane - amount, lane)])
    assert torch.equal(out[3], x[torch.where(place + amount < width, lane + amount, lane)])
    assert out[4].unique().tolist() == [sum(1 << i for i in range(16) if x[i] > 0)]
    assert out[5].unique().tolist() == [float((x > 0).any()) + 2 * float((x > 0).all())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_torchs(simt: Simt, dtype: torch.dtype) -> None:
    special = [0.0, -0.0, 1e-8, 6e-8, -3e-5, 65504.0, 65519.0, 65520.0, 3.4e38, float("inf"), -float("inf")]
    x = torch.cat([torch.tensor(special), torch.randn(200) * torch.logspace(-12, 6, 200)])
    back = torch.empty_like(x)
    simt.fenced(getattr(simt.module.testing, f"round_{str(dtype)[6:]}"))(x, back)
    assert torch.equal(back, x.to(dtype).float())
