"""The oracle against torch's own functions, finite differences, and the rule of the mask read literally."""

import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from glm_ext import ops
from glm_ext.ops import reference
from glm_ext.ops.philox import attention_keep_mask, philox, row_keep_mask

pytestmark = pytest.mark.any_isa  # plain torch

F64 = torch.float64


def heads(B=2, H=4, kv_heads=4, S=5, T=5, D=8, dtype=F64, requires_grad=True):
    """Random query [B, H, S, D], key and value [B, Hkv, T, D]."""
    generator = torch.Generator().manual_seed(B + 10 * S + 100 * T)
    shapes = ((B, H, S, D), (B, kv_heads, T, D), (B, kv_heads, T, D))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def scalar_visible(S, T, prefix_len, seq_len, start):
    """The sentence of the contract, element by element."""
    seen = torch.zeros(S, T, dtype=torch.bool)
    for i, j in product(range(S), range(T)):
        place = seq_len - S + i if S < T else i
        seen[i, j] = start <= j < min(seq_len, max(prefix_len, place + 1))
    return seen


# ----------------------------------------------------------------------------------------------- dropout bits


@pytest.mark.parametrize(
    ("counter", "key", "expected"),  # the known answers that Random123 publishes for philox4x32 with 7 rounds
    [
        ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor(c) for c in counter), seed=key[1] << 32 | key[0])
    assert [int(word) for word in words] == expected


def philox_half(counter, seed, word, high):
    bits = int(philox(tuple(torch.tensor(c) for c in counter), seed)[word])
    return bits >> 16 if high else bits & 0xFFFF


