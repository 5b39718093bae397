import torch

from glm_ext.train.config import OptimConfig
from glm_ext.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors


def test_vectors_do_not_decay_and_tables_do(toy):
    model = toy()
    decayed, kept = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {names[p] for p in decayed["params"]} == {"embedding.weight", "linear.weight"}
    assert {names[p] for p in kept["params"]} == {"linear.bias", "norm.weight", "norm.bias"}


def test_frozen_parameters_are_left_out(toy):
    model = toy()
    model.embedding.weight.requires_grad_(False)
    groups = build_optimizer(model, OptimConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == 4


def test_matches_adamw_written_out():
    """Two steps against algorithm 2 of the AdamW paper in float64."""
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    model = torch.nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optimizer = build_optimizer(model, config)
    expected, m, v = model.weight.detach().clone(), 0.0, 0.0
    for t in (1, 2):
        grad = torch.arange(6.0, dtype=torch.float64).view(2, 3) - t
        model.weight.grad = grad.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        step = (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-3)
        expected = expected - 0.1 * 0.5 * expected - 0.1 * step
    torch.testing.assert_close(model.weight.detach(), expected)


def test_state_survives_the_way_through_named_tensors(toy):
    model = toy()
    optimizer = build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = optimizer_tensors(model, optimizer)
    assert {name for name in tensors if name.startswith("norm.bias")} == {
        "norm.bias.step",
        "norm.bias.exp_avg",
        "norm.bias.exp_avg_sq",
    }

    other = build_optimizer(model, OptimConfig())
    load_optimizer_tensors(model, other, tensors)
    restored = optimizer_tensors(model, other)
    assert restored.keys() == tensors.keys()
    for name in tensors:
        assert torch.equal(restored[name], tensors[name])
        assert restored[name].data_ptr() != tensors[name].data_ptr()
