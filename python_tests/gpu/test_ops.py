"""The ops on a GPU: the cases of the CPU and of the host execution, by the same rule."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import _gelu_mlp_library, reference
from glm_ext.ops._cuda import KERNELS, shared_bytes

from ..ops import test_dropout_add_layer_norm as layer_norm_tests
from ..ops import test_embedding_2d as embedding_tests
from ..ops import test_gelu_mlp as mlp_tests
from ..ops import test_linear_cross_entropy as loss_tests
from ..ops.samples import SAMPLES, Sample
from ..ops.tolerance import check_op
from ..simt import test_dropout_add_layer_norm as layer_norm_simt
from ..simt import test_gelu_mlp as mlp_simt
from ..simt import test_linear_cross_entropy as loss_simt
from ..simt import test_span_attention as attention_simt
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from ..simt.checks import GPU_DTYPES, forward_and_backward

pytestmark = pytest.mark.gpu


def on_gpu(values: list[Any]) -> list[Any]:
    return [t.cuda() if isinstance(t, Tensor) else t for t in values]


# -------------------------------------------------------------------------------------- the one list of cases


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", layer_norm_simt.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_dropout_add_layer_norm(dtype: torch.dtype, shape: tuple[int, ...], dropout_p: float) -> None:
    inputs = on_gpu(layer_norm_tests.make_inputs(shape, dtype))
    check_op(ops.dropout_add_layer_norm, reference.dropout_add_layer_norm, inputs, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "rows", "width"), embedding_tests.CASES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_embedding_2d(
    dtype: torch.dtype, shape: tuple[int, ...], rows: tuple[int, ...], width: int, dropout_p: float
) -> None:
    inputs = on_gpu(
        [*embedding_tests.make_ids(shape, rows), *embedding_tests.make_tables(rows, width, dtype)]
    )
    check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=dropout_p)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_embedding_2d_of_a_glm_batch(dtype: torch.dtype) -> None:
    tables = embedding_tests.make_tables((50, 1024, 1024), 256, dtype)
    inputs = on_gpu([*embedding_tests.glm_batch(16, 1024, 819), *tables])
    check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=0.1)


@pytest.mark.parametrize("library", [False, True], ids=["own products", "library"])
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
@pytest.mark.parametrize("sizes", [*mlp_tests.CASES, *mlp_simt.CASES, (1000, 768, 3072, 768)], ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_gelu_mlp(
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    recompute: str,
    approximate: str,
    library: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_gelu_mlp(monkeypatch, library, dtype, sizes, approximate=approximate, recompute=recompute)


def check_gelu_mlp(
    monkeypatch: pytest.MonkeyPatch,
    library: bool,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    **options: str,
) -> None:
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: library)
    inputs = on_gpu(mlp_tests.make_inputs(*sizes, dtype))
    check_op(ops.gelu_mlp, reference.gelu_mlp, inputs, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [*loss_simt.SHAPES, *loss_tests.SHAPES, (2100, 256, 5003)], ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_linear_cross_entropy(
    dtype: torch.dtype, shape: tuple[int, int, int], label_smoothing: float, reduction: str
) -> None:
    check_linear_cross_entropy(dtype, shape, label_smoothing=label_smoothing, reduction=reduction)


def check_linear_cross_entropy(dtype: torch.dtype, shape: tuple[int, int, int], **options: Any) -> None:
    x = loss_tests.Inputs(*shape, dtype)
    x.targets, x.mask = x.targets.cuda(), x.mask.cuda()
    check_op(
        loss_tests.with_targets(ops.linear_cross_entropy, x, x.mask, **options),
        loss_tests.with_targets(reference.linear_cross_entropy, x, x.mask, **options),
        on_gpu([x.hidden, x.weight]),
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "case", [*attention_simt.CASES, *map(attention_tiles.long_case, (64, 128))], ids=lambda c: str(c[0])
)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_span_attention(dtype: torch.dtype, case: attention_simt.Case, dropout_p: float) -> None:
    check_attention(dtype, case, dropout_p)


def check_attention(dtype: torch.dtype, case: attention_simt.Case, dropout_p: float) -> None:
    head_bytes, here = case[0][5] * dtype.itemsize, torch.device("cuda", torch.cuda.current_device())
    if head_bytes > 512 and shared_bytes(here) < 163 * 1024:
        pytest.skip("backward of such heads finds no room in this GPU's shared memory")
    inputs, options = attention_simt.make_inputs(case, dtype)
    options = {name: t.cuda() for name, t in options.items()} | {"dropout_p": dropout_p, "return_lse": True}
    check_op(ops.span_attention, reference.span_attention, on_gpu(inputs), **options)


def check_packed_attention(inputs: list[Tensor], dropout_p: float) -> None:
    check_op(
        ops.span_attention_varlen,
        reference.span_attention_varlen,
        on_gpu(inputs),
        dropout_p=dropout_p,
        return_lse=True,
    )


def attention_twice(head_dim: int, dtype: torch.dtype = torch.bfloat16) -> list[list[Tensor | None]]:
    """Outputs and gradients of one small case, run twice: for compute-sanitizer."""
    inputs, _ = attention_simt.make_inputs(((1, 2, 1, 200, 330, head_dim), [150], None, None), dtype)
    return [
        forward_and_backward(ops.span_attention, on_gpu(inputs), dropout_p=0.1, return_lse=True)
        for _ in range(2)
    ]


@pytest.mark.parametrize("case", attention_tiles.DECODING, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_span_attention_decoding(dtype: torch.dtype, case: attention_simt.Case) -> None:
    inputs, options = attention_simt.make_inputs(case, dtype)
    options = {name: t.cuda() for name, t in options.items()} | {"return_lse": True}
    check_op(ops.span_attention, reference.span_attention, on_gpu(inputs), **options)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention_simt.PACKED, ids=str)
def test_span_attention_varlen(cu_seqlens: list[int], prefix_len: list[int], dropout_p: float) -> None:
    check_packed_attention(packed_inputs(cu_seqlens, prefix_len), dropout_p)


def packed_inputs(
    cu_seqlens: list[int], prefix_len: list[int], dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(131, 2, 64).to(dtype), torch.randn(2, 131, 1, 64).to(dtype)
    return [query, key, value, torch.tensor(cu_seqlens), torch.tensor(prefix_len)]


# ------------------------------------------------------------------------------ every kernel, in a small case

Call = tuple[Callable[..., Any], list[Any]]


def layer_norm_call(dtype: torch.dtype, *shape: int) -> Call:
    op = functools.partial(ops.dropout_add_layer_norm, dropout_p=0.1)
    return op, layer_norm_tests.make_inputs(shape, dtype)


def embedding_call(dtype: torch.dtype, width: int) -> Call:
    """Two steps of the sort, and an id of 160 places, whose pieces of three slots a kernel combines."""
    tables = embedding_tests.make_tables((50, 301, 301), width, dtype)
    return functools.partial(ops.embedding_2d, dropout_p=0.1), [
        *embedding_tests.glm_batch(2, 101, 80),
        *tables,
    ]


def mlp_call(dtype: torch.dtype, *sizes: int) -> Call:
    return ops.gelu_mlp, mlp_tests.make_inputs(*sizes, dtype)


def loss_call(dtype: torch.dtype, *shape: int) -> Call:
    x = loss_tests.Inputs(*shape, dtype)
    targets, mask = x.targets.cuda(), x.mask.cuda()
    return lambda hidden, weight: ops.linear_cross_entropy(hidden, weight, targets, mask), [
        x.hidden,
        x.weight,
    ]


def attention_call(dtype: torch.dtype, head_dim: int, rows: int = 70, keys: int = 70) -> Call:
    inputs, _ = attention_simt.make_inputs(((1, 2, 1, rows, keys, head_dim), [20], None, None), dtype)
    return functools.partial(ops.span_attention, dropout_p=0.1, return_lse=True), inputs


def packed_call(dtype: torch.dtype) -> Call:
    op = functools.partial(ops.span_attention_varlen, dropout_p=0.1, return_lse=True)
    return op, packed_inputs(*attention_simt.PACKED[2], dtype)


SMALL: dict[str, Callable[[torch.dtype], Call]] = {
    "layer norm": lambda dtype: layer_norm_call(dtype, 9, 768),
    "layer norm, any width": lambda dtype: layer_norm_call(dtype, 3, 131),
    "embedding": lambda dtype: embedding_call(dtype, 64),
    "embedding, any width": lambda dtype: embedding_call(dtype, 13),
    "mlp, own products": lambda dtype: mlp_call(dtype, 131, 48, 136, 24),
    "mlp, own products, any strides": lambda dtype: mlp_call(dtype, 13, 17, 19, 23),
    "mlp, library": lambda dtype: mlp_call(dtype, 131, 48, 136, 24),
    "loss": lambda dtype: loss_call(dtype, 150, 24, 132),
    "loss, any strides": lambda dtype: loss_call(dtype, 20, 7, 31),
    "attention, 64": lambda dtype: attention_call(dtype, 64),
    "attention, 128": lambda dtype: attention_call(dtype, 128),
    "attention, 256": lambda dtype: attention_call(dtype, 256),
    "attention, tiles of 128 rows": lambda dtype: attention_call(dtype, 64, 1031, 1031),
    "attention, split keys": lambda dtype: attention_call(dtype, 64, 3, 1031),
    "attention, packed": packed_call,
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], Call]:
    """An op and its inputs on the GPU."""
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: "library" in request.param)

    def make(dtype: torch.dtype) -> Call:
        op, inputs = SMALL[request.param](dtype)
        return op, on_gpu(inputs)

    return make


def outputs_of(op: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    out = op(*inputs)
    return [out] if isinstance(out, Tensor) else list(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small(small: Callable[[torch.dtype], Call], dtype: torch.dtype) -> None:
    """What compute-sanitizer watches: every kernel, and the same bits twice."""
    op, inputs = small(dtype)
    assert_same_bits("the second time", forward_and_backward(op, inputs), forward_and_backward(op, inputs))


def test_nothing_waits_for_the_device(small: Callable[[torch.dtype], Call]) -> None:
    op, inputs = small(torch.bfloat16)
    forward_and_backward(op, inputs)  # modules load at the first call
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    wanted = [t for t in leaves if t.requires_grad]
    grads = [torch.ones_like(t) for t in outputs_of(op, leaves)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(outputs_of(op, leaves), wanted, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_replays(small: Callable[[torch.dtype], Call]) -> None:
    """Forward. A dropout mask is that of the seed drawn while the graph was recorded, at every replay."""
    op, inputs = small(torch.bfloat16)
    with torch.no_grad():
        outputs_of(op, inputs)
        graph = torch.cuda.CUDAGraph()
        torch.manual_seed(2)
        with torch.cuda.graph(graph):
            found = outputs_of(op, inputs)
        for t in inputs:
            if t.is_floating_point():
                t.mul_(0.5)
        torch.manual_seed(2)
        expected = outputs_of(op, inputs)
        for _ in range(2):
            graph.replay()
            assert_same_bits("a replay", expected, found)


# ------------------------------------------------------------------------------------ what holds for every op


def kernel_of(sample: Sample) -> str:
    return re.sub("_(varlen|qkvpacked)$", "", sample.op.__name__)


ON_GPU = [sample for sample in SAMPLES if kernel_of(sample) in KERNELS]


def prepared(sample: Sample, dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    """The sample's arguments on the GPU; for attention with a head dim that its kernels take."""
    arguments = on_gpu(sample.arguments(dtype))
    for i in sample.differentiable:
        leaf = arguments[i].detach()
        if kernel_of(sample) == "span_attention":
            leaf = torch.cat([leaf, leaf], -1)[..., :8].contiguous()
        arguments[i] = leaf.requires_grad_()
    return arguments


