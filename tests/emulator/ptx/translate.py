"""An entry of PTX as a C++ file: one function, a statement an instruction, a counter a stretch without a branch."""

import collections
import json
from dataclasses import dataclass

from tests.emulator.ptx import memory, warp  # noqa: F401 - they add their handlers
from tests.emulator.ptx.instructions import HANDLERS, Instruction
from tests.emulator.ptx.operands import Operands, Untranslatable, identifier, split
from tests.emulator.ptx.text import Entry, Place, Statement

IGNORED = (".pragma", ".file", ".section", ".branchtargets")


@dataclass
class Unit:
    """C++ of an entry; ``opcodes`` are those of each counted stretch."""

    name: str
    source: str
    opcodes: list[dict[str, int]]

    def described(self) -> str:
        return json.dumps({"name": self.name, "opcodes": self.opcodes})


class Translator:
    def __init__(self, entry: Entry):
        self.entry = entry
        self.operands = Operands(entry.parameters, entry.shared)
        self.places: list[Place] = []
        self.lines: list[str] = []
        self.opcodes: list[collections.Counter] = []
        self.depth = 0
        self.outer: list[dict[str, str]] = []

    def unit(self) -> Unit:
        self.stretch()
        for statement in self.entry.statements:
            try:
                getattr(self, statement.kind)(statement)
            except (Untranslatable, KeyError, ValueError, IndexError, StopIteration) as error:
                text = f"{self.entry.name}, {statement.place.file}:{statement.place.line}: {statement.text}: {error!r}"
                raise Untranslatable(text) from error
        places = "".join(f'    {{"{p.file}", "", {p.line}, {n}}},\n' for n, p in enumerate(self.places, 1))
        source = "\n".join(
            [
                f"// {self.entry.name}",
                '#include "ptx/runtime/instructions.h"',
                "using namespace ptx;",
                f"static const Place places[] = {{\n{places}    {{}}}};",
                f'extern "C" {{\n__attribute__((visibility("default"))) int64_t counts[{len(self.opcodes)}];',
                '__attribute__((visibility("default"))) void body(void* const* parameters) {',
                *self.lines,
                "}\n}\n",
            ]
        )
        return Unit(self.entry.name, source, [dict(sorted(count.items())) for count in self.opcodes])

    def stretch(self) -> None:
        """From here on instructions are executed together."""
        self.lines.append(f"++counts[{len(self.opcodes)}];")
        self.opcodes.append(collections.Counter())

    def label(self, statement: Statement) -> None:
        self.lines.append(f"{identifier(statement.text)}:;")
        self.stretch()

    def open(self, statement: Statement) -> None:
        self.outer.append(dict(self.operands.kinds))
        self.lines.append("{")

    def close(self, statement: Statement) -> None:
        self.operands.kinds = self.outer.pop()
        self.lines.append("}")

    def directive(self, statement: Statement) -> None:
        word, _, rest = statement.text.partition(" ")
        if word in IGNORED:
            return
        type_, _, names = rest.strip().partition(" ")
        if word != ".reg":
            raise Untranslatable(word)
        for cpp, variables in self.operands.declare(type_.removeprefix("."), names).items():
            self.lines.append(f"{cpp} {', '.join(f'{name} = 0' for name in variables)};")

    def instruction(self, statement: Statement) -> None:
        text, guard = statement.text, ""
        if text.startswith("@"):
            guard, _, text = text[1:].partition(" ")
        opcode, _, rest = text.strip().partition(" ")
        self.opcodes[-1][opcode] += 1
        head, *words = opcode.split(".")
        type_ = words.pop() if words else ""
        if head not in HANDLERS:
            raise Untranslatable(f"opcode {opcode}")
        self.places.append(statement.place)
        line = f"line(places[{len(self.places) - 1}])"
        code = HANDLERS[head](Instruction(head, words, type_, split(rest), self.operands, line))
        if "line(places" not in code:
            self.places.pop()
        if guard:
            code = f"if ({self.operands.value(guard, 'pred')}) {{ {code} }}"
        self.lines.append(code)
        if guard and head in ("bra", "ret", "exit"):
            self.stretch()


def translated(entry: Entry) -> Unit:
    return Translator(entry).unit()
