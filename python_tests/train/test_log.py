import io
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glm_ext.train.log import RunLog, StepRecord, read_metrics
from glm_ext.train.plot import plot_loss


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(**values):
    usual = {"lr": 0.1, "grad_norm": 2.0, "tokens_per_second": 1234, "data_wait": 0.25, "peak_memory": 4096}
    return StepRecord(**{**usual, "mfu": 0.41, "tokens": 10, **values})


def fill(log, steps):
    for step in steps:
        log.step(step, record(loss=1 / step, tokens=10 * step))


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    printed = io.StringIO()
    with RunLog(tmp_path, steps=25, every=10, stream=printed) as log:
        fill(log, range(1, 26))
        log.evaluation(25, 0.5)
    lines = printed.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 10/25", "step 20/25", "step 25/25", "step 25/25"]
    assert "loss 0.1000" in lines[0] and "1,234 tokens/s (41% of peak)" in lines[0]
    assert lines[0].endswith("left")
    assert lines[-1] == "step 25/25  held-out loss 0.5000"
    assert "\x1b" not in printed.getvalue() and "\r" not in printed.getvalue()


def test_progress_bar_on_a_terminal(tmp_path, capsys):
    with RunLog(tmp_path, steps=3, stream=Terminal()) as log:
        assert log.bar is not None
        fill(log, [1, 2])
        log.evaluation(2, 0.75, {"token": 0.5, "document": 1.0})
        log.skipped(3, "loss nan")
        fill(log, [3])
    printed = capsys.readouterr().out
    assert "step 3/3  skipped: loss nan" in printed
    assert "step 2/3  held-out loss 0.7500  token 0.5000  document 1.0000" in printed
    assert (
        "3/3" in printed and "loss 0.333" in printed and "held-out 0.750" in printed and "tokens/s" in printed
    )


def test_metrics_are_json_lines(tmp_path):
    with RunLog(tmp_path, steps=3, stream=io.StringIO()) as log:
        log.unigram(6.5)
        fill(log, [1])
        log.skipped(2, "loss nan")
        log.step(3, record(loss=0.5, grad_norm=float("inf")))
        log.evaluation(3, 4.5)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    usual = {"lr": 0.1, "tokens_per_second": 1234, "tokens": 10, "data_wait": 0.25, "peak_memory": 4096}
    usual["mfu"] = 0.41
    assert rows == [
        {"step": 0, "unigram_loss": 6.5},
        {"step": 1, **usual, "loss": 1.0, "grad_norm": 2.0},
        {"step": 2, "skipped": "loss nan"},
        {"step": 3, **usual, "loss": 0.5, "grad_norm": None},
        {"step": 3, "held_out_loss": 4.5},
    ]


def test_tensorboard_has_the_same_numbers(tmp_path):
    with RunLog(tmp_path, steps=3, stream=io.StringIO()) as log:
        fill(log, [1, 2])
        log.evaluation(2, 4.5)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("held_out_loss")] == [(2, 4.5)]


def test_the_loss_of_each_objective_is_recorded(tmp_path):
    printed = io.StringIO()
    with RunLog(tmp_path, steps=3, stream=printed) as log:
        log.evaluation(3, 4.5, {"token": 4.25, "document": 5.0})
    assert read_metrics(tmp_path) == [
        {"step": 3, "held_out_loss": 4.5, "held_out_loss/token": 4.25, "held_out_loss/document": 5.0}
    ]
    assert printed.getvalue() == "step 3/3  held-out loss 4.5000  token 4.2500  document 5.0000\n"


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    with RunLog(tmp_path, steps=3, start=1, stream=io.StringIO()) as log:
        fill(log, [2])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_plot_is_a_picture(tmp_path, rows):
    with RunLog(tmp_path, steps=40, stream=io.StringIO()) as log:
        fill(log, range(1, rows + 1))
        if rows:
            log.unigram(0.7)
            log.evaluation(rows, 0.5)
    assert plot_loss(tmp_path).read_bytes().startswith(b"\x89PNG")
