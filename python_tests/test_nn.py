"""The layers against torch.nn's own, given the same weights."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

from glm_ext import Embedding2D, GeluMLP, GLMBlock, KVCache, SpanAttention, ops
from glm_ext.nn import FUSED_LINEAR_WEIGHT, ops_for
from glm_ext.ops import reference

BACKENDS = ["eager", "auto"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layers(backend="eager", dropout=0.0):
    """One of each, 12 wide, with the arguments it is called with."""
    x = torch.randn(2, 5, 12)
    ids = torch.tensor([[0, 6, 3]]), torch.tensor([[[0, 1, 1], [0, 0, 1]]])
    return {
        "SpanAttention": (SpanAttention(12, 3, dropout=dropout, backend=backend), (x, 2)),
        "Embedding2D": (Embedding2D(7, 4, 12, dropout=dropout, backend=backend), ids),
        "GeluMLP": (GeluMLP(12, 20, backend=backend), (x,)),
        "GLMBlock": (GLMBlock(12, 3, 20, dropout=dropout, backend=backend), (x, 2)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_span_attention_is_multihead_attention(backend, bias):
    ours = SpanAttention(12, 3, bias=bias, backend=backend)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    theirs.in_proj_weight = ours.query_key_value.weight  # both keep [all Q | all K | all V]
    theirs.in_proj_bias = ours.query_key_value.bias
    theirs.out_proj = ours.dense
    x, prefix_len, seq_len = torch.randn(2, 6, 12), torch.tensor([2, 6]), torch.tensor([6, 4])
    blocked = ~reference.visible(6, 6, prefix_len, seq_len).repeat_interleave(3, dim=0)
    expected, _ = theirs(x, x, x, attn_mask=blocked, need_weights=False)
    torch.testing.assert_close(ours(x, prefix_len, seq_len), expected)


def test_span_attention_reads_the_projection_in_place(monkeypatch):
    seen = []

    def spy(query, key, value, *args, **kwargs):
        seen.extend((query, key, value))
        return query

    monkeypatch.setattr(reference, "span_attention", spy)
    SpanAttention(12, 3, backend="eager")(torch.randn(2, 5, 12), 2)
    query, key, value = seen
    assert query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
    assert [t.data_ptr() - query.data_ptr() for t in (key, value)] == [12 * 4, 24 * 4]
    assert query.stride() == (5 * 36, 4, 36, 1)


def test_large_weights_take_the_packed_product(monkeypatch):
    """Which of two products a layer takes is a matter of speed alone."""
    width = int(FUSED_LINEAR_WEIGHT**0.5)
    attention, x = SpanAttention(width, 4), torch.randn(3, 7, width)
    fused, inputs = attention(x, 4), (x, *attention.parameters())
    assert "Linear" in fused.grad_fn.name()
    grads = torch.autograd.grad(fused.square().sum(), inputs[1:])
    monkeypatch.setattr("glm_ext.nn.FUSED_LINEAR_WEIGHT", 10**9)
    plain = attention(x, 4)
    assert plain.grad_fn.name() != fused.grad_fn.name()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(grads, torch.autograd.grad(plain.square().sum(), inputs[1:]))


def test_what_replaces_a_projection_is_called(monkeypatch):
    class Adapter(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    attention, x = SpanAttention(12, 3), torch.randn(1, 4, 12)
    adapted = copy.deepcopy(attention)
    adapted.dense.__class__ = Adapter
    for large in (0, 10**9):
        monkeypatch.setattr("glm_ext.nn.FUSED_LINEAR_WEIGHT", large)
        torch.testing.assert_close(adapted(x, 2), attention(x, 2) + 1)


class PlusOne(nn.Module):
    """An adapter as libraries make them: it holds the layer and shows its parameters."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, *arguments):
        return self.base(*arguments) + 1


