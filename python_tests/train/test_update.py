import pytest
import torch

from glm_ext.train.config import OptimConfig
from glm_ext.train.update import Updater


def make(model, precision="float32", **settings):
    config = OptimConfig(lr=0.1, warmup=0.0, weight_decay=0.0, **settings)
    return Updater(model, config, steps=10, precision=precision, max_skipped=3)


def grow(updater, model, factor=0.125, step=0):
    with updater.autocast():
        loss = model(torch.ones(1, 2)).float().sum() * factor  # as losses are
    return updater.update(step, updater.backward(loss))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_have_the_precision_and_parameters_stay_float32(precision, dtype):
    model = torch.nn.Linear(2, 3)
    seen = []
    model.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    updater = make(model, precision)
    assert grow(updater, model).skipped is None
    assert seen == [dtype]
    assert {t.dtype for t in [*model.parameters(), *updater.tensors().values()]} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_gradient_norm_is_that_of_the_unscaled_gradient(precision):
    model = torch.nn.Linear(2, 3)  # sum / 8 has the derivative 1/8 by each of its 9 numbers
    assert grow(make(model, precision), model).grad_norm == pytest.approx(3 / 8)


def test_an_overflow_halves_the_scale_and_moves_nothing():
    model = torch.nn.Linear(2, 3)
    updater = make(model, "fp16")
    before = model.weight.detach().clone()
    done = grow(updater, model, 1.0)  # 65536 is beyond float16
    assert done.skipped.endswith("gradient norm inf, loss scale 65536")
    assert torch.equal(model.weight, before) and updater.skipped_in_a_row == 1
    assert updater.state()["scaler"]["scale"] == 32768.0
    assert grow(updater, model).skipped is None
    assert not torch.equal(model.weight, before) and updater.skipped_in_a_row == 0


def test_the_loss_scale_survives_a_resume():
    model = torch.nn.Linear(2, 3)
    updater = make(model, "fp16")
    grow(updater, model, 1.0)
    grow(updater, model)
    other = make(model, "fp16")
    other.load(updater.tensors(), updater.state())
    assert other.state() == updater.state()
    assert (other.state()["scaler"]["scale"], other.state()["scaler"]["_growth_tracker"]) == (32768.0, 1)
    assert "scaler" not in make(model).state()


def test_the_schedule_of_the_settings_is_followed():
    model = torch.nn.Linear(2, 3)
    updater = make(model, schedule="linear", min_lr_ratio=0.0)
    assert [grow(updater, model, step=step).lr for step in (0, 5, 10)] == pytest.approx([0.1, 0.05, 0.0])
