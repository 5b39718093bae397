"""Where an op's kernel runs, as far as it shows without a GPU: the table, the target, the fallback."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from glm_ext import _C, ops
from glm_ext.nn import ops_for
from glm_ext.ops import _cuda, _gelu_mlp_library, _library, auto, reference
from glm_ext.ops._library import target

from .samples import SAMPLES, Sample, registered_calls

pytestmark = pytest.mark.any_isa

BF16 = torch.bfloat16
ON_GPU: Any = SimpleNamespace(device=torch.device("cuda", 3), dtype=torch.float32)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an extension built with CUDA."""
    monkeypatch.setattr(_cuda, "BUILT", True)
    monkeypatch.setattr(_cuda, "runs_on", lambda device: True)
    stream = SimpleNamespace(cuda_stream=0x7000)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: stream if index == 3 else None)
    monkeypatch.setattr(_library, "current_stream", _library._stream_of_an_object)


# ---------------------------------------------------------------------------------------------------- target


def test_a_cpu_tensor_takes_torchs_threads() -> None:
    assert target("gelu_mlp", torch.ones(1)) == torch.get_num_threads()


@pytest.mark.usefixtures("built")
def test_a_gpu_tensor_takes_its_device_and_the_current_stream() -> None:
    assert target("gelu_mlp", ON_GPU) == (3, 0x7000)


@pytest.mark.parametrize(
    ("build", "op", "dtype", "message"),
    [
        (False, "gelu_mlp", torch.float32, "this build of glm_ext has no CUDA kernels; build .* GLM_CUDA=on"),
        (True, "gelu_mlp", torch.float64, "take float32, bfloat16, float16, got float64"),
        (True, "fancy_op", torch.float32, "it has no CUDA kernel yet"),
    ],
)
def test_what_has_no_kernel_is_refused(
    monkeypatch: pytest.MonkeyPatch, build: bool, op: str, dtype: torch.dtype, message: str
) -> None:
    monkeypatch.setattr(_cuda, "BUILT", build)
    monkeypatch.setattr(_cuda, "runs_on", lambda device: True)
    tensor: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)
    with pytest.raises(NotImplementedError, match=f"glm_ext.{op}: expected tensors on the CPU.*{message}"):
        target(op, tensor)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "OWN_KERNEL"),
        ({"GLM_ATOMICS": "0"}, "OWN_KERNEL"),
        ({"GLM_FIVE_PRODUCTS": "1"}, "SUMS_IN_ORDER"),
        ({"GLM_FIVE_PRODUCTS": "1", "GLM_ATOMICS": "1"}, "SUMS_IN_ANY_ORDER"),
    ],
    ids=str,
)
def test_the_way_to_the_gradient_of_the_query(given: dict[str, str], expected: str) -> None:
    names = ("GLM_ATOMICS", "GLM_FIVE_PRODUCTS")
    run = subprocess.run(
        [sys.executable, "-c", "from glm_ext.ops import _cuda; print(_cuda.way_to_grad_query().name)"],
        env={k: v for k, v in os.environ.items() if k not in names} | given,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == expected


def test_atomics_are_allowed_and_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "atomics", False)
    monkeypatch.setattr(_cuda, "five_products", True)
    ops.allow_atomics()
    assert _cuda.way_to_grad_query() == _cuda.GradQuery.SUMS_IN_ANY_ORDER
    ops.allow_atomics(False)
    assert _cuda.way_to_grad_query() == _cuda.GradQuery.SUMS_IN_ORDER


def test_ffma_is_asked_for_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(_cuda, "_C", SimpleNamespace(use_ffma=wanted.append))
    ops.use_ffma()
    ops.use_ffma(False)
    assert wanted == [True, False]


def test_the_table_names_registered_ops() -> None:
    for name in _cuda.KERNELS:
        assert hasattr(torch.ops.glm_ext, name)
        assert name.removesuffix("_backward") in _cuda.KERNELS


@pytest.mark.usefixtures("built")
def test_an_op_with_gradient_needs_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "KERNELS", {"one_way": (BF16,), "both": (BF16,), "both_backward": (BF16,)})
    assert _cuda.has_kernel("one_way", BF16)
    assert not _cuda.has_kernel("one_way", BF16, gradient=True)
    assert _cuda.has_kernel("both", BF16, gradient=True)
    assert not _cuda.has_kernel("both", torch.float32)


