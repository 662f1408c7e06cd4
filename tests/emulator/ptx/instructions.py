"""What each PTX instruction of arithmetic and control is in C++.

``HANDLERS`` maps the first word of an opcode to a function of an :class:`Instruction` that returns C++ statements. A
file that brings more of them (memory.py, warp.py) adds to it by the decorator :func:`handles`. What a handler does not
know it refuses: an instruction is translated exactly or not at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.emulator.ptx.operands import CPP, Operands, Untranslatable, bits_of, group, is_float, unsigned

HANDLERS: dict[str, Callable[["Instruction"], str]] = {}
# Words that change neither the result here nor what is checked.
HINTS = {"rn", "uni", "approx", "sync", "aligned"}


def handles(*heads):
    def add(function):
        HANDLERS.update(dict.fromkeys(heads, function))
        return function

    return add


@dataclass
class Instruction:
    """``head.words....type`` with its operands. ``line`` is the C++ of its place, for reports."""

    head: str
    words: list[str]  # between head and type
    type: str
    arguments: list[str]
    operands: Operands
    line: str

    def __post_init__(self):
        self.flushes = "ftz" in self.words and self.type == "f32"

    def value(self, i: int, type_: str | None = None) -> str:
        type_ = type_ or self.type
        text = self.operands.value(self.arguments[i], type_)
        return f"flushed({text})" if self.flushes and type_ == "f32" else text

    def to(self, expression: str, type_: str | None = None, result: int = 0) -> str:
        """The result becomes ``expression``."""
        type_ = type_ or self.type
        if self.flushes and type_ == "f32":
            expression = f"flushed({expression})"
        return self.operands.assign(self.arguments[result], expression, type_)

    def knows(self, *words: str) -> None:
        """Refuses what is in none of these words."""
        rest = [word for word in self.words if word not in HINTS and word not in words]
        if rest:
            raise Untranslatable(f"{'.'.join([self.head, *self.words, self.type])}: {', '.join(rest)}")


@handles("add", "sub", "mul")
def arithmetic(at):
    sign = {"add": "+", "sub": "-", "mul": "*"}[at.head]
    if is_float(at.type):
        at.knows("ftz")
        return at.to(f"{at.value(1)} {sign} {at.value(2)}")
    if at.head == "mul":
        return product(at)
    at.knows()
    kind = unsigned(at.type)
    return at.to(f"{CPP[kind]}({at.value(1, kind)} {sign} {at.value(2, kind)})", kind)


@handles("mad")
def product(at):
    at.knows("lo", "hi", "wide")
    bits = bits_of(at.type)
    if "wide" in at.words:
        wide = f"{at.type[0]}{2 * bits}"
        text, result = f"{CPP[wide]}({at.value(1)}) * {CPP[wide]}({at.value(2)})", unsigned(wide)
    elif "hi" in at.words:
        text, result = f"high_product({at.value(1)}, {at.value(2)})", unsigned(at.type)
    else:
        result = unsigned(at.type)
        text = f"uint64_t({at.value(1, result)}) * uint64_t({at.value(2, result)})"
    text = f"{CPP[result]}({text})"
    if at.head == "mad":
        text = f"{CPP[result]}({text} + {at.value(3, result)})"
    return at.to(text, result)


@handles("fma")
def fused(at):
    at.knows("ftz", "rm")
    function = "fma_downward" if "rm" in at.words else "std::fma"
    return at.to(f"{function}({at.value(1)}, {at.value(2)}, {at.value(3)})")


@handles("div", "rem")
def division(at):
    at.knows("ftz", "full")
    if is_float(at.type):
        return at.to(f"{at.value(1)} / {at.value(2)}")
    return at.to(f"{'divided' if at.head == 'div' else 'remaining'}({at.value(1)}, {at.value(2)})")


@handles("and", "or", "xor")
def logic(at):
    at.knows()
    sign = {"and": "&", "or": "|", "xor": "^"}[at.head]
    return at.to(f"{CPP[at.type]}({at.value(1)} {sign} {at.value(2)})")


@handles("not")
def complement(at):
    at.knows()
    return at.to(f"!{at.value(1)}" if at.type == "pred" else f"{CPP[at.type]}(~{at.value(1)})")


@handles("shl", "shr")
def shift(at):
    at.knows()
    kind = at.type if at.type[0] == "s" and at.head == "shr" else unsigned(at.type)
    return at.to(
        f"{'shifted_left' if at.head == 'shl' else 'shifted_right'}({at.value(1, kind)}, {at.value(2, 'u32')})", kind
    )


SIGNS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}


@handles("setp")
def comparison(at):
    word, *rest = at.words
    a, b = at.value(1), at.value(2)
    unordered = f"(std::isnan({a}) || std::isnan({b}))"
    if word == "nan" or word == "num":
        test = unordered if word == "nan" else f"!{unordered}"
    elif word in SIGNS:
        test = f"({a} {SIGNS[word]} {b})"
        if word == "ne" and is_float(at.type):
            test = f"(!{unordered} && {test})"
    elif word[-1] == "u" and word[:-1] in SIGNS and is_float(at.type):
        test = f"({unordered} || {a} {SIGNS[word[:-1]]} {b})"
    else:
        raise Untranslatable(f"setp.{word}")
    at.words = rest
    at.knows("and", "or", "xor", "ftz")
    for combine, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        if combine in rest:
            test = f"bool({test} {sign} {at.value(3, 'pred')})"
    return at.to(test, "pred")


@handles("selp")
def selection(at):
    at.knows()
    return at.to(f"({at.value(3, 'pred')} ? {at.value(1)} : {at.value(2)})")


@handles("min", "max")
def extreme(at):
    at.knows("ftz")
    function = f"std::f{at.head}" if is_float(at.type) else f"std::{at.head}<{CPP[at.type]}>"
    return at.to(f"{function}({at.value(1)}, {at.value(2)})")


@handles("neg", "abs")
def sign(at):
    at.knows("ftz")
    if at.head == "abs" and is_float(at.type):
        return at.to(f"std::fabs({at.value(1)})")
    return at.to(f"{CPP[at.type]}({'-' if at.head == 'neg' else 'std::abs'}({at.value(1)}))")


@handles("rcp", "sqrt", "rsqrt", "ex2", "lg2")
def function_of_one(at):
    at.knows("ftz")
    if at.head == "rcp" and at.type == "f64" and "approx" in at.words:
        return at.to(f"coarse_reciprocal({at.value(1)})")
    one = f"{CPP[at.type]}(1)"
    text = {
        "rcp": f"{one} / {{}}",
        "sqrt": "std::sqrt({})",
        "rsqrt": f"{one} / std::sqrt({{}})",
        "ex2": "std::exp2({})",
        "lg2": "std::log2({})",
    }[at.head]
    return at.to(text.format(at.value(1)))


ROUNDINGS = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}


@handles("cvt")
def conversion(at):
    # cvt.<words>.<to>.<from>: the type of an instruction is its last word.
    *words, to = at.words
    at.words = words
    at.knows("sat", "ftz", *ROUNDINGS)
    if (to, at.type) in (("bf16x2", "f32"), ("f16x2", "f32")) and words == ["rn"]:
        upper, lower = (f"{to[:-2]}_of_float({at.value(i)})" for i in (1, 2))
        return at.to(f"uint32_t({upper}) << 16 | {lower}", "b32")
    if (to, at.type) in (("bf16", "f32"), ("f16", "f32")) and words == ["rn"]:
        return at.to(f"{to}_of_float({at.value(1)})", "b16")
    if (to, at.type, words) == ("f32", "f16", []):
        return at.to(f"float_of_f16({at.value(1, 'b16')})", to)
    if to not in CPP or at.type not in CPP:
        raise Untranslatable(f"cvt.{'.'.join([*words, to])}.{at.type}")
    rounding = next((ROUNDINGS[word] for word in words if word in ROUNDINGS), None)
    text = at.value(1)
    if rounding:
        text = f"{rounding}({text})"
    if is_float(at.type) and not is_float(to):
        if not rounding:
            raise Untranslatable(f"cvt.{to}.{at.type} without a rounding")
        text = f"clamped<{CPP[to]}>({text})"
    elif "sat" in words:
        if not is_float(to):
            raise Untranslatable(f"cvt.sat.{to}")
        text = f"saturated({CPP[to]}({text}))"
    else:
        text = f"{CPP[to]}({text})"
    at.flushes = at.flushes or ("ftz" in words and to == "f32")
    return at.to(text, to)


@handles("cvta")
def address_conversion(at):
    space = next((word for word in at.words if word in ("global", "shared", "param", "local", "const")), None)
    if space == "global" or space == "param":
        return at.to(at.value(1))
    if space == "shared":
        return at.to(f"{'shared_of_generic' if 'to' in at.words else 'generic_of_shared'}({at.value(1)})")
    raise Untranslatable(f"cvta of {space}")


@handles("mov")
def move(at):
    at.knows()
    target, source = at.arguments
    if not (target.startswith("{") or source.startswith("{")):
        return at.to(at.value(1))
    members = group(target if target.startswith("{") else source)
    part = f"b{bits_of(at.type) // len(members)}"
    if target.startswith("{"):  # taken apart
        code = f"{{ const uint64_t whole = {at.operands.value(source, at.type)}; "
        for i, member in enumerate(members):
            code += at.operands.assign(member, f"{CPP[part]}(whole >> {i * bits_of(part)})", part) + " "
        return code + "}"
    terms = [f"uint64_t({at.operands.value(m, part)}) << {i * bits_of(part)}" for i, m in enumerate(members)]
    return at.to(f"{CPP[at.type]}({' | '.join(terms)})")


@handles("bfi")
def field_insert(at):
    return at.to(f"inserted({at.value(1)}, {at.value(2)}, {at.value(3, 'u32')}, {at.value(4, 'u32')})")


@handles("bfe")
def field_extract(at):
    return at.to(f"extracted({at.value(1)}, {at.value(2, 'u32')}, {at.value(3, 'u32')})")


@handles("prmt")
def permute(at):
    at.knows()
    return at.to(f"permuted({at.value(1)}, {at.value(2)}, {at.value(3)})")


@handles("shf")
def funnel(at):
    at.knows("l", "r", "wrap", "clamp")
    flags = f"{str('l' in at.words).lower()}, {str('wrap' in at.words).lower()}"
    return at.to(f"funnel<{flags}>({at.value(1)}, {at.value(2)}, {at.value(3, 'u32')})")


@handles("popc", "clz")
def count_bits(at):
    at.knows()
    function = {"popc": "std::popcount", "clz": "std::countl_zero"}[at.head]
    return at.to(f"uint32_t({function}({at.value(1, unsigned(at.type))}))", "u32")
