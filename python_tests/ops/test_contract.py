"""What every op owes torch: the same tests for each entry of samples.SAMPLES."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from .samples import SAMPLES, Call, Sample, gradients, outputs_of, registered_calls, through_registered_op
from .tolerance import BACKWARD, FEW_EPS, FORWARD, check_op

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=SAMPLES, ids=lambda sample: sample.name)
def sample(request: pytest.FixtureRequest) -> Sample:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["eager", "registered"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways into an op: the short eager one, and the one that compilers see."""
    if request.param == "eager":
        yield
    else:
        with through_registered_op():
            yield


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of fresh memory is 0xff: a NaN in each floating dtype, -1 in the integer ones."""

    def poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            fresh = allocate(*args, **kwargs)
            fresh.untyped_storage().fill_(0xFF)  # type: ignore[arg-type]
            return fresh

        return poisoned

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


def run(sample: Sample, **options: Any) -> tuple[Tensor | None, ...]:
    """Outputs and gradients of the sample."""
    arguments = sample.arguments(**options)
    outputs = sample(*arguments)
    return (*(t.detach() for t in outputs), *gradients(outputs, sample.leaves(arguments)))


def assert_same_bits(ours: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert (a is None) == (b is None), f"tensor {i}: {a} against {b}"
        if a is not None and b is not None:
            torch.testing.assert_close(
                a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"tensor {i}: {m}"
            )


# ----------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_matches_reference(sample: Sample, batch: int, dtype: torch.dtype) -> None:
    def with_arguments(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*leaves: Tensor) -> Any:
            arguments = sample.arguments(batch=batch)
            for i, leaf in zip(sample.differentiable, leaves, strict=True):
                arguments[i] = leaf
            return outputs_of(op, arguments, sample.kwargs)

        return call

    leaves = [t.detach() for t in sample.leaves(sample.arguments(dtype, batch))]
    check_op(with_arguments(sample.op), with_arguments(sample.reference), leaves)


def test_gradcheck(sample: Sample, path: None) -> None:
    arguments = sample.arguments(torch.float64)
    assert torch.autograd.gradcheck(sample, arguments)


def test_outputs_are_fully_written(sample: Sample, path: None, request: pytest.FixtureRequest) -> None:
    expected = run(sample)
    request.getfixturevalue("poisoned_memory")
    assert_same_bits(run(sample), expected)


def test_nan_propagates(sample: Sample) -> None:
    for i in sample.differentiable:
        arguments = sample.arguments()
        with torch.no_grad():
            arguments[i].view(-1)[::3] = torch.nan
        ours, expected = sample(*arguments), sample.truth(*arguments)
        gradients(ours, sample.leaves(arguments))
        for a, b in zip(ours, expected, strict=True):
            assert (a.isnan() | ~b.isnan()).all(), f"a NaN in argument {i} was lost"
            if (
                sample.kwargs.get("dropout_p", 0.0) == 0.0
            ):  # else a NaN of a dropped weight may or may not show
                assert torch.equal(a.isnan(), b.isnan()), f"a NaN in argument {i} leaked"


# ---------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_same_bits_twice_and_for_every_thread_count(sample: Sample, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(sample, dtype=dtype, batch=5)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(run(sample, dtype=dtype, batch=5), expected)
    finally:
        torch.set_num_threads(before)


def test_both_paths_agree(sample: Sample) -> None:
    expected = run(sample)
    with through_registered_op():
        assert_same_bits(run(sample), expected)


def test_strided_inputs(sample: Sample) -> None:
    arguments = sample.arguments()
    for i in sample.differentiable:
        padded = torch.stack((arguments[i].detach(), torch.full_like(arguments[i], torch.nan)), dim=1)
        arguments[i] = padded.requires_grad_()[:, 0]
    outputs = sample(*arguments)
    ours = (*(t.detach() for t in outputs), *gradients(outputs, sample.leaves(arguments)))
    assert_same_bits(ours, run(sample))


def test_expanded_gradient(sample: Sample) -> None:
    """sum().backward() sends one number in with strides of zero."""
    arguments = sample.arguments()
    outputs = tuple(t for t in sample(*arguments) if t.requires_grad)
    leaves = sample.leaves(arguments)
    ones = [torch.ones_like(t) for t in outputs]
    expected = torch.autograd.grad(outputs, leaves, ones, allow_unused=True, retain_graph=True)
    assert_same_bits(torch.autograd.grad(sum(t.sum() for t in outputs), leaves, allow_unused=True), expected)


# --------------------------------------------------------------------------------------------------- autograd


def test_gradients_of_some_inputs_only(sample: Sample, path: None) -> None:
    everything = dict(zip(sample.differentiable, run(sample)[-len(sample.differentiable) :], strict=True))
    for wanted in sample.differentiable:
        arguments = sample.arguments()
        for i in sample.differentiable:
            arguments[i].requires_grad_(i == wanted)
        assert_same_bits(gradients(sample(*arguments), [arguments[wanted]]), (everything[wanted],))


def test_no_graph_without_requires_grad(sample: Sample, path: None) -> None:
    with torch.no_grad():
        assert not any(t.requires_grad for t in sample(*sample.arguments()))
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in sample.arguments()]
    assert not any(t.requires_grad for t in sample(*arguments))


def test_one_output_without_gradient(sample: Sample, path: None) -> None:
    """A gradient for one output alone equals zeros for the others."""
    arguments = sample.arguments()
    leaves = sample.leaves(arguments)
    outputs = tuple(t for t in sample(*arguments) if t.requires_grad)
    for k, out in enumerate(outputs):
        incoming = [torch.ones_like(t) if j == k else torch.zeros_like(t) for j, t in enumerate(outputs)]
        expected = torch.autograd.grad(outputs, leaves, incoming, retain_graph=True, allow_unused=True)
        alone = torch.autograd.grad(out, leaves, incoming[k], retain_graph=True, allow_unused=True)
        for leaf, a, b in zip(leaves, alone, expected, strict=True):
            zero = torch.zeros_like(leaf)
            assert torch.equal(zero if a is None else a, zero if b is None else b)


def test_double_backward_raises(sample: Sample, path: None) -> None:
    arguments = sample.arguments()
    loss = sum(t.square().sum() for t in sample(*arguments) if t.requires_grad)
    grads = torch.autograd.grad(loss, sample.leaves(arguments), create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        sum(t.sum() for t in grads if t is not None).backward()  # type: ignore[union-attr]


def test_gradient_penalty_raises(sample: Sample, path: None) -> None:
    """The incoming gradient is constant, the op's own second derivative is asked for.

    Where torch's own composite has none (embedding_2d is linear), the gradient has nothing to differentiate.
    """
    arguments = sample.arguments()
    leaves = sample.leaves(arguments)
    grads = gradients(sample(*arguments), leaves, create_graph=True)
    expected = gradients(sample.truth(*arguments), leaves, create_graph=True)
    if any(t is not None and t.requires_grad for t in expected):
        with pytest.raises(RuntimeError, match="differentiate twice"):
            sum(t.square().sum() for t in grads if t is not None).backward()  # type: ignore[union-attr]
    else:
        assert not any(t is not None and t.requires_grad for t in grads)


def test_second_backward_through_a_freed_graph_raises(sample: Sample, path: None) -> None:
    arguments = sample.arguments()
    outputs = sample(*arguments)
    gradients(outputs, sample.leaves(arguments))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(outputs, sample.leaves(arguments))


def test_forward_mode_derivatives_raise(sample: Sample) -> None:
    """Also where no input asks for a gradient: a tangent must never be dropped in silence."""
    arguments = [a.detach() if isinstance(a, Tensor) else a for a in sample.arguments()]
    first = sample.differentiable[0]
    with forward_ad.dual_level():
        arguments[first] = forward_ad.make_dual(arguments[first], torch.ones_like(arguments[first]))
        with pytest.raises(NotImplementedError, match="jvp"):
            sample(*arguments)


def test_checkpoint(sample: Sample, path: None) -> None:
    """The recomputed forward draws the same dropout mask."""
    arguments = sample.arguments()
    torch.manual_seed(2)
    out = checkpoint(sample.op, *arguments, use_reentrant=False, **sample.kwargs)
    torch.manual_seed(7)  # what happens between forward and backward does not matter
    outputs = (out,) if isinstance(out, Tensor) else tuple(out)
    ours = (*(t.detach() for t in outputs), *gradients(outputs, sample.leaves(arguments)))
    assert_same_bits(ours, run(sample))


# ----------------------------------------------------------------------------------------------------- graphs


@pytest.mark.any_isa
def test_opcheck(sample: Sample) -> None:
    calls = registered_calls(sample)
    assert calls, "the public function never reached torch.ops.glm_ext"
    for call in calls:
        is_forward = call is calls[0]
        inputs = call.args
        if is_forward:
            inputs = tuple(
                t.clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
                for t in call.args
            )
        opcheck(call.op, inputs)


@pytest.mark.any_isa
def test_compile(sample: Sample) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sample.op, fullgraph=True, backend="aot_eager")
    arguments = sample.arguments()
    outputs = outputs_of(compiled, arguments, sample.kwargs)
    ours = (*(t.detach() for t in outputs), *gradients(outputs, sample.leaves(arguments)))
    assert_same_bits(ours, run(sample))


@pytest.mark.any_isa
def test_one_graph_serves_every_batch_size(sample: Sample) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(sample.op, fullgraph=True, backend=count)
    for batch in (2, 3, 4, 5):
        outputs_of(
            compiled,
            [t if not isinstance(t, Tensor) else t.detach() for t in sample.arguments(batch=batch)],
            sample.kwargs,
        )
    assert len(graphs) <= 2, "the first size, then any"


@pytest.mark.any_isa
def test_tracers_and_modes_see_the_registered_op(sample: Sample) -> None:
    """What only the short path knows would be traced as memory that nothing was written to."""
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in sample.arguments()]
    tensors = {i: t for i, t in enumerate(arguments) if i in sample.differentiable}

    def op(*given: Tensor) -> Any:
        filled = dict(zip(tensors, given, strict=True))
        return sample.op(*(filled.get(i, t) for i, t in enumerate(arguments)), **sample.kwargs)

    name = f"glm_ext.{registered_calls(sample)[0].name}"
    assert name in make_fx(op)(*tensors.values()).code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(op, tuple(tensors.values()), check_trace=False)
    assert name.replace(".", "::") in str(traced.graph)


@pytest.mark.any_isa
def test_export_keeps_one_node(sample: Sample) -> None:
    class Layer(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return sample.op(*arguments, **sample.kwargs)

    arguments = sample.arguments()
    program = torch.export.export(Layer(), tuple(arguments))
    nodes = [str(node.target) for node in program.graph.nodes if "glm_ext" in str(node.target)]
    assert nodes == [f"glm_ext.{registered_calls(sample)[0].name}.default"]
    exported = outputs_of(program.module(), arguments, {})
    assert_same_bits(tuple(t.detach() for t in exported), tuple(t.detach() for t in sample(*arguments)))


# -------------------------------------------------------------------------------------------------- odd input


def test_a_tensor_without_memory_is_refused(sample: Sample, path: None) -> None:
    for i in sample.differentiable:
        arguments = sample.arguments()
        arguments[i] = arguments[i].detach().clone()
        arguments[i].untyped_storage().resize_(0)
        with pytest.raises((ValueError, RuntimeError)):
            sample(*arguments)


def _negative(t: Tensor) -> Tensor:
    return torch._neg_view(-t)  # type: ignore[no-any-return]


def _zeros(t: Tensor) -> Tensor:
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def test_a_negative_view_is_read_as_it_is_meant(sample: Sample) -> None:
    arguments = sample.arguments()
    expected = sample(*arguments)
    for i in sample.differentiable:
        arguments[i] = _negative(arguments[i].detach())
    assert_same_bits(sample(*arguments), tuple(t.detach() for t in expected))


@pytest.mark.parametrize("flagged", [_negative, _zeros])
def test_incoming_gradients_that_only_a_flag_tells(
    sample: Sample, path: None, flagged: Callable[[Tensor], Tensor]
) -> None:
    results = []
    for make in (flagged, lambda t: flagged(t).clone().resolve_neg()):
        arguments = sample.arguments()
        outputs = sample(*arguments)
        incoming = [make(torch.full_like(t.detach(), 0.5)) for t in outputs]
        results.append(torch.autograd.grad(outputs, sample.leaves(arguments), incoming))
    assert_same_bits(*results)


def test_the_registered_ops_check_what_they_are_given(sample: Sample) -> None:
    """A shape or dtype that does not fit is an error, not a read past the end: forward, then backward."""
    for call in registered_calls(sample):
        for i, tensor in enumerate(call.args):
            if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.numel() == 0:
                continue
            wrongs = [tensor[..., :0], tensor.to(torch.complex64)]
            if i > 0:  # of some ops, the first tensor may have any width and rank
                wrongs += [tensor[..., :-1], tensor[None]]
            for wrong in wrongs:
                with pytest.raises((ValueError, TypeError)):
                    call.op(*call.args[:i], wrong, *call.args[i + 1 :])


# --------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(sample: Sample, dtype: torch.dtype, path: None) -> None:
    """Dtypes as torch's own composite has them, errors within the rule of its; mixed inputs too."""
    arguments = sample.arguments()
    first = sample.differentiable[0]
    arguments[first] = arguments[first].detach().to(dtype).requires_grad_()
    leaves = sample.leaves(arguments)
    with torch.autocast("cpu", dtype=dtype):
        ours, composite = sample(*arguments), sample.truth(*arguments)
    exact = [
        t.detach().double().requires_grad_() if i in sample.differentiable else t
        for i, t in enumerate(arguments)
    ]
    truth = sample.truth(*exact)
    _assert_no_worse(ours, composite, truth, dtype, FORWARD)
    ours, composite, truth = (
        gradients(ours, leaves),
        gradients(composite, leaves),
        gradients(truth, sample.leaves(exact)),
    )
    _assert_no_worse(ours, composite, truth, dtype, BACKWARD)


