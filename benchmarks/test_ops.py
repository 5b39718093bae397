"""`pytest benchmarks --benchmark-only`: every op at named shapes, its peers side by side in one group."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case, Peer, all_cases

CASES = list(all_cases())


@pytest.fixture(scope="module")
def built() -> dict[str, dict[str, Peer]]:
    """The peers of the case at hand only: inputs of a case are dropped when the next one is built."""
    return {}


# Known before inputs are built, so that each peer is a test of its own.
PEERS = {
    "span_attention": ["glm_ext", "SDPA", "FlexAttention, compiled"],
    "gelu_mlp": ["glm_ext", "eager", "torch.compile"],
    "linear": ["glm_ext", "F.linear"],
    "embedding_2d": ["glm_ext", "eager", "torch.compile"],
    "dropout_add_layer_norm": ["glm_ext", "eager", "torch.compile"],
    "linear_cross_entropy": [
        "glm_ext",
        *(f"{how}, {rows}" for how in ("eager", "torch.compile") for rows in ("all rows", "rows gathered")),
        "F.linear_cross_entropy",
    ],
}


@pytest.mark.parametrize(
    ("case", "peer"),
    [pytest.param(case, peer, id=f"{case.id} | {peer}") for case in CASES for peer in PEERS[case.op]],
)
def test_speed(
    case: Case, peer: str, built: dict[str, dict[str, Peer]], benchmark: Any, peak_gflops: float
) -> None:
    if case.id not in built:
        built.clear()
        built[case.id] = case.peers()
        assert built[case.id].keys() <= set(PEERS[case.op])
    if peer not in built[case.id]:
        pytest.skip(f"{peer} cannot do this case here")
    run = built[case.id][peer]
    benchmark.group = case.id
    benchmark.extra_info.update(peer=peer, flops=case.flops, bytes=case.bytes, peak_gflops=peak_gflops)
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
