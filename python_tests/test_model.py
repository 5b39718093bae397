"""GLM against a run of the public implementation (golden/reference_tiny.npz, float32, no dropout)."""

import copy
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from glm_ext import GLM, Batch, GLMConfig, PackedBatch, ops

BACKENDS = ["eager", "auto"]
GOLDEN = {
    name: torch.from_numpy(array)
    for name, array in np.load(Path(__file__).parent / "golden" / "reference_tiny.npz").items()
}
PARAMETERS = {
    name.removeprefix("param/"): value for name, value in GOLDEN.items() if name.startswith("param/")
}


def golden_model(backend="auto", dtype=torch.float32):
    layers, width, heads, vocab_size, max_positions = GOLDEN["cfg"].tolist()
    config = GLMConfig(
        vocab_size=vocab_size,
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        max_positions=max_positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    model = GLM(config, backend=backend)
    model.load_state_dict(PARAMETERS)
    return model.to(dtype)


def golden_batch():
    return Batch(
        tokens=GOLDEN["input_ids"],
        positions=GOLDEN["position_ids"],
        targets=GOLDEN["targets"],
        loss_mask=GOLDEN["loss_mask"],
        prefix_len=GOLDEN["sep"],
    )


def small_model(**overrides):
    sizes = {"vocab_size": 50, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
    torch.manual_seed(0)
    return GLM(GLMConfig(**{**sizes, **overrides}))


def inputs(B=2, S=6, prefix=4):
    """Random tokens, Part A of `prefix` tokens and one span of the rest for the blank at place 1."""
    span = S - prefix
    places = torch.tensor([[*range(prefix), *[1] * span], [*[0] * prefix, *range(1, span + 1)]])
    return torch.randint(50, (B, S)), places.expand(B, 2, S)


# ----------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_and_loss_are_those_of_the_public_implementation(backend):
    model, batch = golden_model(backend), golden_batch()
    logits = model(batch.tokens, batch.positions, batch.prefix_len)
    torch.testing.assert_close(logits, GOLDEN["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.loss(batch), GOLDEN["loss"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_gradient_is_that_of_the_public_implementation(backend):
    model = golden_model(backend)
    model.loss(golden_batch()).backward()
    for name, parameter in model.named_parameters():
        expected = GOLDEN[f"grad/{name}"]
        error = (parameter.grad - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_with_a_cache_is_that_of_the_public_implementation(backend):
    model, prefix = golden_model(backend), int(GOLDEN["decode_prefix"])
    tokens, positions = GOLDEN["input_ids"][:1], GOLDEN["decode_position_ids"]
    cache = model.new_cache(batch_size=1, capacity=tokens.shape[1])
    steps = [prefix] + [1] * (tokens.shape[1] - prefix)
    with torch.no_grad():
        logits = [
            model(part, places, prefix, cache=cache)
            for part, places in zip(tokens.split(steps, dim=1), positions.split(steps, dim=2), strict=True)
        ]
    torch.testing.assert_close(torch.cat(logits, dim=1), GOLDEN["decode_logits"], rtol=0, atol=1e-4)


def error_against_float64(backend, dtype):
    """Largest errors of the logits, the loss and the gradients, over the largest entry of the truth."""
    batch, results = golden_batch(), []
    for model in (golden_model("eager", dtype).double(), golden_model(backend, dtype)):
        loss = model.loss(batch)
        loss.backward()
        with torch.no_grad():
            logits = model(batch.tokens, batch.positions, batch.prefix_len)
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([logits, loss.detach(), *gradients])
    return [
        float((ours - truth).abs().max() / truth.abs().max()) for truth, ours in zip(*results, strict=True)
    ]


def test_bfloat16_is_at_least_as_right_as_plain_torch():
    eps = torch.finfo(torch.bfloat16).eps
    errors, plain = (error_against_float64(backend, torch.bfloat16) for backend in ("auto", "eager"))
    factors = [2.0, 2.0] + [3.0] * (len(errors) - 2)  # forward, backward
    for error, peer, factor in zip(errors, plain, factors, strict=True):
        assert error <= factor * peer + 2 * eps
    assert max(errors) < 16 * eps


# ---------------------------------------------------------------------------------------- lengths and padding


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_padding_changes_nothing(backend):
    model = small_model(hidden_dropout=0.0, attention_dropout=0.0)
    tokens, positions = inputs(B=1)
    alone = model(tokens, positions, 4)
    padded, places = F.pad(tokens, (0, 3), value=7), F.pad(positions, (0, 3), value=9)
    torch.testing.assert_close(model(padded, places, torch.tensor([4]), torch.tensor([6]))[:, :6], alone)


def test_left_padding_changes_nothing():
    model = small_model().eval()
    tokens, positions = inputs(B=1)
    alone = model(tokens, positions, 4)
    padded, places = F.pad(tokens, (3, 0), value=7), F.pad(positions, (3, 0), value=9)
    torch.testing.assert_close(model(padded, places, 4 + 3, start=torch.tensor([3]))[:, 3:], alone)


def test_part_a_is_blind_to_part_b_and_part_b_to_its_future():
    model = small_model().eval()
    tokens, positions = inputs(S=8)
    before = model(tokens, positions, 4)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 50
    after = model(changed, positions, 4)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6]) and not torch.allclose(before[:, 7], after[:, 7])


def test_the_loss_makes_one_gradient_of_the_vocabulary_matrix(monkeypatch):
    model, batch = golden_model(), golden_batch()
    module = sys.modules["glm_ext.ops.embedding_2d"]
    made, gradient = [], module._gradient
    monkeypatch.setattr(module, "_gradient", lambda n, *rest: (made.append(n), gradient(n, *rest))[1])
    for _ in range(2):  # the second is added to the first
        model.loss(batch).backward()
    rows = model.config.max_positions + 1
    assert made == [rows] * 4
    weight = model.word_embeddings.weight
    torch.testing.assert_close(weight.grad, 2 * GOLDEN["grad/word_embeddings.weight"], rtol=1e-4, atol=1e-6)


class Called(nn.Module):
    """A table that no kernel looks into."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    weight = property(lambda self: self.table.weight)

    def forward(self, ids):
        return self.table(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": int(GOLDEN["input_ids"][0, 0])},
        {"max_norm": 0.1},
        {"sparse": True},
        {"scale_grad_by_freq": True},
    ],
    ids=str,
)
def test_options_of_the_vocabulary_matrix_count_for_its_first_use_alone(options):
    model, batch, tables, losses = golden_model(), golden_batch(), [], []
    for wrap in (lambda table: table, Called):
        weight = GOLDEN["param/word_embeddings.weight"].clone()
        tables.append(nn.Embedding.from_pretrained(weight, freeze=False, **options))
        model.word_embeddings = wrap(tables[-1])
        losses.append(model.loss(batch))
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    ours, theirs = (table.weight for table in tables)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_loss_weighs_targets_by_the_mask():
    model = small_model().eval()
    tokens, positions = inputs()
    loss_mask = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]])
    targets = torch.randint(50, (2, 6)).where(loss_mask != 0, -100)  # no target where the mask is 0
    batch = Batch(
        tokens=tokens,
        positions=positions,
        targets=targets,
        loss_mask=loss_mask,
        prefix_len=torch.tensor([4, 4]),
    )
    logits = model(tokens, positions, 4)
    ce = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(2, 6)
    torch.testing.assert_close(model.loss(batch), (ce * loss_mask).sum() / 3.5)


# ---------------------------------------------------------------------------------------------------- packing


def examples_padded_and_packed():
    """Three examples of 9, 5 and 1 + 6 tokens, right-padded, and the same end to end."""
    torch.manual_seed(2)
    lengths, prefixes = [9, 5, 7], [5, 4, 1]
    padded = {
        "tokens": torch.full((3, 9), 7),
        "positions": torch.zeros(3, 2, 9, dtype=torch.int64),
        "targets": torch.full((3, 9), 7),
        "loss_mask": torch.zeros(3, 9),
    }
    packed = {name: [] for name in padded}
    for row, (length, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        tokens, positions = inputs(B=1, S=length, prefix=max(prefix, 2))
        loss_mask = (torch.arange(length) >= prefix) * torch.rand(length)
        values = (tokens[0], positions[0], torch.randint(50, (length,)), loss_mask)
        for name, value in zip(padded, values, strict=True):
            padded[name][row][..., :length] = value
            packed[name].append(value)
    prefix_len = torch.tensor(prefixes)
    return (
        Batch(**padded, prefix_len=prefix_len, seq_len=torch.tensor(lengths)),
        PackedBatch(
            **{name: torch.cat(parts, dim=-1) for name, parts in packed.items()},
            prefix_len=prefix_len,
            cu_seqlens=torch.tensor([0, 9, 14, 21]),
        ),
    )


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
def test_a_packed_batch_has_the_loss_and_the_gradients_of_the_padded_one(backend, attention_dropout):
    """Attention drops the same elements; dropout of hidden states counts other rows, so it is left out."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
    config = GLMConfig(**sizes, hidden_dropout=0.0, attention_dropout=attention_dropout)
    model = GLM(config, backend=backend).double()
    results = []
    for batch in examples_padded_and_packed():
        model.zero_grad()
        torch.manual_seed(5)
        loss = model.loss(batch)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_packed_logits_are_those_of_each_example_alone(backend):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
    model = GLM(GLMConfig(**sizes), backend=backend).eval()
    padded, packed = examples_padded_and_packed()
    logits = model(packed.tokens, packed.positions, packed.prefix_len, cu_seqlens=packed.cu_seqlens)
    assert logits.shape == (21, 50)
    for row, (begin, end) in enumerate([(0, 9), (9, 14), (14, 21)]):
        alone = model(
            padded.tokens[row : row + 1, : end - begin],
            padded.positions[row : row + 1, :, : end - begin],
            padded.prefix_len[row : row + 1],
        )
        torch.testing.assert_close(logits[begin:end], alone[0])


def test_a_packed_model_compiles_to_one_graph():
    model, (_, packed) = small_model().eval(), examples_padded_and_packed()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = (packed.tokens, packed.positions, packed.prefix_len)
    torch.testing.assert_close(
        compiled(*arguments, cu_seqlens=packed.cu_seqlens), model(*arguments, cu_seqlens=packed.cu_seqlens)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seq_len": 3}, ValueError, "expected no seq_len, start or cache"),
        ({"tokens": torch.zeros(1, 21, dtype=torch.int64)}, ValueError, r"expected \[N\] and \[2, N\]"),
        (
            {"positions": torch.zeros(2, 20, dtype=torch.int64)},
            ValueError,
            r"positions: expected \[1, 2, 21\]",
        ),
        ({"tokens": torch.full((21,), 50)}, ValueError, "tokens: expected values from 0 to 49"),
        ({"prefix_len": torch.tensor([1, 1])}, ValueError, r"prefix_len: expected an int or \[3\]"),
    ],
)
def test_bad_packed_arguments(change, error, message):
    _, packed = examples_padded_and_packed()
    arguments = {
        "tokens": packed.tokens,
        "positions": packed.positions,
        "prefix_len": packed.prefix_len,
        "cu_seqlens": packed.cu_seqlens,
    }
    with pytest.raises(error, match=message):
        small_model()(**(arguments | change))


# ----------------------------------------------------------------------------------------------- construction


def test_initialisation():
    model = small_model(vocab_size=4000, hidden_size=128, num_layers=8)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0.0), name
        elif "layernorm" in name:
            assert torch.all(parameter == 1.0), name
        else:
            narrow = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if narrow else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.1 * expected, name


def test_dropout_in_training_only():
    model = small_model()
    arguments = (*inputs(), 4)
    assert not torch.equal(model(*arguments), model(*arguments))
    torch.manual_seed(1)
    first = model(*arguments)
    torch.manual_seed(1)
    assert torch.equal(first, model(*arguments))
    model.eval()
    assert torch.equal(model(*arguments), model(*arguments))


def test_model_copies_and_pickles():
    model = small_model().eval()
    arguments = (*inputs(), 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(*arguments), model(*arguments))
    assert f"{model.num_parameters():,} parameters" in repr(model)


def test_materialised_from_meta_it_is_the_same_model():
    config = small_model().config
    model = GLM(config, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    model.reset_parameters()
    assert all(torch.all(parameter.isfinite()) for parameter in model.parameters())
    assert model.word_embeddings.weight.std() > 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(6, dtype=torch.int64)}, ValueError, r"tokens: expected \[B, S\], got \[6\]"),
        ({"tokens": torch.zeros(2, 6)}, TypeError, "tokens: expected int64 or int32, got torch.float32"),
        (
            {"positions": torch.zeros(2, 6, dtype=torch.int64)},
            ValueError,
            r"expected \[2, 2, 6\] .*, got \[2, 6\]",
        ),
        ({"positions": torch.zeros(2, 2, 6)}, TypeError, "positions: expected int64"),
        (
            {"tokens": torch.full((2, 6), 50)},
            ValueError,
            "tokens: expected values from 0 to 49, got 50 to 50",
        ),
        (
            {"tokens": torch.full((2, 6), -1)},
            ValueError,
            "tokens: expected values from 0 to 49, got -1 to -1",
        ),
        (
            {"positions": torch.full((2, 2, 6), 17)},
            ValueError,
            "from 0 to 16, got 17 to 17; shorten the text",
        ),
        ({"prefix_len": torch.tensor([4])}, ValueError, r"prefix_len: expected an int or \[2\].*, got \[1\]"),
        (
            {"prefix_len": torch.tensor([4.0, 4.0])},
            TypeError,
            "prefix_len: expected an int or an integer tensor",
        ),
        (
            {"seq_len": torch.tensor([[4, 4]])},
            ValueError,
            r"seq_len: expected an int or \[2\].*, got \[1, 2\]",
        ),
        ({"start": torch.tensor([True, False])}, TypeError, "start: expected an int or an integer tensor"),
    ],
)
def test_bad_arguments(change, error, message):
    tokens, positions = inputs()
    with pytest.raises(error, match=message):
        small_model()(**{"tokens": tokens, "positions": positions, "prefix_len": 4, **change})


