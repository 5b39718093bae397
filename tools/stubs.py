"""Writes glm_ext/_C.pyi, the types of the binding, from the built module; --check only compares.

python tools/stubs.py [--check]
"""

from __future__ import annotations

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parents[1] / "glm_ext" / "_C.pyi"
# The signatures name torch.Tensor, so torch must be there when they are read.
GENERATE = (
    "import torch, sys, pybind11_stubgen as s; s.main(['glm_ext._C', '--exit-code', '-o', sys.argv[1]])"
)


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", GENERATE, folder], check=True)
        text = (Path(folder) / "glm_ext" / "_C.pyi").read_text()
    for step in (["check", "--select=I", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(STUB), "-"]
        text = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout
    return text


def main() -> None:
    text = generate()
    if "--check" not in sys.argv[1:]:
        STUB.write_text(text)
    elif text != (committed := STUB.read_text()):
        sys.stdout.writelines(
            difflib.unified_diff(committed.splitlines(True), text.splitlines(True), "committed", "generated")
        )
        raise SystemExit(f"{STUB} is out of date: make stubs")


if __name__ == "__main__":
    main()
