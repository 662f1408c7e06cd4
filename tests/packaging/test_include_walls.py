"""Which files of csrc may include which: the floors of CONTRIBUTING.md, held by their #include lines."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]|^\s*#\s*define\s+PETX_ISA_BODY\s+(")([^"]+)"', re.MULTILINE)

# Floor -> the floors whose files its own may include. ops/ may include all that declares something.
MAY = {
    "kernels": {"kernels"},
    "cpu": {"kernels", "cpu"},
    "cuda": {"kernels", "cuda"},
    "ops": {"kernels", "ops"},
}
# The one file that includes CUDA's headers, and the words by which a header of torch or Python is known.
CUDA_HEADERS = {"cuda/common/primitives.cuh": {"cuda_runtime.h"}}
HOST_HEADER = re.compile(r"^(torch|ATen|c10|pybind11)/|^Python\.h$")


def includes(path: Path) -> list[tuple[bool, str]]:
    """(whether it is in quotes, what is included) of each #include line."""
    found = INCLUDE.findall(path.read_text(encoding="utf-8"))
    return [((mark or body_mark) == '"', name or body) for mark, name, body_mark, body in found]


def sources(floor: str) -> list[Path]:
    return sorted(path for path in (CSRC / floor).rglob("*") if path.is_file())


@pytest.mark.parametrize("floor", MAY)
def test_floor_includes_only_its_own(floor):
    wrong = []
    for path in sources(floor):
        for quoted, name in includes(path):
            if quoted and name.partition("/")[0] not in MAY[floor]:
                wrong.append(f"{path.relative_to(CSRC)} includes {name}")
    assert sources(floor) and not wrong


@pytest.mark.parametrize("floor", ["kernels", "cpu", "cuda"])
def test_kernels_include_nothing_of_torch_python_or_cuda(floor):
    wrong = []
    for path in sources(floor):
        allowed = CUDA_HEADERS.get(path.relative_to(CSRC).as_posix(), set())
        for quoted, name in includes(path):
            if (
                not quoted
                and (HOST_HEADER.match(name) or re.match("cuda|cooperative_groups", name))
                and name not in allowed
            ):
                wrong.append(f"{path.relative_to(CSRC)} includes {name}")
    assert not wrong


def test_an_operation_includes_no_other_operation():
    """Of cpu/ and cuda/ an operation's folder and common/ alone; common/ no operation's."""
    wrong = []
    for path in [*sources("cpu"), *sources("cuda")]:
        floor, folder, *_ = path.relative_to(CSRC).parts
        for quoted, name in includes(path):
            inside = name.split("/")
            if quoted and inside[0] == floor and inside[1] not in {folder, "common"}:
                wrong.append(f"{path.relative_to(CSRC)} includes {name}")
    assert not wrong


def test_includes_are_read():
    """The test would pass an empty reading."""
    counts = {floor: sum(len(includes(path)) for path in sources(floor)) for floor in MAY}
    assert min(counts.values()) >= 5 and (True, "cpu/common/vectors.inl") in includes(CSRC / "cpu/common/vectors.cpp")
    assert (False, "cuda_runtime.h") in includes(CSRC / "cuda/common/primitives.cuh")