def run(sample: Sample, arguments: list[Any]) -> list[Tensor]:
    """Outputs and gradients."""
    outputs = sample(*arguments)
    differentiable = [t for t in outputs if t.requires_grad]
    grads = [torch.ones_like(t) for t in differentiable]
    gradients = torch.autograd.grad(differentiable, sample.leaves(arguments), grads)
    return [*(t.detach() for t in outputs), *gradients]


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_runs_on_the_current_stream(sample: Sample) -> None:
    """Whose inputs come late: a kernel on another stream would find zeros."""
    values, late = prepared(sample), prepared(sample)
    expected = run(sample, values)

    def fill(value: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            for to, source in zip(late, values, strict=True):
                to.copy_(value(source))

    fill(torch.zeros_like)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
        fill(lambda source: source)
        found = run(sample, late)
    torch.cuda.synchronize()
    assert_same_bits("on a side stream", expected, found)


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_compiles_into_one_graph(sample: Sample) -> None:
    if sample.kwargs.get("dropout_p", 0.0) > 0.0:
        pytest.skip("another seed in the graph")
    arguments = prepared(sample)
    compiled = torch.compile(lambda *args: sample.op(*args, **sample.kwargs), fullgraph=True)
    torch.manual_seed(2)
    out = compiled(*arguments)
    for a, b in zip([out] if isinstance(out, Tensor) else out, sample(*arguments), strict=True):
        assert torch.equal(a, b)


def test_dropout_is_the_cpus() -> None:
    """Bit for bit, in the rows' mapping and in attention's."""
    x, weight = torch.ones(5, 520), torch.ones(520)
    query, value = torch.randn(2, 3, 64, 64).bfloat16(), torch.eye(64).bfloat16().expand(2, 3, 64, 64)
    zeros = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        _, stream = ops.dropout_add_layer_norm(
            *(t.to(device) for t in (x, 0 * x, weight, 0 * weight)), dropout_p=0.3
        )
        out = ops.span_attention(*(t.to(device) for t in (query, query, value)), 64, dropout_p=0.3)
        zeros.append([(t == 0).cpu() for t in (stream, out)])
    for a, b in zip(*zeros, strict=True):
        assert torch.equal(a, b)
        assert a.any()


def test_double_precision_is_refused_with_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match=r"take float32, bfloat16, float16, got float64.*reference"):
        ops.gelu_mlp(*on_gpu(mlp_tests.make_inputs(3, 4, 5, 6, torch.float64)))


@pytest.mark.parametrize("value", [-1, 11, 10**12])
def test_an_id_outside_its_table_is_nan_and_not_a_crash(value: int) -> None:
    ids, tables = embedding_tests.make_ids((5,), (11, 7, 3)), embedding_tests.make_tables((11, 7, 3), 16)
    ids[0][2] = value
    leaves = [t.cuda().requires_grad_() for t in tables]
    out = ops.embedding_2d(*on_gpu(ids), *leaves)
    assert out.isnan().all(-1).tolist() == [False, False, True, False, False]
    out.sum().backward()
    torch.cuda.synchronize()