def _assert_no_worse(ours: Any, composite: Any, truth: Any, dtype: torch.dtype, factor: float) -> None:
    for i, (a, b, c) in enumerate(zip(ours, composite, truth, strict=True)):
        assert a.dtype == b.dtype, f"tensor {i}: {a.dtype}, torch's own composite gives {b.dtype}"
        error, theirs = ((t.double() - c).abs().max().item() for t in (a, b))
        allowed = factor * theirs + FEW_EPS * torch.finfo(dtype).eps * c.abs().max().item()
        assert error <= allowed, (
            f"tensor {i}: error {error:.3g}, composite {theirs:.3g}, allowed {allowed:.3g}"
        )


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_of_the_registered_op(sample: Sample, dtype: torch.dtype) -> None:
    """torch.ops.glm_ext.X called directly casts as the public function does."""
    call: Call = registered_calls(sample)[0]
    first = sample.differentiable[0]
    mixed = [t.to(dtype) if i == first else t for i, t in enumerate(call.args)]
    arguments = sample.arguments()
    arguments[first] = arguments[first].detach().to(dtype)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        direct = call.op(*mixed)
        public = sample(*arguments)
    direct = (direct,) if isinstance(direct, Tensor) else direct
    assert_same_bits(tuple(direct[: len(public)]), public)
