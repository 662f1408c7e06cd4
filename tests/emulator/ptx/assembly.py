"""Inline assembly in the kernels' sources: what the compiler is told about it.

Whether nvcc moves or merges a statement that lacks `volatile` or the memory clobber depends on its version and on the
code around: nvcc 13.0 makes the same PTX of today's `ldmatrix` without either. So no execution can prove that they are
there, and the source is held to it.
"""

import re
from pathlib import Path

STATEMENT = re.compile(r"\basm\s*(?P<volatile>volatile)?\s*\((?P<body>(?:\"(?:[^\"\\\\]|\\\\.)*\"|[^\";])*?)\)\s*;")
# Instructions that read or write memory, order it, or wait: by their first word.
TOUCHES = re.compile(
    r"\b(?:ld|st|ldmatrix|stmatrix|cp|bar|barrier|membar|fence|mbarrier|atom|red|prefetch|wgmma|tcgen05|griddepcontrol)"
    r"(?:\.\w+)+"
)


def statements(text: str) -> list[tuple[int, bool, str]]:
    """(line, volatile, what is in the parentheses) of each statement of inline assembly."""
    found = [
        (text.count("\n", 0, one.start()) + 1, one["volatile"] is not None, one["body"])
        for one in STATEMENT.finditer(text)
    ]
    written = len(re.findall(r"\basm\b", re.sub(r"//.*", "", text)))
    if len(found) != written:
        raise ValueError(f"{written} statements of inline assembly, of which {len(found)} can be read")
    return found


def unordered(text: str, name: str) -> list[str]:
    """Statements that touch memory and leave the compiler free to merge them, drop them, or move them across others."""
    said = []
    for line, volatile, body in statements(text):
        template, *operands = re.split(r"(?<!:):(?!:)|::", re.sub(r'"\s*\n\s*"', "", body))
        touched = TOUCHES.search(template)
        if touched is None:
            continue
        clobbers = operands[-1] if operands else ""
        for lost, word in ((not volatile, "volatile"), ('"memory"' not in clobbers, "the memory clobber")):
            if lost:
                said.append(f"{name}:{line}: {touched[0]} without {word}")
    return said


def of_sources(csrc: Path) -> list[str]:
    """The same of all kernels below ``csrc/cuda``."""
    return [
        said
        for path in sorted(csrc.glob("cuda/**/*.cu*"))
        for said in unordered(path.read_text(), str(path.relative_to(csrc / "cuda")))
    ]
