"""Tables say what was measured: written out by hand for one made-up measurement."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks import report


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


def test_only_what_stands_between_the_comments_is_rewritten(measured, monkeypatch):
    monkeypatch.setattr(report, "read", lambda name: {"some-file": measured}[name])
    page = "before\n<!-- table some-file -->\nold\n<!-- end -->\nafter\n"
    new = report.rewritten(page)
    assert new.startswith("before\n<!-- table some-file -->\n| op |") and new.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in new
    assert report.rewritten(new) == new
