"""The ops on a GPU: the cases of the CPU and of the host execution, by the same rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import _gelu_mlp_library, reference
from glm_ext.ops._cuda import KERNELS, has_kernel

from ..ops import test_dropout_add_layer_norm as layer_norm_tests
from ..ops import test_embedding_2d as embedding_tests
from ..ops import test_gelu_mlp as mlp_tests
from ..ops import test_linear_cross_entropy as loss_tests
from ..ops.samples import SAMPLES, Sample
from ..ops.tolerance import FORWARD, assert_within_rule, check_op
from ..simt import test_dropout_add_layer_norm as layer_norm_simt
from ..simt import test_gelu_mlp as mlp_simt
from ..simt import test_linear_cross_entropy as loss_simt
from ..simt import test_span_attention as attention_simt
from ..simt.checks import GPU_DTYPES

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
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: library)
    inputs = on_gpu(mlp_tests.make_inputs(*sizes, dtype))
    check_op(ops.gelu_mlp, reference.gelu_mlp, inputs, approximate=approximate, recompute=recompute)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [*loss_simt.SHAPES, *loss_tests.SHAPES, (2100, 256, 5003)], ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_linear_cross_entropy(
    dtype: torch.dtype, shape: tuple[int, int, int], label_smoothing: float, reduction: str
) -> None:
    x = loss_tests.Inputs(*shape, dtype)
    x.targets, x.mask = x.targets.cuda(), x.mask.cuda()
    kwargs = {"label_smoothing": label_smoothing, "reduction": reduction}
    check_op(
        loss_tests.with_targets(ops.linear_cross_entropy, x, x.mask, **kwargs),
        loss_tests.with_targets(reference.linear_cross_entropy, x, x.mask, **kwargs),
        on_gpu([x.hidden, x.weight]),
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", attention_simt.CASES, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_span_attention(dtype: torch.dtype, case: attention_simt.Case, dropout_p: float) -> None:
    if not has_kernel("span_attention", dtype):
        pytest.skip(f"span_attention has no CUDA kernel for {dtype}")
    inputs, options = attention_simt.make_inputs(case, dtype)
    inputs, options = on_gpu(inputs), {name: t.cuda() for name, t in options.items()}
    check_attention(ops.span_attention, reference.span_attention, inputs, dropout_p=dropout_p, **options)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention_simt.PACKED, ids=str)
def test_span_attention_varlen(cu_seqlens: list[int], prefix_len: list[int], dropout_p: float) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(131, 2, 64).bfloat16(), torch.randn(2, 131, 1, 64).bfloat16()
    inputs = on_gpu([query, key, value, torch.tensor(cu_seqlens), torch.tensor(prefix_len)])
    check_attention(ops.span_attention_varlen, reference.span_attention_varlen, inputs, dropout_p=dropout_p)


def check_attention(
    op: Callable[..., Any], truth: Callable[..., Any], inputs: list[Tensor], **kwargs: Any
) -> None:
    if has_kernel("span_attention", inputs[0].dtype, gradient=True):
        return check_op(op, truth, inputs, **kwargs)
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    results = []
    for function, arguments in ((op, inputs), (truth, inputs), (truth, wide)):
        torch.manual_seed(3)
        results.append(function(*arguments, **kwargs))
    assert_within_rule("output", results[0], results[1], results[2].double(), FORWARD)
    return None


# ------------------------------------------------------------------------------------ what holds for every op


def kernel_of(sample: Sample) -> str:
    return re.sub("_(varlen|qkvpacked)$", "", sample.op.__name__)


ON_GPU = [sample for sample in SAMPLES if kernel_of(sample) in KERNELS]


def has_backward(sample: Sample) -> bool:
    return f"{kernel_of(sample)}_backward" in KERNELS


def prepared(sample: Sample, dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    """The sample's arguments on the GPU; for attention with a head dim that its kernels take."""
    arguments = on_gpu(sample.arguments(dtype))
    for i in sample.differentiable:
        leaf = arguments[i].detach()
        if kernel_of(sample) == "span_attention":
            leaf = torch.cat([leaf, leaf], -1)[..., :8].contiguous()
        arguments[i] = leaf.requires_grad_(has_backward(sample))
    return arguments


def run(sample: Sample) -> list[Tensor]:
    """Outputs and, where there is a backward, gradients."""
    arguments = prepared(sample)
    outputs = sample(*arguments)
    differentiable = [t for t in outputs if t.requires_grad]
    grads = [torch.ones_like(t) for t in differentiable]
    gradients = torch.autograd.grad(differentiable, sample.leaves(arguments), grads) if grads else ()
    return [*(t.detach() for t in outputs), *gradients]


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_small(sample: Sample) -> None:
    """What compute-sanitizer watches: every kernel once, and the same bits twice."""
    for a, b in zip(run(sample), run(sample), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_nothing_waits_for_the_device(sample: Sample) -> None:
    run(sample)  # modules load at the first call
    arguments = prepared(sample)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_runs_on_the_current_stream(sample: Sample) -> None:
    expected = run(sample)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run(sample)
    stream.synchronize()
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_a_cuda_graph_replays_the_mlp() -> None:
    inputs = on_gpu(mlp_tests.make_inputs(64, 32, 128, 32, torch.bfloat16))
    with torch.no_grad():
        ops.gelu_mlp(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ops.gelu_mlp(*inputs)
        inputs[0].copy_(torch.randn(64, 32))
        graph.replay()
        assert torch.equal(out, ops.gelu_mlp(*inputs))


@pytest.mark.parametrize("sample", ON_GPU, ids=lambda s: s.name)
def test_compiles_into_one_graph(sample: Sample) -> None:
    if not has_backward(sample) or sample.kwargs.get("dropout_p", 0.0) > 0.0:
        pytest.skip("no backward on a GPU, or another seed in the graph")
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
