"""PTX that touches memory: every access goes through the emulator's checks, with its own place."""

from tests.emulator.ptx.instructions import Instruction, handles
from tests.emulator.ptx.operands import CPP, Untranslatable, group

SPACES = ("param", "global", "shared")
VECTORS = {"v2": 2, "v4": 4}
# How caches are to take it, and orders weaker than a barrier's, which the emulator's threads keep anyway.
CACHES = ("nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "volatile", "weak")


def described(at: Instruction, of: int) -> tuple[str, list[str], str]:
    """Space, members of the operand number ``of``, and the C++ type of one."""
    at.knows(*SPACES, *VECTORS, *CACHES)
    space = next((word for word in at.words if word in SPACES), "generic")
    count = next((VECTORS[word] for word in at.words if word in VECTORS), 1)
    members = group(at.arguments[of])
    if len(members) != count:
        raise Untranslatable(f"{count} values of {at.arguments[of]}")
    return space, members, CPP[at.type]


@handles("ld")
def load(at):
    space, members, cpp = described(at, 0)
    address = at.operands.address(at.arguments[1])
    code = f"{{ {cpp} w[{len(members)}]; load_{space}(w, {address}, {at.line}); "
    return code + " ".join(at.operands.assign(m, f"w[{i}]", at.type) for i, m in enumerate(members)) + " }"


@handles("st")
def store(at):
    space, members, cpp = described(at, 1)
    values = ", ".join(at.operands.value(member, at.type) for member in members)
    address = at.operands.address(at.arguments[0])
    return f"{{ const {cpp} w[{len(members)}] = {{{values}}}; store_{space}(w, {address}, {at.line}); }}"


@handles("cp")
def copy(at):
    """cp.async and the groups of it; their last word is no type."""
    words = [*at.words, at.type]
    if words == ["async", "commit_group"]:
        return "simt::commit_copies();"
    if words in (["async", "wait_group"], ["async", "wait_all"]):
        if words[-1] == "wait_all":
            return "simt::commit_copies(); simt::wait_copies(0);"
        return f"simt::wait_copies({int(at.arguments[0])});"
    if len(words) != 4 or words[0] != "async" or words[1] not in ("ca", "cg") or words[2:] != ["shared", "global"]:
        raise Untranslatable(f"cp.{'.'.join(words)}")
    to, source = (at.operands.address(argument) for argument in at.arguments[:2])
    size = int(at.arguments[2])
    if size not in ((16,) if words[1] == "cg" else (4, 8, 16)):
        raise Untranslatable(f"cp.async.{words[1]} of {size} bytes")
    given = at.operands.value(at.arguments[3], "u32") if len(at.arguments) > 3 else f"{size}u"
    return f"copy_async({to}, {source}, {size}, {given}, {at.line});"


@handles("ldmatrix")
def load_matrices(at):
    at.knows("m8n8", "x1", "x2", "x4", "trans", "shared")
    count = {"x1": 1, "x2": 2, "x4": 4}[next(word for word in at.words if word[0] == "x")]
    members = group(at.arguments[0])
    if "m8n8" not in at.words or at.type != "b16" or len(members) != count:
        raise Untranslatable(f"ldmatrix.{'.'.join(at.words)}.{at.type} into {at.arguments[0]}")
    code = f"{{ uint32_t q[4]; load_matrices<{count}, {str('trans' in at.words).lower()}>"
    code += f"(q, {at.operands.address(at.arguments[1])}, {at.line}); "
    return code + " ".join(at.operands.assign(m, f"q[{i}]", "b32") for i, m in enumerate(members)) + " }"
