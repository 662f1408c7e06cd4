"""The peers' names, and the arms that every operation has."""

from collections.abc import Iterable

from petx.bench.case import PETX, Arm, Function, compiled, plain, unavailable

LITERAL, BEST, COMPILED, GRAPHS, LORA, LYCORIS = NAMES = (
    "literal eager",
    "best eager",
    "torch.compile",
    "torch.compile, CUDA graphs",
    "PEFT LoRA",
    "LyCORIS LoRA",
)

NO_LORA = "LoRA adds to one projection and computes no such function; the layer benchmarks have it beside"


def arms(
    literal: Function,
    best: Function,
    own: Function,
    alone: Arm,
    *,
    to_compile: Function | None = None,
    others: Iterable[Arm] = (),
    compile_best: bool = True,
    why_not: str = "",
) -> tuple[Arm, ...]:
    """petx, its peers, and the products ``alone``.

    ``literal`` is the form as released, ``best`` the eager one with care, ``own`` calls petx: functions of the tensors
    by name and the case's options. ``to_compile`` is the form to give to torch.compile if the best eager one is not it.
    Without ``compile_best`` the compiled peers are listed as unavailable, for the reason ``why_not``.
    """
    listed = [plain(PETX, own), plain(LITERAL, literal), plain(BEST, best)]
    if compile_best:
        source = to_compile or best
        listed += [compiled(COMPILED, source), compiled(GRAPHS, source, "reduce-overhead")]
    else:
        listed += [unavailable(name, why_not) for name in (COMPILED, GRAPHS)]
    return (*listed, *others, alone)


def without_lora(reason: str = NO_LORA) -> list[Arm]:
    """Both LoRA peers, listed with the reason why they do not apply."""
    return [unavailable(LORA, reason), unavailable(LYCORIS, reason)]