@pytest.mark.parametrize("part", ["dense_h_to_4h", "dense_4h_to_h"])
def test_what_replaces_a_part_of_the_mlp_is_called(part):
    mlp, x = GeluMLP(12, 20), torch.randn(2, 5, 12)
    adapted = copy.deepcopy(mlp)
    setattr(adapted, part, PlusOne(getattr(adapted, part)))
    moved = copy.deepcopy(mlp)
    with torch.no_grad():
        getattr(moved, part).bias += 1
    torch.testing.assert_close(adapted(x), moved(x))


def test_what_replaces_a_table_is_called():
    embedding, (tokens, positions) = layers()["Embedding2D"]
    adapted = copy.deepcopy(embedding)
    adapted.position_embeddings = PlusOne(adapted.position_embeddings)
    torch.testing.assert_close(adapted(tokens, positions), embedding(tokens, positions) + 1)


def test_hooks_of_every_part_of_a_block_run():
    block, seen = GLMBlock(12, 3, 20), set()
    parts = {name for name, part in block.named_modules() if isinstance(part, nn.Linear | nn.LayerNorm)}
    for name in parts:
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    plain, x = GLMBlock(12, 3, 20), torch.randn(2, 5, 12)
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x, 2), plain(x, 2))
    assert seen == parts


@pytest.mark.parametrize("name", ["Embedding2D", "GLMBlock"])
def test_a_forward_that_a_part_was_given_is_called(monkeypatch, name):
    """As accelerate does, to bring weights to where they are needed."""
    monkeypatch.setattr("glm_ext.nn.FUSED_LINEAR_WEIGHT", 0)
    layer, arguments = layers("auto")[name]
    expected, called = layer(*arguments), set()
    kinds = nn.Linear, nn.LayerNorm, nn.Embedding
    parts = {name: part for name, part in layer.named_modules() if isinstance(part, kinds)}
    for name, part in parts.items():
        part.forward = functools.partial(lambda name, own, x: called.add(name) or own(x), name, part.forward)
    torch.testing.assert_close(layer(*arguments), expected)
    assert called == set(parts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}],
    ids=str,
)
def test_a_table_with_options_is_torchs(backend, options):
    """In values, in gradients, and in what becomes of the table."""
    embedding, (tokens, positions) = layers(backend)["Embedding2D"]
    ours = nn.Embedding.from_pretrained(torch.randn(7, 12), freeze=False, **options)
    theirs, tokens = copy.deepcopy(ours), tokens[:, [0, 1, 1]]
    weights, results = torch.randn(1, 3, 12), []
    for table in (ours, nn.Sequential(theirs)):
        embedding.word_embeddings = table
        results.append(embedding(tokens, positions))
        (results[-1] * weights).sum().backward()
    torch.testing.assert_close(*results)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.grad.is_sparse == theirs.weight.grad.is_sparse
    torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad.to_dense())


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(12, bias=False), nn.LayerNorm(12, elementwise_affine=False), nn.LayerNorm((5, 12))],
    ids=repr,
)
def test_a_norm_with_options_is_torchs(norm):
    block, x = GLMBlock(12, 3, 20), torch.randn(2, 5, 12)
    block.post_attention_layernorm = norm
    middle = x + block.attention(block.input_layernorm(x), 2)
    torch.testing.assert_close(block(x, 2), middle + block.mlp(norm(middle)))


