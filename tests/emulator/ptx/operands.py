"""Registers, literals and addresses of PTX as expressions of C++.

A register is a C++ variable of its own kind: float, double, bool or an unsigned integer. An instruction reads it as its
own type, which is the same bits, or the lower ones.
"""

import re

CPP = {
    "pred": "bool",
    "f32": "float",
    "f64": "double",
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
}
SPECIAL = {
    "%tid.x": "simt::thread_index()",
    "%ctaid.x": "simt::block_x()",
    "%ctaid.y": "simt::block_y()",
    "%laneid": "(simt::thread_index() & 31)",
}
ZERO = {"%tid.y", "%tid.z", "%ctaid.z"}


class Untranslatable(Exception):
    """The translator does not know this PTX; the text says what."""


def bits_of(type_: str) -> int:
    return 1 if type_ == "pred" else int(type_[1:])


def is_float(type_: str) -> bool:
    return type_[0] == "f"


def unsigned(type_: str) -> str:
    return f"u{type_[1:]}"


def kind_of(type_: str) -> str:
    """What a register declared with this type holds: pred, f32, f64 or u16, u32, u64."""
    if type_ == "pred" or is_float(type_):
        return type_
    return f"u{max(16, bits_of(type_))}"


def identifier(name: str) -> str:
    return name.replace("%", "").replace("$", "").replace(".", "_")


def split(text: str) -> list[str]:
    """Operands, separated by commas that are in no brackets."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found


def group(text: str) -> list[str]:
    """The members of ``{a, b}``, or the one operand that is not in braces."""
    return [member.strip() for member in text.strip("{} ").split(",")]


class Operands:
    """The names that one entry can use."""

    def __init__(self, parameters: list[str], shared: set[str]):
        self.kinds: dict[str, str] = {}
        self.parameters, self.shared = parameters, shared

    def declare(self, type_: str, names: str) -> dict[str, list[str]]:
        """Registers of a ``.reg``: C++ type -> variables."""
        declared = []
        for name in map(str.strip, names.split(",")):
            many = re.fullmatch(r"(%\w+)<(\d+)>", name)
            declared += [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
        self.kinds.update(dict.fromkeys(declared, kind_of(type_)))
        return {CPP[kind_of(type_)]: [identifier(name) for name in declared]}

    def value(self, operand: str, type_: str) -> str:
        """``operand`` as an expression of the C++ type of ``type_``."""
        if operand in self.kinds:
            return self.register(operand, type_)
        if operand.startswith("!") and operand[1:] in self.kinds:
            return f"!{identifier(operand[1:])}"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return self.constant(f"0x{operand[2:]}u", "f32", type_)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return self.constant(f"0x{operand[2:]}ull", "f64", type_)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", operand) and not is_float(type_):
            return f"{CPP[type_]}({int(operand, 0) & 0xFFFFFFFFFFFFFFFF}ull)"
        if operand in SPECIAL:
            return f"{CPP[type_]}({SPECIAL[operand]})"
        if operand in ZERO:
            return f"{CPP[type_]}(0)"
        if operand in self.shared:
            return f"{CPP[type_]}(0)"  # the dynamic shared memory begins at 0 of its window
        if operand in self.parameters:
            return f"{CPP[type_]}(reinterpret_cast<uint64_t>(parameters[{self.parameters.index(operand)}]))"
        raise Untranslatable(f"operand {operand} as {type_}")

    def register(self, operand: str, type_: str) -> str:
        kind, name = self.kinds[operand], identifier(operand)
        if kind == kind_of(type_) and bits_of(kind) == bits_of(type_) and type_[0] != "s":
            return name
        if "pred" in (kind, type_) or bits_of(type_) > bits_of(kind):
            raise Untranslatable(f"{operand} of kind {kind} as {type_}")
        if is_float(type_):
            if bits_of(kind) != bits_of(type_):
                raise Untranslatable(f"{operand} of kind {kind} as {type_}")
            return f"bits<{CPP[type_]}>({name})"
        if is_float(kind):
            name = f"bits<{CPP[unsigned(kind)]}>({name})"
        return f"{CPP[type_]}({name})"

    @staticmethod
    def constant(bits: str, of: str, type_: str) -> str:
        if bits_of(of) != bits_of(type_):
            raise Untranslatable(f"a literal {of} as {type_}")
        return f"bits<{CPP[type_]}>({bits})" if is_float(type_) else f"{CPP[type_]}({bits})"

    def assign(self, operand: str, expression: str, type_: str) -> str:
        """``operand`` becomes the expression, which has the C++ type of ``type_``."""
        if operand == "_":
            return ""
        if operand not in self.kinds:
            raise Untranslatable(f"result in {operand}")
        kind, name = self.kinds[operand], identifier(operand)
        if bits_of(type_) > bits_of(kind) or ("pred" in (kind, type_) and kind != type_):
            raise Untranslatable(f"{type_} into {operand} of kind {kind}")
        if kind == type_:
            return f"{name} = {expression};"
        if is_float(type_) or is_float(kind):
            return f"{name} = bits<{CPP[kind]}>({CPP[type_]}({expression}));"
        widened = f"{CPP['s' + kind[1:]]}" if type_[0] == "s" else CPP[kind]
        return f"{name} = {CPP[kind]}({widened}({CPP[type_]}({expression})));"

    def address(self, text: str) -> str:
        """``[register + offset]`` as 64 bits; shared memory's are offsets from its start."""
        base, _, offset = text.strip("[] ").partition("+")
        base = base.strip()
        expression = "0" if base in self.shared else None
        if base in self.kinds:
            expression = f"uint64_t({identifier(base)})"
        elif base in self.parameters:
            expression = self.value(base, "u64")
        if expression is None:
            raise Untranslatable(f"address {text}")
        return f"{expression} + ({int(offset)})" if offset else expression