@pytest.mark.parametrize("prefix_len", [4, torch.tensor([4, 3])])
def test_compiles_to_one_graph(prefix_len):
    model = small_model().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = (*inputs(), prefix_len)
    torch.testing.assert_close(compiled(*arguments), model(*arguments))


def padded_call(B, S):
    tokens, positions = inputs(B, S)
    return {
        "tokens": tokens,
        "positions": positions.contiguous(),
        "prefix_len": torch.full((B,), 4),
        "seq_len": torch.full((B,), S - 1),
    }


def packed_call(B, S):
    tokens, positions = inputs(B, S)
    return {
        "tokens": tokens.flatten(),
        "positions": positions.transpose(0, 1).flatten(1),
        "prefix_len": torch.full((B,), 4),
        "cu_seqlens": torch.arange(B + 1) * S,
    }


B, S, N = Dim("B"), Dim("S"), Dim("N")


@pytest.mark.any_isa
@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        (padded_call, {"tokens": {0: B, 1: S}, "positions": {0: B, 2: S}, "seq_len": {0: B}}),
        (packed_call, {"tokens": {0: N}, "positions": {1: N}, "cu_seqlens": {0: B + 1}}),
    ],
)
def test_an_exported_model_serves_other_batches_and_lengths(call, sizes):
    model = small_model().eval()
    sizes["prefix_len"] = {0: B}
    program = torch.export.export(model, (), call(3, 7), dynamic_shapes=sizes, strict=False).module()
    for other in (call(1, 7), call(5, 11)):
        torch.testing.assert_close(program(**other), model(**other))