def test_a_pruned_part_follows_its_weights():
    mlp, x = GeluMLP(12, 20), torch.randn(2, 12)
    prune.l1_unstructured(mlp.dense_h_to_4h, "weight", 0.5)
    with torch.no_grad():
        mlp.dense_h_to_4h.weight_orig.zero_()
    torch.testing.assert_close(mlp(x), mlp(torch.zeros_like(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SpanAttention", "GeluMLP", "GLMBlock"])
def test_quantized_layers_run(name):
    layer, arguments = layers("auto")[name]
    quantized = torch.ao.quantization.quantize_dynamic(layer.eval(), {nn.Linear})
    torch.testing.assert_close(quantized(*arguments), layer(*arguments), atol=0.03, rtol=0)


def test_a_layer_computes_where_its_input_is():
    """Also where its parts have no parameters any more, as quantized ones."""
    mlp = GeluMLP(12, 20)
    mlp.dense_h_to_4h = mlp.dense_4h_to_h = nn.Identity()
    with FakeTensorMode():
        places = {device: mlp.ops(torch.empty(2, 12, device=device)) for device in ("cpu", "cuda")}
    assert places == {"cpu": ops, "cuda": ops.auto}


@pytest.mark.parametrize("large", [0, 10**9])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_of_a_projection_run_for_either_product(monkeypatch, register, large):
    monkeypatch.setattr("glm_ext.nn.FUSED_LINEAR_WEIGHT", large)
    attention, calls = SpanAttention(12, 3), []
    getattr(attention.dense, register)(lambda *arguments: calls.append(1))
    attention(torch.randn(1, 4, 12), 2).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize(("device", "expected"), [("cpu", "packed"), ("cuda", "torch's")])
def test_on_a_gpu_a_projection_is_torchs(monkeypatch, device, expected):
    """The packed product has no CUDA kernel."""
    layer = SpanAttention(12, 3, backend="fused")
    monkeypatch.setattr(ops, "linear", lambda x, weight, bias: "packed")
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: "torch's")
    monkeypatch.setattr("glm_ext.nn.FUSED_LINEAR_WEIGHT", 0)
    with FakeTensorMode():
        x = torch.empty(1, 4, 12, device=device)
    assert layer.linear(x, layer.dense) == expected


@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [
        (torch.float32, None, "torch's"),
        (torch.float32, torch.bfloat16, "packed"),
        (torch.float64, torch.bfloat16, "torch's"),
        (torch.bfloat16, None, "packed"),
        (torch.float16, None, "packed"),
    ],
    ids=str,
)
def test_small_weights_are_packed_in_16_bits(monkeypatch, dtype, autocast, expected):
    layer = SpanAttention(12, 3, dtype=dtype)
    monkeypatch.setattr(ops, "linear", lambda x, weight, bias: "packed")
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: "torch's")
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        assert layer.linear(torch.randn(1, 4, 12, dtype=dtype), layer.dense) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_with_a_cache_continues_the_sequence(backend):
    attention = SpanAttention(12, 3, backend=backend)
    x, start = torch.randn(2, 7, 12), torch.tensor([0, 2])
    whole = attention(x, 3, start=start)
    cache = KVCache.allocate(2, 3, capacity=8, head_dim=4)
    with torch.no_grad():
        steps = [attention(part, 3, start=start, cache=cache) for part in x.split([4, 2, 1], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    with pytest.raises(ValueError, match="cache: expected room for 9 tokens, got 8"):
        attention(x[:, :2], 3, cache=cache)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
def test_gelu_mlp_is_a_sequential(backend, approximate, recompute):
    mlp = GeluMLP(12, 20, approximate=approximate, recompute=recompute, backend=backend)
    plain = nn.Sequential(mlp.dense_h_to_4h, nn.GELU(approximate), mlp.dense_4h_to_h)
    x = torch.randn(3, 12, requires_grad=True)
    ours, theirs = mlp(x), plain(x)
    torch.testing.assert_close(ours, theirs)
    inputs = (x, *mlp.parameters())
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(theirs.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_embedding_adds_three_tables(backend):
    embedding = Embedding2D(7, 4, 12, backend=backend)
    tokens, positions = torch.tensor([[0, 6, 3]]), torch.tensor([[[0, 1, 1], [0, 0, 2]]])
    expected = (
        embedding.word_embeddings(tokens)
        + embedding.position_embeddings(positions[:, 0])
        + embedding.block_position_embeddings(positions[:, 1])
    )
    torch.testing.assert_close(embedding(tokens, positions), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_is_pre_ln(backend):
    block = GLMBlock(12, 3, 20, layer_norm_eps=1e-3, backend=backend)
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 12)
    middle = x + block.attention(block.input_layernorm(x), 2)
    expected = middle + block.mlp(block.post_attention_layernorm(middle))
    torch.testing.assert_close(block(x, 2), expected)
    pending, residual = block(x, 2, residual=torch.ones_like(x))
    torch.testing.assert_close(residual + pending, block(x + 1.0, 2))
    with pytest.raises(ValueError, match="x: expected a tensor"):
        block(None, 2)


@pytest.mark.parametrize("name", ["SpanAttention", "Embedding2D", "GLMBlock"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_acts_in_training_only_and_follows_the_seed(name, backend):
    layer, inputs = layers(backend, dropout=0.5)[name]
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(layer(*inputs))
    assert torch.equal(*results)
    assert not torch.equal(results[0], layer(*inputs))
    layer.eval()
    assert torch.equal(layer(*inputs), layer(*inputs))


def test_block_drops_both_sublayers():
    block = GLMBlock(12, 3, 20, dropout=0.9)
    nn.init.zeros_(block.attention.dense.weight)
    nn.init.ones_(block.attention.dense.bias)
    nn.init.zeros_(block.mlp.dense_4h_to_h.weight)
    nn.init.constant_(block.mlp.dense_4h_to_h.bias, 3.0)
    added = block(torch.zeros(1, 64, 12), 0)
    assert {round(value) for value in added.flatten().tolist()} == {0, 10, 30, 40}


@pytest.mark.parametrize("name", layers())
def test_layers_copy_move_and_print(name):
    layer, inputs = layers()[name]
    torch.testing.assert_close(copy.deepcopy(layer)(*inputs), layer(*inputs))
    assert "backend='eager'" in repr(layer)
    double = copy.deepcopy(layer).double()
    wide = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    torch.testing.assert_close(double(*wide).float(), layer(*inputs), rtol=1e-4, atol=1e-5)


def test_factory_arguments_reach_every_parameter():
    kwargs = {"device": "meta", "dtype": torch.bfloat16}
    built = [
        SpanAttention(12, 3, **kwargs),
        Embedding2D(7, 4, 12, **kwargs),
        GeluMLP(12, 20, **kwargs),
        GLMBlock(12, 3, 20, **kwargs),
    ]
    for layer in built:
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


def test_bad_arguments():
    with pytest.raises(ValueError, match="embed_dim: expected a multiple of num_heads = 5, got 12"):
        SpanAttention(12, 5)
    with pytest.raises(ValueError, match=r"dropout: expected 0 <= p <= 1, got 1\.5"):
        Embedding2D(7, 4, 12, dropout=1.5)
    with pytest.raises(ValueError, match='backend: expected "auto", "fused" or "eager", got \'fast\''):
        GeluMLP(12, 20, backend="fast")
    with pytest.raises(ValueError, match='approximate: expected "tanh" or "none", got \'erf\''):
        GeluMLP(12, 20, approximate="erf")
    attention = SpanAttention(12, 3)
    with pytest.raises(ValueError, match=r"x: expected \[B, S, E\], got \[5, 12\]"):
        attention(torch.randn(5, 12), 2)
    for x, seq_len in ((torch.randn(2, 5, 12), None), (torch.randn(1, 5, 12), 3)):
        with pytest.raises(ValueError, match=r"cu_seqlens: expected x \[1, N, E\], and no seq_len"):
            attention(x, 1, seq_len, cu_seqlens=torch.tensor([0, 5]))
    assert ops_for("eager") is reference


def test_block_ends_with_torch_dropout_of_the_last_sum():
    block = GLMBlock(12, 3, 20, dropout=0.5)
    x = torch.randn(1, 4, 12)
    torch.manual_seed(1)
    whole = block(x, 2)
    torch.manual_seed(1)
    pending, residual = block(None, 2, residual=x)
    torch.testing.assert_close(whole, residual + F.dropout(pending, 0.5))
