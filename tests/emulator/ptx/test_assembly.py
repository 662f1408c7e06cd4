"""Every statement of inline assembly that touches memory is told to the compiler as one."""

import pytest

from tests.emulator import CSRC
from tests.emulator.ptx import assembly

LOAD = """asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1}, "
             "[%2];"
             : "=r"(a), "=r"(b)
             : "r"(from.address(i))
             : "memory");"""


def test_the_kernels_assembly_is_ordered():
    assert assembly.of_sources(CSRC) == []
    found = assembly.statements((CSRC / "cuda" / "common" / "primitives.cuh").read_text())
    assert sum(assembly.TOUCHES.search(body) is not None for _, _, body in found) >= 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOAD, []),
        (LOAD.replace(" volatile", ""), ["k:1: ldmatrix.sync.aligned.m8n8.x4.shared.b16 without volatile"]),
        (
            LOAD.replace('\n             : "memory"', ""),
            ["k:1: ldmatrix.sync.aligned.m8n8.x4.shared.b16 without the memory clobber"],
        ),
        (
            '// a word\nasm("bar.sync 0;");',
            ["k:2: bar.sync without volatile", "k:2: bar.sync without the memory clobber"],
        ),
        ('asm volatile("cp.async.commit_group;" ::: "memory");', []),
        ('asm volatile("cp.async.wait_group %0;" ::"n"(n));', ["k:1: cp.async.wait_group without the memory clobber"]),
        ('asm("mma.sync.aligned.m16n8k16 {%0};" : "+f"(s));', []),  # registers alone
        ('asm volatile("" : "+r"(i));', []),
    ],
)
def test_what_is_found(text, said):
    assert assembly.unordered(text, "k") == said


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="1 statements of inline assembly, of which 0 can be read"):
        assembly.statements('asm goto("bra %l0;" :::: done);')