@pytest.mark.any_isa
@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_where_tensors_have_no_values(backend):
    config = small_model(hidden_dropout=0.0, attention_dropout=0.0).config
    with FakeTensorMode():
        model = GLM(config, backend=backend)
        model(*inputs(), torch.tensor([4, 4])).sum().backward()
        assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    model, (tokens, positions) = GLM(config, backend=backend), inputs()
    graph = make_fx(lambda tokens, positions: model(tokens, positions, 4))(tokens, positions)
    others = (tokens + 1) % 50, positions
    torch.testing.assert_close(graph(*others), model(*others, 4))


def test_empty_batch():
    tokens, positions = inputs(B=0)
    assert small_model()(tokens, positions, 4).shape == (0, 6, 50)


@pytest.mark.parametrize("kind", [torch.nn.Embedding, torch.nn.Linear, torch.nn.LayerNorm])
def test_hooks_of_every_part_of_the_model_run(kind):
    model, seen = small_model().eval(), set()
    names = {name for name, part in model.named_modules() if isinstance(part, kind)}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    tokens, positions = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 2, 4, dtype=torch.int64)
    torch.testing.assert_close(model(tokens, positions, 2), small_model().eval()(tokens, positions, 2))
    assert seen == names


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_logits_are_a_packed_product(monkeypatch, rows):
    model, calls = small_model(), []
    linear = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *arguments: calls.append(1) or linear(*arguments))
    hidden = torch.randn(1, rows, model.config.hidden_size)
    torch.testing.assert_close(model.logits(hidden), F.linear(hidden, model.word_embeddings.weight))
    assert calls == [1]
