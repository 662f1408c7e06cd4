"""Each instruction that the translator knows, executed in PTX written by hand, against what the PTX ISA says of it."""

import ctypes
import math
import struct

import pytest
import torch

from tests.emulator import KernelFault
from tests.emulator.ptx import build
from tests.emulator.ptx.operands import Untranslatable
from tests.emulator.ptx.text import entries
from tests.emulator.ptx.translate import translated

HEAD = """
.file 1 "/somewhere/kernel.cu"
.extern .shared .align 16 .b8 pool[];
.visible .entry kernel(.param .u64 in, .param .u64 out)
.maxntid 32, 1, 1
.minnctapersm 1
{
  .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .f32 %f<16>; .reg .f64 %fd<8>;
  ld.param.u64 %rd1, [in]; cvta.to.global.u64 %rd1, %rd1;
  ld.param.u64 %rd2, [out]; cvta.to.global.u64 %rd2, %rd2;
"""


def f32(x):
    return f"0f{struct.unpack('<I', struct.pack('<f', x))[0]:08X}"


def f64(x):
    return f"0d{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def bits64(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def run(machine, body, inputs, out, threads=32, shared=1024):
    """Runs ``body`` on one block; ``out`` is filled with what it stores."""
    [entry] = entries(HEAD + body + "\nret;\n}\n")
    kernel = build.Kernel(build.library_of(entry))
    kernel.reset()
    result = out.clone()
    values = (ctypes.c_uint64 * 2)(
        machine.buffer("in", inputs), machine.buffer("out", result, writable=True, unwritten=True)
    )
    first = ctypes.addressof(values)
    parameters = (ctypes.c_void_p * 2)(first, first + 8)
    machine.call(
        "simt_run",
        ctypes.c_void_p(kernel.address),
        parameters,
        ctypes.c_int64(1),
        ctypes.c_int64(threads),
        ctypes.c_int64(shared),
    )
    return result, kernel