@pytest.mark.skipif(
    bool(_C.cuda_devices()), reason="there is a GPU, which would be given pointers of the host"
)
def test_a_gpu_target_without_cuda_kernels_is_an_error_not_a_crash() -> None:
    """In a build with CUDA, but on a machine without a driver, the device guard says so."""
    x = torch.ones(1, 4)
    with pytest.raises((ValueError, RuntimeError), match=r"CUDA kernel|cudaGetDevice|cudaSetDevice"):
        _C.dropout_add_layer_norm_forward(
            x, x, x[0], x[0], x.clone(), x.clone(), x[:, 0], x[:, 0], 1e-5, 0.0, 0, (0, 0)
        )


@pytest.mark.parametrize("where", [(0,), (0, 0, 0), "cuda", None, (0, "x")])
def test_a_target_is_threads_or_a_device_and_its_stream(where: Any) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.linear_cross_entropy_workspace(1, 1, 1, 4, where)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A build for 80 and 90a that sees a T4, an L4, an H100 and a B200."""
    found = [("T4", 7, 5, 64), ("L4", 8, 9, 99), ("H100", 9, 0, 227), ("B200", 10, 0, 227)]
    fake = SimpleNamespace(
        cuda_architectures=lambda: "80 90a",
        cuda_devices=lambda: [(*device[:3], device[3] * 1024) for device in found],
    )
    monkeypatch.setattr(_cuda, "_C", fake)
    monkeypatch.setattr(_cuda, "BUILT", True)
    _cuda._device.cache_clear()
    yield
    _cuda._device.cache_clear()


@pytest.mark.usefixtures("gpus")
def test_on_which_gpus_a_build_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [torch.device("cuda", index) for index in range(5)]  # the last one is not there
    assert [_cuda.runs_on(device) for device in devices] == [False, True, True, True, False]
    assert [_cuda.shared_bytes(device) // 1024 for device in devices] == [64, 99, 227, 227, 0]
    monkeypatch.setattr(_cuda._C, "cuda_architectures", lambda: "90a")
    assert [_cuda.runs_on(device) for device in devices] == [False, False, True, False, False]


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_a_build_has_no_code_for_is_refused() -> None:
    tensor: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    with pytest.raises(NotImplementedError, match=r"architectures 80 90a, .* capability 7\.5; from 8"):
        target("gelu_mlp", tensor)


def test_to_import_the_library_is_not_to_import_the_compiler() -> None:
    """torch._dynamo takes a second."""
    code = "import sys, glm_ext; print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.usefixtures("gpus")
def test_what_a_gpu_is_like_is_a_constant_to_a_compiler() -> None:
    device = torch.device("cuda", 1)

    @torch.compile(backend="eager", fullgraph=True)
    def f(x: torch.Tensor) -> torch.Tensor:
        return x + _cuda.shared_bytes(device) if _cuda.runs_on(device) else x

    assert f(torch.zeros(())) == 99 * 1024


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_every_kernel_of_a_call_gets_the_target(sample: Sample) -> None:
    """The target is the last argument of every call of the binding, forward and backward."""
    calls: list[tuple[str, Any]] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                calls.append((name, args[-1]))
                return getattr(_C, name)(*args[:-1], 1) if args[-1] == (3, 7) else getattr(_C, name)(*args)

            return call

    name = re.sub("^span_attention.*", "_span_attention", sample.op.__name__)
    module = importlib.import_module(f"glm_ext.ops.{name}")
    here = mock.patch.object(module, "target", return_value=(3, 7))
    with mock.patch.object(module, "_C", Recorder()), here:
        arguments = sample.arguments()
        outputs = sample(*arguments)
        grads = [torch.ones_like(t) for t in outputs if t.requires_grad]
        torch.autograd.grad([t for t in outputs if t.requires_grad], sample.leaves(arguments), grads)
    assert any("backward" in name for name, _ in calls) or sample.op is ops.linear_cross_entropy
    assert all(
        where == (3, 7) for name, where in calls if not name.endswith(("partials", "row_tiles", "groups"))
    )


@pytest.mark.parametrize(
    ("rows", "capability", "library"), [(4096, 8, False), (4096, 9, True), (4096, 10, True), (1, 8, True)]
)
def test_whose_products_an_mlp_takes(rows: int, capability: int, library: bool) -> None:
    assert _gelu_mlp_library.prefers(rows, capability) == library


def test_on_a_cpu_an_mlp_takes_its_own_products() -> None:
    assert not _gelu_mlp_library.is_better(torch.ones(1, 4))


# --------------------------------------------------------------------------------------------------- fallback


def test_auto_is_fused_on_a_cpu_and_chosen_by_op_on_a_gpu() -> None:
    assert ops_for("auto", "cpu") is ops_for("fused", "cuda") is ops
    assert ops_for("auto", "cuda") is auto
    assert ops_for("eager", "cuda") is reference


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", ops.__all__)
@pytest.mark.parametrize("gradient", [False, True])
def test_auto_runs_plain_torch_only_where_there_is_no_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, gradient: bool
) -> None:
    kernel = re.sub("_(varlen|qkvpacked)$", "", name)
    monkeypatch.setattr(_cuda, "KERNELS", {kernel: (BF16,)})
    fused, plain = mock.Mock(return_value="fused"), mock.Mock(return_value="plain")
    monkeypatch.setattr(ops, name, fused)
    monkeypatch.setattr(reference, name, plain)
    op = getattr(auto, name)
    x = torch.ones(8, dtype=BF16, requires_grad=gradient)
    assert op(x, torch.ones(8, dtype=torch.long), option=1) == ("plain" if gradient else "fused")
    assert op(torch.ones(8)) == "plain"
    with torch.no_grad():
        assert op(x) == "fused"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", [name for name in ops.__all__ if name.startswith("span_attention")])
@pytest.mark.parametrize(
    ("dtype", "autocast", "fused"),
    [
        (BF16, False, [8, 16, 64]),
        (torch.float32, False, [4, 8, 12, 16, 64]),
        (torch.float32, True, [8, 16, 64]),
    ],
)
def test_auto_knows_the_head_dims_of_attention(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, autocast: bool, fused: list[int]
) -> None:
    """Multiples of 16 bytes, in the dtype that the kernel will get."""
    calls: list[int] = []
    monkeypatch.setattr(ops, name, lambda query: calls.append(query.shape[-1]))
    monkeypatch.setattr(reference, name, lambda query: None)
    with torch.autocast("cpu", BF16, enabled=autocast):
        for head_dim in (2, 4, 5, 8, 12, 16, 64):
            getattr(auto, name)(torch.ones(1, 1, 3, head_dim, dtype=dtype))
    assert calls == fused


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("kilobytes", "fused"), [(99, [128]), (163, [128, 132, 256])])
def test_auto_knows_the_shared_memory_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, kilobytes: int, fused: list[int]
) -> None:
    """For the gradients of long heads of floats."""
    calls: list[int] = []
    monkeypatch.setattr(ops, "span_attention", lambda query: calls.append(query.shape[-1]))
    monkeypatch.setattr(reference, "span_attention", lambda query: None)
    monkeypatch.setattr(_cuda, "shared_bytes", lambda device: kilobytes * 1024)
    queries = [torch.ones(1, 1, 3, head_dim, requires_grad=True) for head_dim in (128, 132, 256)]
    for query in queries:
        auto.span_attention(query)
    assert calls == fused
    with torch.no_grad():
        auto.span_attention(queries[-1])
    auto.span_attention(queries[-1].bfloat16())
    assert calls == [*fused, 256, 256]


@pytest.mark.usefixtures("built")
def test_auto_looks_at_what_autocast_will_make_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "KERNELS", {"gelu_mlp": (BF16,)})
    monkeypatch.setattr(ops, "gelu_mlp", lambda x: "fused")
    monkeypatch.setattr(reference, "gelu_mlp", lambda x: "plain")
    op = auto.gelu_mlp
    assert op(torch.ones(2)) == "plain"
    with torch.autocast("cpu", BF16):
        assert op(torch.ones(2)) == "fused"
        assert op(torch.ones(2, dtype=torch.float64)) == "plain"


def test_samples_cover_the_table() -> None:
    called = {call.name for sample in SAMPLES for call in registered_calls(sample)}
    assert set(_cuda.KERNELS) <= called | {"linear_cross_entropy_backward"}