def test_attention_mask_takes_the_documented_bits():
    seed, p = 0x123456789ABCDEF, 0.3
    keep = attention_keep_mask(seed, p, batch=2, heads=3, rows=35, cols=131)
    for b, h, i, j in [
        (0, 0, 0, 0),
        (1, 2, 34, 130),
        (1, 0, 8, 16),
        (0, 2, 15, 63),
        (1, 1, 16, 64),
        (0, 1, 7, 47),
    ]:
        counter = (j // 64 * 16 + j % 16, i // 16 * 8 + i % 8, h, b)
        half = philox_half(counter, seed, word=j // 16 % 4, high=i % 16 >= 8)
        assert bool(keep[b, h, i, j]) == (half < round(0.7 * 65536))
    assert torch.equal(keep[1:], attention_keep_mask(seed, p, 1, 3, 35, 131, first_batch=1))
    assert torch.equal(keep[:, :, :9, :70], attention_keep_mask(seed, p, 2, 3, 9, 70))


def test_row_mask_takes_the_documented_bits():
    seed, p = 2**62 + 12345, 0.4
    keep = row_keep_mask(seed, p, rows=3, cols=300)
    for n, e in product(range(3), [0, 15, 16, 31, 32, 127, 128, 250, 299]):
        t = e // 16 % 8
        half = philox_half((e // 128 * 16 + e % 16, n, 0, 0), seed, word=t // 2, high=t % 2 == 1)
        assert bool(keep[n, e]) == (half < round(0.6 * 65536))


def test_masks_keep_the_asked_share_and_differ_by_seed():
    masks = [attention_keep_mask(seed, 0.1, 2, 2, 128, 128).float() for seed in (1, 2)]
    for mask in masks:
        assert abs(mask.mean().item() - 0.9) < 0.005  # 4 standard deviations of 65536 draws
    assert 0.15 < (masks[0] != masks[1]).float().mean() < 0.21  # 2 * 0.9 * 0.1


@pytest.mark.parametrize("dropout_p", [-0.1, 1.5, float("nan")])
def test_dropout_probability_outside_range(dropout_p):
    q, k, v = heads()
    with pytest.raises(ValueError, match="dropout_p: expected 0 <= p <= 1"):
        reference.span_attention(q, k, v, 1, dropout_p=dropout_p)
    with pytest.raises(ValueError, match="dropout_p: expected 0 <= p <= 1"):
        reference.dropout_add_layer_norm(q, q, torch.ones(8), torch.zeros(8), dropout_p=dropout_p)


def test_dropout_of_everything_leaves_zero():
    q, k, v = heads()
    assert torch.all(reference.span_attention(q, k, v, 1, dropout_p=1.0) == 0.0)


# -------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("S", [1, 2, 5])
@pytest.mark.parametrize("T", [1, 5, 7])
def test_visible_is_the_written_rule(S, T):
    for prefix_len, seq_len, start in product([0, 1, T // 2, T], [0, 1, T - 1, T], [0, 1, T]):
        mask = reference.visible(S, T, prefix_len, seq_len, start)
        assert torch.equal(mask[0], scalar_visible(S, T, prefix_len, seq_len, start))


def test_visible_mixes_ints_and_tensors():
    mask = reference.visible(4, 6, torch.tensor([0, 2, 6]), seq_len=6, start=torch.tensor([0, 1, 2]))
    assert mask.shape == (3, 4, 6)
    for b, (prefix_len, start) in enumerate([(0, 0), (2, 1), (6, 2)]):
        assert torch.equal(mask[b], scalar_visible(4, 6, prefix_len, 6, start))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("S", "T"), [(1, 1), (5, 5), (3, 7), (1, 7)])
def test_attention_is_sdpa_with_the_bool_mask(S, T, kv_heads):
    q, k, v = heads(S=S, T=T, kv_heads=kv_heads)
    prefix_len, seq_len = torch.tensor([0, T]), torch.tensor([T, max(S, T - 1)])
    ours = reference.span_attention(q, k, v, prefix_len, seq_len, scale=0.2)
    mask = reference.visible(S, T, prefix_len, seq_len)[:, None]
    theirs = F.scaled_dot_product_attention(q, k, v, mask, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, dtype=F64)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_attention_log_sum_exp():
    q, k, v = heads(requires_grad=False)
    lse = reference.span_attention(q, k, v, prefix_len=2, seq_len=4, return_lse=True)[1]
    scores = (q @ k.mT * 8**-0.5).masked_fill(~reference.visible(5, 5, 2, 4)[:, None], -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(3))
    low = [x.bfloat16() for x in (q, k, v)]
    assert reference.span_attention(*low, prefix_len=2, return_lse=True)[1].dtype == torch.float32


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_attention_derivatives(dropout_p):
    q, k, v = heads(B=2, H=2, kv_heads=1, S=4, T=4, D=3)
    lengths = {"seq_len": torch.tensor([4, 3]), "start": torch.tensor([0, 1])}

    def attention(q, k, v):
        out, lse = reference.span_attention(
            q, k, v, torch.tensor([2, 0]), **lengths, dropout_p=dropout_p, return_lse=True, seed=5
        )
        return out, lse.masked_fill(lse.isinf(), 0.0)

    assert gradcheck(attention, (q, k, v))
    assert gradgradcheck(attention, (q, k, v))


def test_attention_dropout_scales_what_it_keeps():
    q, k, v = heads(S=7, T=7)
    out = reference.span_attention(q, k, v, 3, dropout_p=0.5, seed=11)
    scores = (q @ k.mT * 8**-0.5).masked_fill(~reference.visible(7, 7, 3)[:, None], -torch.inf)
    keep = attention_keep_mask(11, 0.5, 2, 4, 7, 7)
    torch.testing.assert_close(out, (scores.softmax(3) * keep * 2.0) @ v)


def test_attention_rows_without_keys_give_zero():
    q, k, v = heads(S=5, T=5)
    out, lse = reference.span_attention(
        q, k, v, 0, torch.tensor([5, 0]), start=torch.tensor([2, 0]), return_lse=True
    )
    assert torch.all(out[0, :, :2] == 0.0) and torch.all(out[1] == 0.0)
    assert torch.all(lse[0, :, :2] == -torch.inf) and torch.all(lse[1] == -torch.inf)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.all(g.isfinite()) for g in gradients)
    assert all(torch.all(g[1] == 0.0) for g in gradients)
    assert torch.all(gradients[0][0, :, :2] == 0.0)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_attention_never_reads_what_no_row_sees(dropout_p):
    clean = heads(S=6, T=6)
    dirty = [x.detach().clone() for x in clean]
    for x in dirty:
        x[0, :, :2] = torch.nan  # rows and keys before start
        x[1, :, 4:] = torch.nan  # keys past seq_len
    dirty[0][1] = clean[0][1].detach()  # rows past seq_len do see keys, so theirs must be numbers
    dirty = [x.requires_grad_() for x in dirty]
    results, starts = [], torch.tensor([2, 0])
    for q, k, v in (clean, dirty):
        out = reference.span_attention(
            q, k, v, torch.tensor([0, 3]), torch.tensor([6, 4]), start=starts, dropout_p=dropout_p, seed=3
        )
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for ours, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_varlen_is_padded_attention(dropout_p):
    lengths, prefix_len = [3, 0, 5, 1], torch.tensor([2, 0, 5, 0])
    padded = heads(B=4, kv_heads=2, S=5, T=5)
    packed = [torch.cat([x[b, :, :n].transpose(0, 1) for b, n in enumerate(lengths)]) for x in padded]
    packed = [F.pad(x, (0, 0, 0, 0, 0, 2), value=torch.nan) for x in packed]  # two rows of no sequence
    cu_seqlens = torch.tensor([0, 3, 3, 8, 9])
    out, lse = reference.span_attention_varlen(
        *packed, cu_seqlens, prefix_len, dropout_p=dropout_p, return_lse=True, seed=8
    )
    expected, expected_lse = reference.span_attention(
        *padded, prefix_len, torch.tensor(lengths), dropout_p=dropout_p, return_lse=True, seed=8
    )
    for b, (begin, n) in enumerate(zip(cu_seqlens, lengths, strict=False)):
        torch.testing.assert_close(out[begin : begin + n].transpose(0, 1), expected[b, :, :n])
        torch.testing.assert_close(lse[:, begin : begin + n], expected_lse[b, :, :n])
    assert torch.all(out[9:] == 0.0) and torch.all(lse[:, 9:] == -torch.inf)
    gradients = torch.autograd.grad(out.sum(), padded)
    for mine, other in zip(
        gradients, torch.autograd.grad(expected_rows(expected, lengths), padded), strict=True
    ):
        torch.testing.assert_close(mine, other)


def expected_rows(out, lengths):
    return sum(out[b, :, :n].sum() for b, n in enumerate(lengths))


@pytest.mark.parametrize("shape", [{"B": 0}, {"S": 0, "T": 0}, {"S": 0, "T": 4}])
def test_attention_of_nothing(shape):
    q, k, v = heads(**shape)
    out = reference.span_attention(q, k, v, 0)
    assert out.shape == q.shape
    out.sum().backward()
    assert torch.all(k.grad == 0.0)


def assert_refused_alike(name, *arguments, **lengths):
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(ops, name)(*arguments, **lengths)
    with pytest.raises(expected.type, match=f"^{re.escape(str(expected.value))}$"):
        getattr(reference, name)(*arguments, **lengths)


@pytest.mark.parametrize(
    "lengths",
    [
        {"prefix_len": 99},
        {"prefix_len": -1},
        {"prefix_len": 1.0},
        {"prefix_len": torch.tensor([1, 6])},
        {"prefix_len": torch.tensor([-1, 5])},
        {"prefix_len": torch.tensor([1, 2, 3])},
        {"prefix_len": torch.tensor([1.0, 2.0])},
        {"prefix_len": 1, "seq_len": 99},
        {"prefix_len": 1, "seq_len": torch.tensor([5, -1])},
        {"prefix_len": 1, "start": 6},
        {"prefix_len": 1, "start": torch.tensor([6, 0])},
    ],
    ids=str,
)
def test_lengths_are_refused_as_by_the_fused_op(lengths):
    assert_refused_alike("span_attention", *heads(requires_grad=False), **lengths)


@pytest.mark.parametrize(
    ("bounds", "prefix_len"),
    [
        ([1, 9], 0),
        ([0, 10], 0),
        ([0, 6, 4], 0),
        ([[0, 9]], 0),
        ([], 0),
        ([0.0, 9.0], 0),
        ([0, 4, 9], 5),
        ([0, 4, 9], 10),
        ([0, 4, 9], -1),
        ([0, 4, 9], [4, 6]),
        ([0, 4, 9], [-1, 0]),
        ([0, 4, 9], [1]),
    ],
)
def test_bounds_are_refused_as_by_the_fused_op(bounds, prefix_len):
    if isinstance(prefix_len, list):
        prefix_len = torch.tensor(prefix_len)
    packed = torch.randn(3, 9, 2, 8)
    bounds = torch.tensor(bounds) if bounds else torch.zeros(0, dtype=torch.int64)
    assert_refused_alike("span_attention_varlen", *packed, bounds, prefix_len)


def test_bounds_stand_alone_as_in_the_fused_op():
    arguments = torch.randn(9, 3, 2, 8), 1
    for other in ({"seq_len": 4}, {"start": 0}):
        assert_refused_alike("span_attention_qkvpacked", *arguments, **other, cu_seqlens=torch.tensor([0, 9]))


def test_lengths_are_not_read_where_they_have_no_values():
    with FakeTensorMode():
        q, k, v = torch.randn(3, 2, 4, 5, 8)
        lengths = torch.full((2,), 3)
        assert reference.span_attention(q, k, v, lengths, lengths, start=lengths).shape == q.shape


def test_head_counts_must_divide():
    q, k, v = heads(kv_heads=3)
    with pytest.raises(ValueError, match="expected a head count that divides the 4 heads of query, got 3"):
        reference.span_attention(q, k, v, 1)


# ----------------------------------------------------------------------------------------------- other layers


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).requires_grad_()


def assert_same_with_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs, retain_graph=True),
        torch.autograd.grad((theirs * weights).sum(), inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_embedding_adds_three_rows():
    tables = [randn(11, 6), randn(5, 6, seed=1), randn(4, 6, seed=2)]
    ids = [torch.tensor([[0, 10, 10]]), torch.tensor([[4, 1, 0]]), torch.tensor([[3, 0, 0]])]
    ours = reference.embedding_2d(*ids, *tables)
    theirs = sum(F.one_hot(i, len(t)).to(F64) @ t for i, t in zip(ids, tables, strict=True))
    assert_same_with_gradients(ours, theirs, tables)
    with pytest.raises(IndexError):
        reference.embedding_2d(ids[0] + 1, *ids[1:], *tables)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_mlp_is_its_formula(approximate):
    x, w1, b1, w2, b2 = inputs = [randn(2, 3, 4), randn(7, 4), randn(7), randn(5, 7), randn(5)]
    ours = reference.gelu_mlp(*inputs, approximate=approximate, recompute="all")
    u = x @ w1.T + b1
    if approximate == "tanh":
        gelu = 0.5 * u * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
    else:
        gelu = 0.5 * u * (1.0 + torch.erf(u / 2.0**0.5))
    assert_same_with_gradients(ours, gelu @ w2.T + b2, inputs)
    with pytest.raises(ValueError, match="recompute"):
        reference.gelu_mlp(*inputs, recompute="some")


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_dropout_add_layer_norm(dropout_p):
    x, residual, weight, bias = inputs = [
        randn(2, 3, 40),
        randn(2, 3, 40, seed=1),
        randn(40),
        randn(40, seed=2),
    ]
    normed, new_residual = reference.dropout_add_layer_norm(*inputs, eps=1e-3, dropout_p=dropout_p, seed=4)
    kept = row_keep_mask(4, dropout_p, 6, 40).reshape(2, 3, 40)
    expected = residual + x * kept / (1.0 - dropout_p)
    assert_same_with_gradients(new_residual, expected, (x, residual))
    centred = expected - expected.mean(2, keepdim=True)
    by_hand = centred / (centred.square().mean(2, keepdim=True) + 1e-3).sqrt() * weight + bias
    assert_same_with_gradients(normed, by_hand, inputs)
    assert gradgradcheck(
        lambda *a: reference.dropout_add_layer_norm(*a, dropout_p=dropout_p, seed=4),
        [t[..., :4].detach().requires_grad_() for t in inputs],
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(label_smoothing):
    hidden, weight, targets = randn(2, 5, 4), randn(9, 4), torch.arange(10).reshape(2, 5) % 9
    loss_mask = torch.tensor([[0.0, 1.0, 0.5, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0, 1.0]])
    each = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1),
        targets.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    ).reshape(2, 5)
    expected = {
        "none": each * loss_mask,
        "sum": (each * loss_mask).sum(),
        "mean": (each * loss_mask).sum() / loss_mask.sum(),
    }
    for reduction, theirs in expected.items():
        ours = reference.linear_cross_entropy(
            hidden, weight, targets, loss_mask, label_smoothing=label_smoothing, reduction=reduction
        )
        assert_same_with_gradients(ours, theirs, (hidden, weight))
    unmasked = reference.linear_cross_entropy(hidden, weight, targets, label_smoothing=label_smoothing)
    assert_same_with_gradients(unmasked, each.mean(), (hidden, weight))


def test_cross_entropy_never_reads_masked_rows():
    hidden, weight = randn(3, 4).detach(), randn(6, 4)
    hidden[1] = torch.nan
    hidden.requires_grad_()
    targets, loss_mask = torch.tensor([5, -100, 0]), torch.tensor([1.0, 0.0, 1.0])
    loss = reference.linear_cross_entropy(hidden, weight, targets, loss_mask)
    loss.backward()
    assert loss.isfinite() and torch.all(hidden.grad[1] == 0.0) and torch.all(weight.grad.isfinite())
    nothing = reference.linear_cross_entropy(hidden, weight, targets, torch.zeros(3))
    assert nothing == 0.0 and torch.all(torch.autograd.grad(nothing, weight)[0] == 0.0)
    with pytest.raises(ValueError, match="reduction"):
        reference.linear_cross_entropy(hidden, weight, targets, reduction="total")


def test_seed_comes_from_the_default_generator():
    x, weight, bias = randn(4, 64), torch.ones(64, dtype=F64), torch.zeros(64, dtype=F64)
    torch.manual_seed(3)
    first = reference.dropout_add_layer_norm(x, x, weight, bias, dropout_p=0.5)[1]
    second = reference.dropout_add_layer_norm(x, x, weight, bias, dropout_p=0.5)[1]
    torch.manual_seed(3)
    seed = int(torch.randint(0, 2**63 - 1, ()))
    given = reference.dropout_add_layer_norm(x, x, weight, bias, dropout_p=0.5, seed=seed)[1]
    assert torch.equal(first, given) and not torch.equal(first, second)
