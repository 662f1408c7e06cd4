"""PTX in which threads meet: barriers, shuffles, votes, matrix products; and the ways out of a kernel."""

from tests.emulator.ptx.instructions import handles
from tests.emulator.ptx.operands import Untranslatable, group, identifier


@handles("bra")
def branch(at):
    return f"goto {identifier(at.arguments[0])};"


@handles("ret", "exit")
def leave(at):
    return "return;"


@handles("bar", "barrier")
def barrier(at):
    words = [word for word in (*at.words, at.type) if word not in ("cta", "sync", "aligned")]
    if words == ["warp"]:
        return f"warp_barrier({at.operands.value(at.arguments[0], 'u32')}, {at.line});"
    if words or at.arguments[0] == "0" and len(at.arguments) > 1:
        raise Untranslatable(f"{at.head}.{'.'.join(at.words)} {', '.join(at.arguments)}")
    if at.arguments == ["0"]:
        return f"simt::block_barrier({at.line});"
    if len(at.arguments) == 1:
        raise Untranslatable(f"a barrier {at.arguments[0]} of all threads")
    name, threads = (at.operands.value(argument, "s32") for argument in at.arguments)
    return f"simt::group_barrier({name}, {threads}, {at.line});"


@handles("shfl")
def shuffle(at):
    at.knows("up", "down", "bfly", "idx")
    mode = next(word for word in at.words if word in ("up", "down", "bfly", "idx"))
    value, by, clamp, lanes = (at.operands.value(argument, "b32") for argument in at.arguments[1:])
    target, _, valid = at.arguments[0].partition("|")
    given = f"{value}, {by}, {clamp}, {lanes}, valid, {at.line}"
    code = f"{{ bool valid; const uint32_t got = shuffle<Shuffle::{mode}>({given}); "
    code += at.operands.assign(target, "got", "b32")
    return code + (" " + at.operands.assign(valid, "valid", "pred") if valid else "") + " }"


@handles("vote")
def vote(at):
    at.knows("ballot", "any", "all")
    voted = (
        f"ballot({at.operands.value(at.arguments[1], 'pred')}, {at.operands.value(at.arguments[2], 'u32')}, {at.line})"
    )
    if "ballot" in at.words:
        return at.to(voted, "b32")
    lanes = at.operands.value(at.arguments[2], "u32")
    return at.to(f"{voted} != 0" if "any" in at.words else f"{voted} == {lanes}", "pred")


@handles("mma")
def multiply(at):
    words = [word for word in (*at.words, at.type) if word not in ("sync", "aligned")]
    kinds = {"bf16": "petx::BFloat16", "f16": "petx::Half"}
    if (
        words[:4] != ["m16n8k16", "row", "col", "f32"]
        or words[4] != words[5]
        or words[4] not in kinds
        or words[6:] != ["f32"]
    ):
        raise Untranslatable(f"mma.{'.'.join(words)}")
    results, a, b, c = map(group, at.arguments)
    s, a, b = (
        f"{{{', '.join(at.operands.value(member, type_) for member in members)}}}"
        for members, type_ in ((c, "f32"), (a, "b32"), (b, "b32"))
    )
    code = f"{{ float s[4] = {s}; const uint32_t a[4] = {a}, b[2] = {b}; "
    code += f"multiply<{kinds[words[4]]}>(s, a, b, {at.line}); "
    return code + " ".join(at.operands.assign(x, f"s[{i}]", "f32") for i, x in enumerate(results)) + " }"


@handles("membar", "fence")
def fence(at):
    return ";"


@handles("trap")
def trap(at):
    return f'simt::fault("traps", {at.line});'
