"""Compiles csrc/ into petx._C with ninja: parallel, and again only what changed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext

from buildtools import ROOT, stop
from buildtools.cuda import plan_cuda
from buildtools.torch_location import supported_torch

# torch 2.11's stable ABI: a library built against any supported torch runs on all of them.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# Not -ffast-math, which breaks NaN and infinity; these two alone let GCC vectorise what has calls and conditions.
FLAGS = ["-std=c++20", "-O3", "-g0", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
HOST_FLAGS = [*FLAGS, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-math-errno"]

# Symbols of a CUDA torch that csrc/ops calls; weak in a check build, which is loaded beside a CPU-only torch.
CUDA_SHIMS = ["aoti_torch_get_current_cuda_stream"]


class BuildExtension(build_ext):
    """setuptools' build_ext with petx's compilation in place of its own."""

    def build_extension(self, ext):
        torch = supported_torch()
        cuda = plan_cuda(torch)
        compiler = find_compiler()
        print(f"petx: torch {torch.version} in {torch.folder.parent}", flush=True)
        print(f"petx: CUDA {cuda.mode}" + (f", because {cuda.reason}" if cuda.reason else ""), flush=True)
        # One folder for every way to build (setuptools' own is a new one for each editable install).
        folder = ROOT / "build" / build_name(torch)
        folder.mkdir(parents=True, exist_ok=True)
        write_if_changed(folder / "build_info.h", build_info_header(self.distribution, torch, cuda, compiler))
        write_if_changed(folder / "weak_shims.h", "".join(f"#pragma weak {name}\n" for name in CUDA_SHIMS))
        library = folder / "_C.so"
        write_ninja_file(folder / "build.ninja", library, torch, cuda, compiler)
        run_ninja(folder)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, never the old one rewritten: a running process may have that one mapped.
        target.unlink(missing_ok=True)
        # For a while a library for all Pythons was built; left in build/lib*, it would get into wheels.
        target.with_name("_C.abi3.so").unlink(missing_ok=True)
        shutil.copyfile(library, target)


def build_name(torch):
    """The build folder's: objects for another machine lie beside this machine's, not among them."""
    name = f"{sys.implementation.cache_tag}-torch-{torch.version}"
    return f"{name}-{sysconfig.get_platform()}" if "_PYTHON_HOST_PLATFORM" in os.environ else name


def operation_names(floor):
    """The operations that have kernels on ``floor`` (cpu or cuda): a folder there, a source of its name in ops."""
    csrc = ROOT / "csrc"
    return sorted(path.stem for path in csrc.glob("ops/*.cpp") if (csrc / floor / path.stem).is_dir())


def find_compiler():
    """The C++ compiler's command: CXX, or the system's."""
    if not sys.platform.startswith("linux"):
        stop(f"petx builds on Linux, this is {sys.platform}")
    command = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not shutil.which(command[0]):
        stop("no C++ compiler found; install one (Debian and Ubuntu: apt install g++) or name it in CXX")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        stop("Python.h is missing; install the headers of this Python (Debian and Ubuntu: apt install python3-dev)")
    check_machine(command)
    return command


def check_machine(compiler):
    """End the build if the compiler's code would get the name of another machine's library.

    The name's machine is this one, or that of _PYTHON_HOST_PLATFORM, CPython's own variable for building across.
    """
    target = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True).stdout.strip()
    made, named = target.partition("-")[0], sysconfig.get_platform().rpartition("-")[2]
    if made != named and {made, named} <= {"x86_64", "aarch64"}:
        stop(
            f"{shlex.join(compiler)} compiles for {target}, and the library is to be one for {named}; to build across, "
            f"set _PYTHON_HOST_PLATFORM=linux-{made} and SETUPTOOLS_EXT_SUFFIX, as tools/aarch64.sh does"
        )


def build_info_header(distribution, torch, cuda, compiler):
    """What petx._C.build_info() answers, as a C++ header holding JSON."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    info = {
        "version": distribution.get_version(),
        "torch_version": torch.version,
        "compiler": version,
        "flags": " ".join(FLAGS),
        "cuda": cuda.mode != "absent",
        "cuda_mode": cuda.mode,
        "cuda_version": cuda.version,
        "cuda_architectures": cuda.architectures,
        "cuda_absent_reason": cuda.reason,
        "operations": operation_names("cpu"),
        "cuda_operations": operation_names("cuda") if cuda.mode != "absent" else [],
    }
    return f'#pragma once\n#define PETX_BUILD_INFO R"json({json.dumps(info)})json"\n'


def write_if_changed(path, text):
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def write_ninja_file(path, library, torch, cuda, compiler):
    """One rule a compiler; each floor sees the headers it may use and no others."""
    # Here because an sdist is made without them.
    import pybind11
    from ninja import ninja_syntax

    csrc, include, lib = ROOT / "csrc", torch.folder / "include", torch.folder / "lib"
    own = [f"-I{csrc}"]
    ops = ["-isystem", include, TORCH_TARGET, *(["-DUSE_CUDA"] if cuda.mode != "absent" else [])]
    if cuda.mode == "check":
        ops += ["-include", path.parent / "weak_shims.h"]
    module = [f"-I{path.parent}", "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    nvcc = [cuda.nvcc, *(["-ccbin", compiler[0]] if os.environ.get("CXX") else [])]
    units = [(csrc / "module.cpp", "cxx", [*HOST_FLAGS, *own, *module])]
    units += [(source, "cxx", [*HOST_FLAGS, *own, *ops]) for source in sorted(csrc.glob("ops/*.cpp"))]
    units += [(source, "cxx", [*HOST_FLAGS, *own]) for source in sorted(csrc.glob("cpu/*/*.cpp"))]
    # What a GPU would launch is asked on machines without one too.
    units += [(source, "cxx", [*HOST_FLAGS, *own]) for source in sorted(csrc.glob("cuda/*/*.cpp"))]
    links = [f"-L{lib}", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-ltorch_cpu", "-lc10"]
    if cuda.mode != "absent":
        cuda_flags = [*NVCC_FLAGS, *own, *cuda.compile_flags()]
        units += [(source, "nvcc", cuda_flags) for source in sorted(csrc.glob("cuda/*/*.cu"))]
        links += [f"-L{folder}" for folder in cuda.library_folders()]
        links += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    if cuda.mode == "full":
        links += ["-ltorch_cuda", "-lc10_cuda"]

    with path.open("w", encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors()) as stream:
        ninja = ninja_syntax.Writer(stream, width=10**6)
        ninja.rule("cxx", f"{words(compiler)} -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("nvcc", f"{words(nvcc)} -MD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", f"{words(compiler)} -shared -Wl,-s $in $flags -o $out")
        objects = []
        for source, rule, flags in units:
            objects.append(f"{source.relative_to(csrc)}.o")
            # The writer escapes a dollar in front of a space, and leaves any other to be a variable.
            source = re.sub(r"\$(?! )", "$$", str(source))
            ninja.build(objects[-1], rule, source, variables={"flags": words(flags)})
        ninja.build(library.name, "link", objects, variables={"flags": words(links)})


def words(arguments):
    """Arguments as one piece of a shell command inside a ninja file."""
    return shlex.join(map(str, arguments)).replace("$", "$$")


def run_ninja(folder):
    from ninja import BIN_DIR

    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run([Path(BIN_DIR, "ninja"), "-C", folder, *jobs]).returncode:
        stop("compiling failed, the compiler's own words are above (MAX_JOBS=1 helps if memory ran out)")
