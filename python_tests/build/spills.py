"""Finds inner loops of multiply-adds that keep something on the stack: accumulators must stay in registers.

A loop is what lies between the target of a backward jump and the jump; an inner loop holds no other. Where a
register tile is too tall for the compiler, or a lambda too much for it, an accumulator goes to the stack and
back at every step, which costs more than the multiply-add.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
INSTRUCTION = re.compile(r"^\s*(?P<address>[0-9a-f]+):\s+(?P<mnemonic>[a-z]\w*)\s*(?P<operands>.*)$")
JUMP_TARGET = re.compile(r"^([0-9a-f]+)")
ON_STACK = re.compile(r"\(%[re]?[sb]p[,)]")
LEAST = 8  # multiply-adds that make a loop a register tile's


@dataclass
class Loop:
    function: str
    multiply_adds: int = 0
    spills: list[str] = field(default_factory=list)  # instructions that touch the stack


def multiply_add_loops(library: Path) -> list[Loop]:
    """The inner loops of at least LEAST vector multiply-adds, of all functions."""
    found: list[Loop] = []
    name, body = "", {}
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as disassembler:
        assert disassembler.stdout is not None
        for line in disassembler.stdout:
            if function := FUNCTION.match(line):
                found += _loops(name, body)
                name, body = function["name"], {}
            elif instruction := INSTRUCTION.match(line):
                body[int(instruction["address"], 16)] = (instruction["mnemonic"], instruction["operands"])
        found += _loops(name, body)
    assert disassembler.returncode == 0, f"objdump {library} failed"
    return found


def _loops(name: str, body: dict[int, tuple[str, str]]) -> list[Loop]:
    spans = []
    for address, (mnemonic, operands) in body.items():
        if mnemonic.startswith("j") and (target := JUMP_TARGET.match(operands)):
            begin = int(target[1], 16)
            if begin in body and begin <= address:
                spans.append((begin, address))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    loops = []
    for begin, end in inner:
        loop = Loop(name)
        for address, (mnemonic, operands) in body.items():
            if begin <= address <= end:
                loop.multiply_adds += bool(re.match(r"vfn?m(add|sub)\d+p|vdpbf16ps", mnemonic))
                if ON_STACK.search(operands) and re.search(r"%[xyz]mm", operands):
                    loop.spills.append(f"{address:x}: {mnemonic} {operands}")
        if loop.multiply_adds >= LEAST:
            loops.append(loop)
    return loops
