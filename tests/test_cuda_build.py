"""The CUDA kernels, judged by the real compiler where there is one, and a library that holds them."""

import re
import subprocess

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from buildtools.compile import NVCC_FLAGS
from buildtools.cuda import CudaPlan, _find_nvcc
from petx import ops
from tests.cases import CASES, TABLES
from tests.checks import outputs
from tests.emulator import CSRC

ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]
SOURCES = sorted(CSRC.glob("cuda/*.cu"))
# -v tells of each kernel: its registers, and what did not fit into them.
STRICT = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v"]

nvcc = _find_nvcc()
BUILD = ops._C.build_info() if ops._C else {"cuda_mode": f"no library: {ops._load_error}"}


@pytest.mark.skipif(nvcc is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, tmp_path):
    flags = [*NVCC_FLAGS, *STRICT, f"-I{CSRC}", *CudaPlan("check", architectures=ARCHITECTURES).compile_flags()]
    command = [nvcc, *flags, "--threads", "2", "-c", source, "-o", tmp_path / "kernel.o"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        done.stdout + done.stderr,
        re.DOTALL,
    )
    assert "PETX_KERNEL" not in source.read_text() or {k[1] for k in kernels} == {"sm_80", "sm_90", "sm_100", "sm_120"}
    for name, architecture, stack, stores, loads, registers in kernels:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{name} on {architecture}: {registers} registers"


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
    monkeypatch.setattr(ops, "_fused", {(case.operation, "cuda")})  # as with PETX_CUDA_KERNELS=1
    expected = outputs(case.expected(case.inputs(torch.float32)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {name: torch.empty(shape, device="cuda") for name, shape in case.shapes.items()}
        extras = {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in case.extras().items()}
        results = outputs(case.call(tensors, extras))
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape and result.dtype == torch.float32 and result.device.type == "cuda"
