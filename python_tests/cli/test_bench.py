import json
import subprocess
import sys

import glm_ext
from glm_ext.cli import main


def test_one_case_runs_and_writes_its_figures(tmp_path):
    out = tmp_path / "results" / "found.json"
    command = [sys.executable, "-m", "glm_ext.cli", "bench", "--only", "layer_norm.*N=1024", "--seconds", "0"]
    done = subprocess.run([*command, "--threads", "1", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GB/s" in done.stdout and "eager" in done.stdout
    [case] = json.loads(out.read_text())["cases"]
    assert case["peers"]["glm_ext"]["median"] > 0


def test_without_the_repository_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glm_ext, "__file__", str(tmp_path / "glm_ext" / "__init__.py"))
    assert main(["bench"]) == 2
    assert "clone the repository" in capsys.readouterr().err
