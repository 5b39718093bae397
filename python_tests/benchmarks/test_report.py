"""Tables say what was measured: written out by hand for one made-up measurement."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks import experiments, report


@pytest.fixture
def measured():
    def times(median):
        return {"median": median, "p20": 0.9 * median, "p80": 1.25 * median, "rounds": 9}

    conditions = {
        "cpu": "Abacus",
        "isa": "beads",
        "threads": 1,
        "cores": 2,
        "torch": "2.11",
        "compiler": "GNU 12",
    }
    conditions |= {"allocator": "glibc", "date": "2026-01-02", "commit": "abc", "load": 0.1, "suite": "ops"}
    return {
        "conditions": conditions,
        "cases": [
            {
                "op": "span_attention",
                "name": "fwd S=8",
                "shape": {},
                "flops": 3e9,
                "bytes": 0.0,
                "peak_gflops": 100.0,
                "peers": {"glm_ext": times(0.04), "SDPA": times(0.1)},
            },
            {
                "op": "embedding_2d",
                "name": "fwd+bwd N=8",
                "shape": {},
                "flops": 0.0,
                "bytes": 2e6,
                "peak_gflops": 100.0,
                "peers": {"glm_ext": times(0.001), "eager": times(0.0005), "compiled": times(0.003)},
            },
        ],
    }


def test_a_row_states_time_share_of_peak_or_bandwidth_and_the_ratio_to_each_peer(measured):
    lines = report.table(measured).splitlines()
    assert lines[2] == (
        "| `span_attention` | fwd S=8 | 40 ms (36-50) | 75 GFLOP/s, 75% of peak | SDPA 2.50x |"
    )
    assert lines[3] == (
        "| `embedding_2d` | fwd+bwd N=8 | 1 ms (0.9-1.25) | 2.0 GB/s | eager 0.50x, compiled 3.00x |"
    )
    assert "Abacus, beads, 1 thread of 2 cores" in lines[5] and "commit abc" in lines[5]


def test_the_loader_has_a_row_an_objective_and_form_and_a_column_a_length(measured):
    cells = [
        {"objective": "token", "packed": packed, "length": length, "speed": speed}
        for packed, length, speed in [
            (False, 256, 2_000_000),
            (False, 128, 1_004_000),
            (True, 128, 9e5),
            (True, 256, 1e6),
        ]
    ]
    lines = report.loader_table({"conditions": measured["conditions"], "loader": cells}).splitlines()
    assert lines[0] == "| objective | batches | 128 tokens | 256 tokens |"
    assert lines[2:4] == ["| token | padded | 1.00 | 2.00 |", "| token | packed | 0.90 | 1.00 |"]


def test_only_what_stands_between_the_comments_is_rewritten(measured, monkeypatch):
    monkeypatch.setattr(report, "read", lambda name: {"some-file": measured}[name])
    page = "before\n<!-- table some-file -->\nold\n<!-- end -->\nafter\n"
    new = report.rewritten(page)
    assert new.startswith("before\n<!-- table some-file -->\n| op |") and new.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in new
    assert report.rewritten(new) == new


def test_curves_stand_side_by_side_by_objective(measured):
    def run(losses):
        looks = [
            {"step": 10 * (i + 1), "held_out_loss": loss, "held_out_loss/token": loss - 1}
            for i, loss in enumerate(losses)
        ]
        return {
            "steps": 20,
            "tokens": 3_000_000,
            "seconds": 120,
            "tokens_per_second": 25_000.0,
            "precision": "bf16",
            "losses": [loss + 1 for loss in losses],
            "held_out": looks,
        }

    curves = {
        "conditions": measured["conditions"],
        "runs": {"fused": run([5.0, 4.0]), "eager": run([5.5, 4.5])},
    }
    lines = experiments.curves_table(curves).splitlines()
    assert lines[0] == "| step | held out, fused | held out, eager | token, fused | token, eager |"
    assert lines[2:4] == ["| 10 | 5.000 | 5.500 | 4.000 | 4.500 |", "| 20 | 4.000 | 4.500 | 3.000 | 3.500 |"]
    assert "fused: 3.0 M tokens in 20 steps, 2 min of training, 25,000 tokens/s" in lines[5]
    assert "The losses of a training step differ by 0.5 at most." in lines


def test_few_shot_results_are_a_mean_and_a_deviation(measured):
    rows = [{"form": "cloze", "per_class": 16, "seed": i, "accuracy": 50.0 + 10 * i} for i in (1, 2, 3)]
    rows += [{"form": "head", "per_class": 16, "seed": 1, "accuracy": 55.0}]
    rows += [{"form": "cloze", "per_class": 32, "seed": 1, "accuracy": 90.0}]  # the head has not come so far
    lines = experiments.few_shot_table({"conditions": measured["conditions"], "few_shot": rows}).splitlines()
    assert lines[0] == "| of each label | cloze | head |" and lines[2] == "| 16 | 70.0 ± 10.0 | 55.0 ± 0.0 |"
    assert lines[3] == "| 32 | 90.0 ± 0.0 |  |"


def test_as_many_examples_are_drawn_of_each_label():
    few_shot = pytest.importorskip("benchmarks.few_shot")
    lines = [f'{{"text": "{i}", "label": {int(i % 3 == 0)}}}' for i in range(30)]
    drawn = few_shot.draw(lines, per_class=5, seed=1)
    assert len(set(drawn)) == 10 and sum('"label": 1' in line for line in drawn) == 5
    assert drawn == few_shot.draw(lines, per_class=5, seed=1) != few_shot.draw(lines, per_class=5, seed=2)


def test_registers_are_the_fewest_and_the_most_of_a_kernels_instances():
    def kernel(name, arch, registers, warps):
        return {"file": "rows.cu", "name": name, "arch": arch, "registers": registers, "warps": warps}

    kernels = [
        kernel("f<float>", "80", 32, 64),
        kernel("f<bf16>", "80", 40, 48),
        kernel("f<float>", "90a", 30, 64),
    ]
    lines = report.kernels_table({"conditions": {"nvcc": "13.0"}, "kernels": kernels}).splitlines()
    assert lines[0] == "| file | kernel | instances | sm_80 | sm_90a |"
    assert lines[2] == "| `rows.cu` | `f` | 2 | 32-40 (48-64) | 30 (64) |"


def test_the_routes_of_an_mlp() -> None:
    ms = {"own": 1.5, "library": 0.754, "eager": 0.5}
    sizes = [
        {"dtype": "bfloat16", "width": width, "rows": rows, "fwd+bwd": ms}
        for width in (8, 16)
        for rows in (1, 2)
    ]
    conditions = {
        "gpu": "some card",
        "torch": "2.11",
        "date": "2026-01-02",
        "commit": "abc",
        "queue": "filled",
    }
    lines = report.routes_table({"conditions": conditions, "routes": sizes}).splitlines()
    assert lines[:4] == [
        "| dtype | rows | E = 8, F = 32 | E = 16, F = 64 |",
        "| --- | --- | --- | --- |",
        "| bfloat16 | 1 | 1.50 / 0.75 / 0.50 | 1.50 / 0.75 / 0.50 |",
        "| bfloat16 | 2 | 1.50 / 0.75 / 0.50 | 1.50 / 0.75 / 0.50 |",
    ]
    assert lines[-1].startswith("*some card, torch 2.11, 2026-01-02, commit abc.")
    assert lines[-1].endswith("each run queued before it begins.*")


def test_times_of_a_device() -> None:
    conditions = {
        "gpu": "some card",
        "torch": "2.11",
        "date": "2026-01-02",
        "commit": "abc",
        "peak_tflops": 800,
        "copy_gbs": 4000,
    }
    cases = [
        {"name": "a", "flops": 2e11, "kernels_ms": 0.5, "ms": 0.6, "peers": {"one": 1.0, "two": 2.0}},
        {"name": "b", "bytes": 1e8, "kernels_ms": 0.1, "ms": 0.2, "peers": {}},
    ]
    lines = report.device_table({"conditions": conditions, "device": cases}).splitlines()
    assert lines[2] == "| a | 0.500 ms | 400 TFLOP/s, 50% | 0.600 ms | one 1.000 ms, two 2.000 ms |"
    assert lines[3] == "| b | 0.100 ms | 1000 GB/s, 25% | 0.200 ms |  |"
    assert lines[-1].startswith("*some card, torch 2.11, 2026-01-02, commit abc; % of 800 TFLOP/s")