LOW, TINY = -(2**31), 2.0**-140
# PTX -> the bits of its result. {r} is 32 bits wide, {d} 64, {f} float32, {g} float64, {p} a predicate.
NUMBERS = {
    "add.s32 {r}, 2147483647, 1;": 0x80000000,
    "sub.s64 {d}, 3, 5;": 2**64 - 2,
    "mul.lo.s32 {r}, 65537, 65537;": 65537**2 % 2**32,
    "mul.hi.u32 {r}, 4294967295, 4294967295;": 0xFFFFFFFE,
    "mul.hi.s32 {r}, -2, 3;": 0xFFFFFFFF,
    "mul.wide.s32 {d}, -2, 3;": 2**64 - 6,
    "mul.wide.u32 {d}, 4294967295, 2;": 2**33 - 2,
    "mad.lo.s32 {r}, 5, -3, 7;": 2**32 - 8,
    "div.s32 {r}, -7, 2;": 2**32 - 3,
    "rem.s32 {r}, -7, 2;": 2**32 - 1,
    "div.u32 {r}, 7, 0;": 2**32 - 1,
    f"div.s32 {{r}}, {LOW}, -1;": 2**31,
    "shl.b32 {r}, 1, 33;": 0,
    "shr.s32 {r}, -8, 1;": 2**32 - 4,
    "shr.s32 {r}, -8, 40;": 2**32 - 1,
    "shr.u32 {r}, 4294967288, 1;": 2**31 - 4,
    "shr.b64 {d}, 256, 4;": 16,
    "and.b32 {r}, 12, 10;": 8,
    "or.b32 {r}, 12, 10;": 14,
    "xor.b32 {r}, 12, 10;": 6,
    "not.b32 {r}, 1;": 2**32 - 2,
    "min.s32 {r}, -1, 1;": 2**32 - 1,
    "min.u32 {r}, 4294967295, 1;": 1,
    "max.s64 {d}, -1, 1;": 1,
    "neg.s32 {r}, 5;": 2**32 - 5,
    "bfi.b32 {r}, 10, 4294967295, 8, 4;": 0xFFFFFAFF,
    "bfe.u32 {r}, 43981, 4, 8;": 0xBC,
    "bfe.s32 {r}, 128, 4, 4;": 0xFFFFFFF8,
    f"prmt.b32 {{r}}, {0x33221100}, {0x77665544}, {0x7105};": 0x77110055,
    f"prmt.b32 {{r}}, {0x33221100}, {0xF7665544}, {0x000F};": 0x000000FF,
    "shf.l.wrap.b32 {r}, 2147483648, 1, 1;": 3,
    "shf.r.clamp.b32 {r}, 2, 1, 1;": 0x80000001,
    "popc.b32 {r}, 255;": 8,
    "clz.b32 {r}, 1;": 31,
    "selp.b32 {r}, 1, 2, 1;": 1,
    "setp.lt.s32 {p}, -1, 0;": 1,
    "setp.lt.u32 {p}, -1, 0;": 0,
    "setp.hi.u32 {p}, 2, 1;": 1,
    f"setp.ne.f32 {{p}}, {f32(math.nan)}, {f32(1)};": 0,
    f"setp.neu.f32 {{p}}, {f32(math.nan)}, {f32(1)};": 1,
    f"setp.nan.f32 {{p}}, {f32(math.nan)}, {f32(1)};": 1,
    f"setp.geu.f64 {{p}}, {f64(1)}, {f64(2)};": 0,
    f"add.f32 {{f}}, {f32(1)}, {f32(2.0**-24)};": bits(1.0),
    f"fma.rn.f32 {{f}}, {f32(1 + 2.0**-12)}, {f32(1 - 2.0**-12)}, {f32(-1)};": bits(-(2.0**-24)),
    f"fma.rm.f32 {{f}}, {f32(1)}, {f32(1)}, {f32(-(2.0**-30))};": bits(1 - 2.0**-24),
    f"fma.rm.f32 {{f}}, {f32(1)}, {f32(1)}, {f32(2.0**-30)};": bits(1.0),
    f"mul.ftz.f32 {{f}}, {f32(TINY)}, {f32(4)};": 0,
    f"mul.f32 {{f}}, {f32(TINY)}, {f32(4)};": bits(4 * TINY),
    f"div.rn.f32 {{f}}, {f32(1)}, {f32(4)};": bits(0.25),
    f"rcp.rn.f32 {{f}}, {f32(-2)};": bits(-0.5),
    f"rcp.approx.ftz.f64 {{g}}, {f64(3)};": bits64(1 / 3) & 0xFFFFFFFF00000000,
    f"sqrt.rn.f64 {{g}}, {f64(2)};": bits64(math.sqrt(2)),
    f"ex2.approx.ftz.f32 {{f}}, {f32(-150)};": 0,
    f"ex2.approx.ftz.f32 {{f}}, {f32(3)};": bits(8.0),
    f"max.f32 {{f}}, {f32(math.nan)}, {f32(1)};": bits(1.0),
    f"neg.f32 {{f}}, {f32(0)};": 0x80000000,
    f"abs.f32 {{f}}, {f32(-3)};": bits(3.0),
    f"cvt.sat.f32.f32 {{f}}, {f32(math.nan)};": 0,
    f"cvt.sat.f32.f32 {{f}}, {f32(7)};": bits(1.0),
    f"cvt.rn.f32.f64 {{f}}, {f64(1 + 2.0**-24)};": bits(1.0),
    f"cvt.f64.f32 {{g}}, {f32(1.5)};": bits64(1.5),
    f"cvt.rzi.s32.f32 {{r}}, {f32(-2.7)};": 2**32 - 2,
    f"cvt.rni.s32.f32 {{r}}, {f32(2.5)};": 2,
    f"cvt.rzi.u32.f64 {{r}}, {f64(-1)};": 0,
    f"cvt.rzi.s32.f32 {{r}}, {f32(1e20)};": 2**31 - 1,
    "cvt.rn.f32.s64 {f}, -3;": bits(-3.0),
    f"cvt.rn.bf16.f32 {{h}}, {f32(1 + 2.0**-8)};": 0x3F80,
    f"cvt.rn.bf16.f32 {{h}}, {f32(-1 - 3 * 2.0**-8)};": 0xBF82,
    f"cvt.rn.bf16.f32 {{h}}, {f32(math.nan)};": 0x7FFF,
    f"cvt.rn.bf16.f32 {{h}}, {f32(3.4e38)};": 0x7F80,
    f"cvt.rn.f16.f32 {{h}}, {f32(1 + 2.0**-11)};": 0x3C00,
    f"cvt.rn.f16.f32 {{h}}, {f32(-1 - 3 * 2.0**-11)};": 0xBC02,
    f"cvt.rn.f16.f32 {{h}}, {f32(65519)};": 0x7BFF,
    f"cvt.rn.f16.f32 {{h}}, {f32(65520)};": 0x7C00,
    f"cvt.rn.f16.f32 {{h}}, {f32(2047.6 * 2.0**-25)};": 0x0400,
    f"cvt.rn.f16.f32 {{h}}, {f32(5 * 2.0**-25)};": 0x0002,
    f"cvt.rn.f16.f32 {{h}}, {f32(math.nan)};": 0x7FFF,
    f"cvt.rn.bf16x2.f32 {{r}}, {f32(1)}, {f32(-2)};": 0x3F80C000,
    f"cvt.rn.f16x2.f32 {{r}}, {f32(1)}, {f32(-2)};": 0x3C00C000,
    "mov.b16 %h2, 1; cvt.f32.f16 {f}, %h2;": bits(2.0**-24),
    "mov.b16 %h2, 48128; cvt.f32.f16 {f}, %h2;": bits(-1.0),
    "mov.b16 %h2, 31744; cvt.f32.f16 {f}, %h2;": bits(math.inf),
    "cvt.s64.s32 {d}, -3;": 2**64 - 3,
    "cvt.u64.u32 {d}, -3;": 2**32 - 3,
    "cvt.u32.u64 {r}, 4294967299;": 3,
    "mov.b64 {d}, {{1, 2}};": 2**33 + 1,
}
REGISTERS = {"h": "%h1", "r": "%r1", "d": "%rd3", "f": "%f1", "g": "%fd1", "p": "%p1"}
STORES = {
    "h": "cvt.u64.u16 %rd3, %h1;",
    "r": "cvt.u64.u32 %rd3, %r1;",
    "d": "",
    "f": "mov.b32 %r1, %f1; cvt.u64.u32 %rd3, %r1;",
    "g": "mov.b64 %rd3, %fd1;",
    "p": "selp.b64 %rd3, 1, 0, %p1;",
}


