"""Decides whether and how petx's CUDA kernels are built.

PETX_CUDA=auto (default)  build them if torch has CUDA and nvcc is found, else say why not and build for the CPU
PETX_CUDA=1               build them or stop with the reason
PETX_CUDA=0               CPU only
PETX_CUDA=check           compile and link them without a GPU and without a CUDA torch, to prove that they build

PETX_CUDA_ARCHS="8.0;9.0+PTX" replaces the default architectures.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from buildtools import stop

# Ampere, Hopper and both Blackwells; PTX of the oldest, which every later card accepts (PTX of 12.0 has no image for
# 11.0), and the sources ask for nothing newer. Set here because torch's own detection fails if no GPU is visible.
DEFAULT_ARCHITECTURES = "8.0+PTX;9.0;10.0;12.0"


@dataclass(frozen=True)
class CudaPlan:
    mode: str  # full, check or absent
    reason: str = ""  # why absent
    nvcc: str = ""
    version: str = ""
    architectures: list[str] = field(default_factory=list)

    def compile_flags(self):
        flags = []
        for name in self.architectures:
            number = name.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if name.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags

    def library_folders(self):
        """Where nvcc itself looks for libraries, so that wrappers and every layout of a toolkit work."""
        dry_run = subprocess.run(
            [self.nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull], capture_output=True, text=True
        )
        libraries = re.search(r"LIBRARIES=(.*)", dry_run.stderr)
        return re.findall(r'-L([^"\s]+)', libraries[1]) if libraries else []


def plan_cuda(torch):
    """The :class:`CudaPlan` for a build against ``torch``, as the environment asks."""
    wanted = os.environ.get("PETX_CUDA", "auto")
    if wanted not in ("auto", "0", "1", "check"):
        stop(f"PETX_CUDA must be auto, 0, 1 or check, got {wanted!r}")
    if wanted == "0":
        return CudaPlan("absent", "PETX_CUDA=0 was set")
    nvcc = _find_nvcc()
    version = _nvcc_version(nvcc) if nvcc else ""
    reason = _obstacle(torch, nvcc, version, needs_torch_cuda=wanted != "check")
    if reason and wanted == "auto":
        return CudaPlan("absent", reason)
    if reason:
        stop(f"PETX_CUDA={wanted}, but {reason}")
    return CudaPlan("check" if wanted == "check" else "full", "", nvcc, version, _architectures(nvcc))


def _obstacle(torch, nvcc, version, needs_torch_cuda):
    if needs_torch_cuda and not torch.cuda:
        return f"the installed torch {torch.version} has no CUDA"
    if not nvcc:
        return "no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda"
    if needs_torch_cuda and version.split(".")[0] != torch.cuda.split(".")[0]:
        return f"nvcc is CUDA {version} while torch {torch.version} is built for CUDA {torch.cuda}"
    return ""


def _find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin", "nvcc")] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, map(str, candidates))), None)


def _nvcc_version(nvcc):
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if not release:
        stop(f"{nvcc} --version gave no release number: {(answer.stdout + answer.stderr).strip()}")
    return release[1]


def _architectures(nvcc):
    chosen = os.environ.get("PETX_CUDA_ARCHS")
    names = (chosen or DEFAULT_ARCHITECTURES).split(";")
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            stop(f"PETX_CUDA_ARCHS must look like {DEFAULT_ARCHITECTURES!r}, got {chosen!r}")
    if chosen:
        return names
    # An older toolkit does not know the newest of the defaults.
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    return [name for name in names if f"sm_{name.removesuffix('+PTX').replace('.', '')}" in known]
