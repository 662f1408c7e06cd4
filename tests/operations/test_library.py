"""The compiled library: loads, registers what it says, and depends on torch's stable ABI alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import petx
from petx import ops

pytestmark = pytest.mark.skipif(ops._C is None, reason=f"needs the compiled library: {ops._load_error}")


@pytest.fixture(scope="module")
def info():
    return ops._C.build_info()


def test_build_info(info):
    assert info["version"] == petx.__version__
    assert info["operations"] and info["compiler"] and "-std=c++20" in info["flags"]
    assert info["cuda"] == (info["cuda_mode"] != "absent") == (not info["cuda_absent_reason"])


def test_kernels_are_registered(info):
    """For CUDA too, where it was built: a check build proves that much without a GPU."""
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    assert info["cuda"] or not info["cuda_operations"]
    for key, stems in (("CPU", info["operations"]), ("CUDA", info["cuda_operations"])):
        for stem in stems:
            assert registered(f"petx::{stem}_fwd", key) and registered(f"petx::{stem}_bwd", key)


@pytest.mark.slow
def test_products_through_torchs_dispatcher():
    """The way that is taken where torch's library exports no BLAS."""
    chosen = "test_kernel_matches_reference and (float32 or float64)"
    tests = ["tests/operations/test_operations.py", "-q", "-k", chosen]
    environment = os.environ | {"PETX_BLAS": "torch"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stable_abi():
    call = "import sys; from torch_abi_audit.cli import main; sys.exit(main(sys.argv[1:]))"
    audit = [sys.executable, "-c", call, "--check", "torch", ops._C.__file__]
    done = subprocess.run(audit, capture_output=True, text=True)
    assert done.returncode == 0 and "STABLE" in done.stdout, done.stdout + done.stderr