def test_numbers(machine):
    body = "mov.u32 %r9, %tid.x; setp.ne.s32 %p7, %r9, 0; @%p7 bra $end;\n"
    for i, text in enumerate(NUMBERS):
        result = next(letter for letter in REGISTERS if f"{{{letter}}}" in text)
        said = text.replace(f"{{{result}}}", REGISTERS[result]).replace("{{", "{").replace("}}", "}")
        body += f"{said} {STORES[result]} st.global.u64 [%rd2+{8 * i}], %rd3;\n"
    nothing = torch.zeros(1, dtype=torch.int64)
    out, kernel = run(machine, body + "$end:", nothing, torch.zeros(len(NUMBERS), dtype=torch.int64))
    found = {text: got % 2**64 for text, got in zip(NUMBERS, out.tolist(), strict=True)}
    assert found == NUMBERS
    executed = kernel.executed()
    # The lane that goes on and those that do not.
    assert executed["setp.ne.s32"] == 32 and executed["fma.rm.f32"] == 2 and executed["st.global.u64"] == len(NUMBERS)


LANE = "mov.u32 %r9, %tid.x; mul.wide.u32 %rd4, %r9, 4; add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4;\n"
INTS = torch.arange(100, 132, dtype=torch.int32)
SHUFFLES = {  # instruction -> source lane of each
    "shfl.sync.bfly.b32 %r2|%p1, %r1, 5, 31, -1;": lambda lane: lane ^ 5,
    "shfl.sync.up.b32 %r2|%p1, %r1, 3, 0, -1;": lambda lane: lane - 3 if lane >= 3 else lane,
    "shfl.sync.down.b32 %r2|%p1, %r1, 3, 31, -1;": lambda lane: lane + 3 if lane + 3 < 32 else lane,
    "shfl.sync.idx.b32 %r2, %r1, 7, 31, -1;": lambda lane: 7,
    "shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 6175, -1;": lambda lane: lane ^ 1,  # segments of 8 lanes: 0x181f
}


