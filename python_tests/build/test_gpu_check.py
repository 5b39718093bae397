"""tools/gpu_check.py, as far as it shows without a GPU."""

from __future__ import annotations

import subprocess
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from .load import tool


@pytest.fixture
def check() -> ModuleType:
    return tool("gpu_check")


def test_without_a_gpu_it_says_so_in_one_line_and_fails(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 1
    assert capsys.readouterr().out == (
        "gpu: expected a CUDA device that torch can use, found none; nothing was run\n"
    )


def test_an_old_gpu_is_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert check.missing() == "expected a GPU of compute capability 8.0 or newer, found 7.5"


@pytest.mark.parametrize("sanitizer", [True, False])
def test_the_steps(
    check: ModuleType,
    sanitizer: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "find", lambda tool: f"/bin/{tool}" if sanitizer else None)
    steps = check.steps("card")
    names = [name for name, _, _ in steps]
    checks = ["memcheck", "racecheck"] if sanitizer else []
    assert names == ["build", "tests", *checks, "benchmarks"]
    assert ("no compute-sanitizer" in capsys.readouterr().out) == (not sanitizer)
    assert str(steps[-1][2][-1]).endswith("benchmarks/results/gpu-card.json")


@pytest.mark.parametrize(("cpus", "given"), [(16, "8"), (4, "4"), (None, "1")])
def test_the_tests_run_in_as_many_processes_as_there_are_cpus(
    check: ModuleType, cpus: int | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.os, "cpu_count", lambda: cpus)
    command = next(command for what, _, command in check.steps("card") if what == "tests")
    assert command[command.index("-n") + 1] == given


def test_without_xdist_they_run_in_one(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = next(command for what, _, command in check.steps("card") if what == "tests")
    assert "-n" not in command
    assert "gpu: no pytest-xdist: the tests run one after the other" in capsys.readouterr().out


@pytest.fixture
def run(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs main() with the outcome of each step: an exit code, or None where it takes too long."""

    def main(**outcomes: int | None) -> tuple[int, list[str], dict[str, float]]:
        ran: list[str] = []
        limits: dict[str, float] = {}

        def step(command: list[str], *, timeout: float, **options: Any) -> SimpleNamespace:
            ran.append(command[0])
            limits[command[0]] = timeout
            code = outcomes[command[0]]
            if code is None:
                raise subprocess.TimeoutExpired(command, timeout)
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(check, "missing", lambda: None)
        monkeypatch.setattr(check, "steps", lambda name: [(what, 60, [what]) for what in outcomes])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
        monkeypatch.setattr(subprocess, "run", step)
        return check.main(), ran, limits

    return main


def test_a_step_that_fails_does_not_keep_the_others_from_running(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, ran, _ = run(build=0, tests=1, memcheck=None, benchmarks=0)
    assert (code, ran) == (1, ["build", "tests", "memcheck", "benchmarks"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("gpu: tests: FAILED (1)")
    assert lines[2].startswith("gpu: memcheck: FAILED: longer than 60 s")
    assert lines[-1] == "gpu: tests, memcheck failed"


@pytest.mark.parametrize("outcome", [1, None])
def test_without_a_build_nothing_else_runs(run: Any, outcome: int | None) -> None:
    code, ran, _ = run(build=outcome, tests=0)
    assert (code, ran) == (1, ["build"])


def test_all_steps_together_keep_to_the_time(
    check: ModuleType, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock on which each look costs 15 seconds: two a step."""
    now = iter(range(0, 10_000, 15))
    monkeypatch.setattr(check, "TOTAL_SECONDS", 100)
    monkeypatch.setattr(check.time, "monotonic", lambda: float(next(now)))
    code, _, limits = run(build=0, tests=0, memcheck=0, benchmarks=0)
    assert code == 0
    assert limits == {"build": 60, "tests": 40, "memcheck": 1, "benchmarks": 1}
    assert "all passed" in capsys.readouterr().out
