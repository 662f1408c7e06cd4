"""Whether the petx that is installed here is a whole CUDA build; exit code 1, with what is missing, if it is not."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

NEEDED = ("libtorch_cuda.so", "libtorch_cpu.so", "libc10.so")
DIRECTIONS = ("fwd", "bwd")


def missing(build: dict[str, Any], linked: list[str], registered: set[str], torch_cuda: str | None) -> list[str]:
    """What a library lacks, in words: ``build`` is its ``build_info()``, ``linked`` the libraries that it names as
    needed, ``registered`` the operators ("mode_cores_fwd") that have a CUDA kernel."""
    found = []
    if not torch_cuda:
        found.append("torch has no CUDA")
    if build["cuda_mode"] != "full":
        found.append(f"cuda_mode is {build['cuda_mode']!r}, not 'full': {build['cuda_absent_reason'] or 'no reason'}")
    found += [f"it is not linked against {name}" for name in NEEDED if name not in linked]
    if not build["operations"]:
        found.append("it has no operation at all")
    for stem in build["operations"]:
        if stem not in build["cuda_operations"]:
            found.append(f"{stem} was built without CUDA")
        found += [f"{stem}_{way} has no CUDA kernel" for way in DIRECTIONS if f"{stem}_{way}" not in registered]
    return found


def needed_by(library: Path) -> list[str]:
    """The shared libraries that ``library`` names as needed."""
    listed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", listed)


def main() -> int:
    import torch

    from petx import ops

    if ops._C is None:
        print(f"petx._C cannot be loaded: {ops._load_error}")
        return 1
    build, library = ops._C.build_info(), Path(ops._C.__file__)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    operators = [f"{stem}_{way}" for stem in build["operations"] for way in DIRECTIONS]
    registered = {name for name in operators if has_kernel(f"petx::{name}", "CUDA")}
    linked = needed_by(library)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; nvcc {build['cuda_version'] or 'none'}")
    print(f"{library.name}: {library.stat().st_size / 1e6:.1f} MB, for {', '.join(build['cuda_architectures'])}")
    print(f"needs {', '.join(linked)}")
    print(f"CUDA kernels: {', '.join(sorted(registered))}")
    for stem in build["operations"]:
        print(f"{stem}, cuda: {ops.why_absent(stem, 'cuda') or 'compiled kernel'}")
    lacks = missing(build, linked, registered, torch.version.cuda)
    for line in lacks:
        print(f"MISSING: {line}")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
