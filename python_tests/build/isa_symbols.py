"""Finds functions of a library that use vector instructions which not every machine of its architecture runs.

A function compiled for AVX may be called only through its set's table. If an inline function of a shared
header is compiled into several sets, the linker keeps one copy for all: where it keeps the AVX one, older
machines crash. So AVX instructions may stand only in functions whose (mangled) name lies in the namespace of
such a set.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+(?P<mnemonic>[a-z]\w*)(?P<operands>.*)$")
BF16 = re.compile(r"vdpbf16ps|vcvtne2?ps2bf16")
AVX512 = re.compile(r"%zmm|%k[0-7]|%[xy]mm(?:1[6-9]|2\d|3[01])")


SETS = ["avx2", "avx512", "avx512bf16"]  # each runs what those before it run
NAMESPACES = [f"{len(isa)}{isa}" for isa in SETS]  # as they stand in mangled names


def needs(mnemonic: str, operands: str) -> str | None:
    """The least instruction set of this project's that runs an instruction."""
    if BF16.match(mnemonic):
        return "avx512bf16"
    if AVX512.search(operands):
        return "avx512"
    return "avx2" if mnemonic.startswith("v") and "mm" in operands else None


def leaks(library: Path) -> dict[str, str]:
    """Functions outside the namespaces of the sets that they need, with the first instruction that tells."""
    found: dict[str, str] = {}
    name = ""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as disassembler:
        assert disassembler.stdout is not None
        for line in disassembler.stdout:
            if function := FUNCTION.match(line):
                name = function["name"]
            elif (instruction := INSTRUCTION.match(line)) and name not in found:
                needed = needs(instruction["mnemonic"], instruction["operands"])
                allowed = NAMESPACES[SETS.index(needed) :] if needed else []
                initialiser = name.startswith("_GLOBAL__sub_I")  # runs at load, on every machine
                if needed and (initialiser or not any(part in name for part in allowed)):
                    found[name] = line.strip()
    assert disassembler.returncode == 0, f"objdump {library} failed"
    assert name, f"{library}: no functions found"
    return found
