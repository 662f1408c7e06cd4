"""The CUDA kernels, judged by the real compiler where there is one, and a library that holds them."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from buildtools.compile import NVCC_FLAGS
from buildtools.cuda import _find_nvcc
from petx import ops
from petx.certify import choice
from tests.cases import CASES, TABLES
from tests.checks import outputs
from tests.emulator import CSRC
from tests.emulator.ptx import build

ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]
# Whose machine code is read. The whole suite assembles for the last of them; nightly, for all architectures.
READ = ["sm_80", "sm_90"]
WITHOUT = "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
SOURCES = sorted(CSRC.glob("cuda/*/*.cu"))
# -v tells of each kernel: its registers, and what did not fit into them.
STRICT = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v"]
# PTX -> what it becomes.
INSTRUCTIONS = {"mma.sync": "HMMA", "ldmatrix": "LDSM", "cp.async": "LDGSTS"}

nvcc = _find_nvcc()
BUILD = ops._C.build_info() if ops._C else {"cuda_mode": f"no library: {ops._load_error}"}


def tool_folders():
    """Where cuobjdump and nvdisasm may lie: of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, on PATH."""
    found = importlib.util.find_spec("nvidia")
    packaged = [
        str(path) for root in (found.submodule_search_locations if found else ()) for path in Path(root).glob("*/bin")
    ]
    return os.pathsep.join([*packaged, os.environ["PATH"]])


cuobjdump = shutil.which("cuobjdump", path=tool_folders())
if not shutil.which("nvdisasm", path=tool_folders()):
    cuobjdump = None


def run(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PATH": tool_folders()}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(nvcc is None, reason=WITHOUT)
@pytest.mark.parametrize("architecture", [pytest.param(READ[0], marks=pytest.mark.nightly), READ[1]])
@pytest.mark.parametrize("source", build.sources(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_compiles_without_spills(source, architecture):
    """Everything fits into registers and shared memory as the launch table (launch.cuh) claims, and the machine code
    has the instructions that the kernel asks for.

    One PTX for the oldest architecture is assembled for all: the sources ask for no architecture.
    """
    assert not re.search("__CUDA_ARCH__ *[<>=]", source.read_text())
    ptx = build.ptx_of(source)
    entries = ptx_entries(ptx)
    assert entries
    cubin, report = build.assembled(ptx, architecture)
    check_room(report, entries, [architecture])
    if cuobjdump:
        check_machine_code(run(cuobjdump, "--dump-sass", cubin), entries)


@pytest.mark.nightly
@pytest.mark.skipif(nvcc is None, reason=WITHOUT)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_compiles_for_every_architecture(source, tmp_path):
    """As the build does it, host code and all, without a warning."""
    gencode = f"-gencode=arch=compute_80,code=[{','.join(ARCHITECTURES)}]"
    keep = ["--keep", "--keep-dir", tmp_path, "-o", tmp_path / "kernel.o"]
    report = run(nvcc, *NVCC_FLAGS, *STRICT, f"-I{CSRC}", gencode, "--threads", 0, *keep, "-c", source)
    entries = ptx_entries(tmp_path / f"{source.stem}.ptx")
    assert bool(entries) == ("PETX_KERNEL" in source.read_text())
    check_room(report, entries, ARCHITECTURES)


def check_room(report, entries, architectures):
    used = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert {(name, arch) for name, arch, *_ in used} == {(name, arch) for name in entries for arch in architectures}
    for name, arch, stack, stores, loads, registers in used:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{name} on {arch}: {registers} registers"
        threads, blocks, _ = entries[name]
        room = 65536 // (threads * blocks)
        assert int(registers) <= room, f"{name} on {arch}: {registers} registers, {blocks} blocks leave {room}"


def ptx_entries(path):
    """Kernel -> threads of a block and blocks of a multiprocessor by its launch bounds, its PTX."""
    entries = {}
    for text in re.split(r"\.entry ", path.read_text())[1:] if path.is_file() else ():
        name, bounds = re.match(r"\w+", text)[0], text.partition("{")[0]
        threads, blocks = (re.search(rf"\.{word} (\d+)", bounds) for word in ("maxntid", "minnctapersm"))
        assert threads and blocks, f"{name} has no launch bounds; take them from launch.cuh"
        entries[name] = int(threads[1]), int(blocks[1]), text
    return entries


def check_machine_code(text, entries):
    functions = dict(re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", text, re.DOTALL))
    assert functions.keys() == entries.keys()
    for name, code in functions.items():
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} has local memory"
        for asked, instruction in INSTRUCTIONS.items():
            assert (asked in entries[name][2]) == (instruction in code), f"{name}: {asked} without {instruction}"
    # A source that multiplies does so on the matrix units in both 16-bit types.
    if any("mma.sync" in ptx for *_, ptx in entries.values()):
        for dtype in ("BFloat16", "Half"):
            assert any(dtype in name and "HMMA" in code for name, code in functions.items())


@pytest.mark.skipif(
    cuobjdump is None, reason="no machine code is read: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
)
def test_machine_code_can_be_read():
    assert "nvdisasm" in run(shutil.which("nvdisasm", path=tool_folders()), "--help")


holds_cuda = pytest.mark.skipif(
    BUILD["cuda_mode"] not in ("check", "full"),
    reason=f"petx._C holds no CUDA kernels ({BUILD['cuda_mode']}); PETX_CUDA=check pip install -e . builds them",
)


@holds_cuda
def test_every_operation_is_registered():
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for stem in BUILD["cuda_operations"]:
        assert registered(f"petx::{stem}_fwd", "CUDA") and registered(f"petx::{stem}_bwd", "CUDA")
    assert set(TABLES) <= set(BUILD["cuda_operations"])


@holds_cuda
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_on_a_fake_gpu(case, monkeypatch):
    """What torch.compile asks before there is a tensor: shapes, dtypes and device of the result."""
    monkeypatch.setattr(ops, "_fused", {(case.operation, "cuda")})
    monkeypatch.setenv("PETX_CUDA_KERNELS", "1")  # there is no card whose certificate could say so
    choice.forget()
    expected = outputs(case.expected(case.inputs(torch.float32)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {name: torch.empty(shape, device="cuda") for name, shape in case.shapes.items()}
        extras = {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in case.extras().items()}
        results = outputs(case.call(tensors, extras))
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape and result.dtype == torch.float32 and result.device.type == "cuda"
