"""PTX as text: its entries, and of each the declarations, labels and instructions in order, with where they come from.

``.loc`` lines (``nvcc -lineinfo``) name the innermost function; for what is inlined they add where to. An instruction
of ``primitives.cuh`` or of CUDA's own headers is given the place that called it, as the reports of the C++ emulator do.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePath

ENTRY = re.compile(r"\.entry (\w+)\s*\(([^)]*)\)([^{]*)\{")
LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) (\d+)(?:, function_name \S+, inlined_at (\d+) (\d+) (\d+))?")
LABEL = re.compile(r"\s*([$\w]+):(?!:)")
# nvcc's and g++'s names of a kernel differ in that of the unnamed namespace alone.
UNNAMED = re.compile(r"(\d+)_GLOBAL__N__[0-9a-f]{8}_\d+_(\w+?)_cu_[0-9a-f]{8}")


@dataclass(frozen=True)
class Place:
    file: str
    line: int


@dataclass(frozen=True)
class Statement:
    """``kind`` is ``label``, ``open``, ``close``, ``directive`` or ``instruction``."""

    kind: str
    text: str
    place: Place


@dataclass
class Entry:
    """A kernel. ``threads`` of a block and ``blocks`` of a multiprocessor are those of its launch bounds."""

    symbol: str  # as nvcc spells it
    parameters: list[str]
    statements: list[Statement]
    shared: set[str] = field(default_factory=set)  # names of the dynamic shared memory
    threads: int = 0
    blocks: int = 0

    @property
    def name(self) -> str:
        """The symbol as g++ spells it."""
        return common_name(self.symbol)

    def opcodes(self) -> list[str]:
        found = []
        for statement in self.statements:
            if statement.kind == "instruction":
                found.append(re.sub(r"^@!?%\w+\s+", "", statement.text).split()[0])
        return found


def common_name(symbol: str) -> str:
    return UNNAMED.sub("12_GLOBAL__N_1", symbol)


def entries(text: str) -> list[Entry]:
    """All kernels of a PTX file."""
    files = {number: path for number, path in re.findall(r'\.file\s+(\d+) "([^"]+)"', text)}
    headers = {n for n, path in files.items() if PurePath(path).name == "primitives.cuh" or "/include/" in path}
    files = {number: "/".join(PurePath(path).parts[-2:]) for number, path in files.items()}
    shared = set(re.findall(r"\.extern \.shared .*? (\w+)\[\]", text))
    found = []
    for match in ENTRY.finditer(text):
        end = body_end(text, match.end())
        parameters = re.findall(r"(\w+)(?:\[\d+\])?\s*(?:,|$)", match[2].strip())
        bounds = [re.search(rf"\.{word} (\d+)", match[3]) for word in ("maxntid", "minnctapersm")]
        threads, blocks = (int(bound[1]) if bound else 0 for bound in bounds)
        statements = statements_of(text[match.end() : end], files, headers)
        found.append(Entry(match[1], parameters, statements, shared, threads, blocks))
    return found


def body_end(text: str, begin: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise ValueError(f"the body that begins at character {begin} has no end")


def statements_of(body: str, files: dict[str, str], headers: set[str]) -> list[Statement]:
    found, current = [], ""
    where = Where(files, headers)
    for raw in body.split("\n"):
        line = raw.partition("//")[0]
        loc = LOC.match(line)
        if loc:
            where.follow(loc)
            continue
        while line.strip():
            if not current and (label := LABEL.match(line)):
                found.append(Statement("label", label[1], where.place))
                line = line[label.end() :]
            elif not current and (brace := line.strip()[0]) in "{}":
                found.append(Statement("open" if brace == "{" else "close", "", where.place))
                line = line.strip()[1:]
            else:
                part, semicolon, line = line.partition(";")
                current = f"{current} {part}"
                if semicolon:
                    said = " ".join(current.split())
                    found.append(Statement("directive" if said[0] == "." else "instruction", said, where.place))
                    current = ""
    if current.strip():
        raise ValueError(f"a statement without an end: {current.strip()}")
    return found


class Where:
    """The place that the latest ``.loc`` gives."""

    def __init__(self, files: dict[str, str], headers: set[str]):
        self.files, self.headers = files, headers
        self.callers: dict[tuple, tuple] = {}
        self.place = Place("?", 0)

    def follow(self, loc: re.Match) -> None:
        file, line, column, *caller = loc.groups()
        if line == "0":
            return
        if caller[0]:
            self.callers[file, line, column] = tuple(caller)
        at = (file, line, column)
        for _ in range(32):
            if at[0] not in self.headers or at not in self.callers:
                break
            at = self.callers[at]
        self.place = Place(self.files.get(at[0], at[0]), int(at[1]))