@pytest.mark.parametrize("text", SHUFFLES)
def test_shuffles(machine, text):
    body = LANE + f"ld.global.u32 %r1, [%rd5]; {text} st.global.u32 [%rd6], %r2;"
    out, _ = run(machine, body, INTS, torch.zeros_like(INTS))
    assert out.tolist() == [100 + SHUFFLES[text](lane) for lane in range(32)]


def test_votes(machine):
    body = LANE + "setp.lt.u32 %p1, %r9, 5; vote.sync.ballot.b32 %r1, %p1, -1; st.global.u32 [%rd6], %r1;"
    out, _ = run(machine, body, INTS, torch.zeros_like(INTS))
    assert out.tolist() == [31] * 32


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@pytest.mark.parametrize("turned", [False, True], ids=["straight", "turned"])
def test_matrix_product(machine, kind, dtype, turned):
    """a [16, 16] b [16, 8] by ldmatrix and mma, b stored along either index. All numbers are whole and exact."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 9, shape, generator=generator).to(dtype) for shape in ((16, 16), (16, 8)))
    # Shared memory: a at 0 in rows of 32 bytes, b at 512: [16, 8] or [8, 16].
    stored = torch.cat([a.flatten(), (b if turned else b.T.contiguous()).flatten()]).view(torch.int16)
    body = LANE + "shl.b32 %r1, %r9, 4; mov.u32 %r2, pool; add.s32 %r1, %r1, %r2; mul.wide.u32 %rd4, %r9, 16;\n"
    body += "add.s64 %rd5, %rd1, %rd4;\n"
    body += "cp.async.cg.shared.global [%r1], [%rd5], 16; setp.gt.u32 %p1, %r9, 15;\n"
    body += "@%p1 bra $waits; cp.async.ca.shared.global [%r1+512], [%rd5+512], 16;\n"
    body += "$waits: cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n"
    # a's matrices: rows 0-7 and 8-15, then the same eight columns on.
    body += "and.b32 %r3, %r9, 15; shr.u32 %r4, %r9, 4; shl.b32 %r3, %r3, 5; shl.b32 %r4, %r4, 4;\n"
    body += "add.s32 %r3, %r3, %r4; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];\n"
    if turned:
        body += "and.b32 %r3, %r9, 15; shl.b32 %r3, %r3, 4;\n"
        body += "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r10, %r11}, [%r3+512];\n"
    else:
        body += "and.b32 %r3, %r9, 7; shl.b32 %r3, %r3, 5; and.b32 %r4, %r9, 8; shl.b32 %r4, %r4, 1;\n"
        body += "add.s32 %r3, %r3, %r4; ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r10, %r11}, [%r3+512];\n"
    body += "mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;\n"
    body += f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%f1, %f2, %f3, %f4}}, "
    body += "{%r5, %r6, %r7, %r8}, {%r10, %r11}, {%f1, %f2, %f3, %f4};\n"
    body += "shr.u32 %r3, %r9, 2; and.b32 %r4, %r9, 3; shl.b32 %r3, %r3, 5; shl.b32 %r4, %r4, 3;\n"
    body += "add.s32 %r3, %r3, %r4; cvt.u64.u32 %rd4, %r3; add.s64 %rd6, %rd2, %rd4;\n"
    body += "st.global.v2.f32 [%rd6], {%f1, %f2}; st.global.v2.f32 [%rd6+256], {%f3, %f4};"
    out, _ = run(machine, body, stored, torch.zeros(16, 8))
    assert torch.equal(out, a.float() @ b.float())


def test_copy_fills_with_zeros(machine):
    body = LANE + "setp.ne.s32 %p1, %r9, 0; @%p1 bra $end; mov.u32 %r2, pool; mov.u32 %r3, 8;\n"
    body += "cp.async.cg.shared.global [%r2], [%rd1], 16, %r3; cp.async.commit_group; cp.async.wait_group 0;\n"
    body += "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2]; st.global.v4.u32 [%rd2], {%r4, %r5, %r6, %r7};\n$end:"
    out, _ = run(machine, body, INTS, torch.zeros(4, dtype=torch.int32))
    assert out.tolist() == [100, 101, 0, 0]


FAULTS = {
    "race": (
        "shl.b32 %r1, %r9, 2; st.shared.u32 [%r1], %r9; xor.b32 %r1, %r1, 128;\n.loc 1 42 3\nld.shared.u32 %r2, [%r1];",
        "kernel.cu:42: .*(race: reads|which nobody has written)",
    ),
    "no wait": (
        "shl.b32 %r1, %r9, 4; cp.async.ca.shared.global [%r1], [%rd5], 4;\ncp.async.commit_group;\n"
        ".loc 1 43 3\nld.shared.u32 %r2, [%r1];",
        "kernel.cu:43: .*an asynchronous copy is still under way",
    ),
    "out of bounds": ("st.global.u32 [%rd6+4096], %r9;", "writes global memory outside every buffer"),
    "input": ("st.global.u32 [%rd5], %r9;", "writes an input: in at byte"),
    "unwritten": ("ld.global.u32 %r1, [%rd6];", "reads out at byte .* which nobody has written"),
    "misaligned": ("ld.global.u32 %r1, [%rd5+2];", "is misaligned: in at byte"),
    "lanes apart": (
        "setp.lt.u32 %p1, %r9, 16; @%p1 bra $end; shfl.sync.bfly.b32 %r2, %r9, 1, 31, -1;\n$end:",
        "deadlock in block",
    ),
    "barrier missed": ("setp.lt.u32 %p1, %r9, 16; @%p1 bra $end; bar.sync 0;\n$end:", "deadlock in block"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported_with_their_place(machine, name):
    text, says = FAULTS[name]
    threads = 64 if name == "race" else 32
    with pytest.raises(KernelFault, match=says):
        run(machine, LANE.replace("\n", "\n.loc 1 41 3\n") + text, INTS.repeat(2), torch.zeros(64).int(), threads)


@pytest.mark.parametrize(
    "text",
    [
        "frobnicate.b32 %r1, %r2;",
        "add.rz.f32 %f1, %f2, %f3;",
        "cvt.u32.f32 %r1, %f1;",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, "
        "{%f1, %f2, %f3, %f4};",
        "ld.local.u32 %r1, [%rd1];",
        "cp.async.cg.shared.global [%r1], [%rd1], 8;",
        "add.s32 %r1, %r2, %undeclared;",
        "atom.global.add.f32 %f1, [%rd1], %f2;",
    ],
)
def test_what_is_not_known_is_refused(text):
    """And not executed as something like it."""
    with pytest.raises(Untranslatable, match="kernel"):
        translated(entries(HEAD + text + "\nret;\n}\n")[0])
