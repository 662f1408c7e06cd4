"""nvcc's PTX of the kernels, and shared libraries made from it, kept in the build folder by what they were made of."""

import ctypes
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from buildtools.cuda import _find_nvcc
from tests.emulator import CSRC, HERE, compiler, made_once, run
from tests.emulator.ptx.text import Entry, entries
from tests.emulator.ptx.translate import translated

CACHE = HERE.parents[1] / "build" / "emulator" / "ptx"
# The oldest architecture the kernels run on: what nvcc makes for the others comes from the same PTX.
NVCC_FLAGS = ["-std=c++20", "-O3", "-arch=compute_80", "-lineinfo", "-ptx", "-Werror", "all-warnings"]
# Without optimisation: what is run of an entry takes less time than g++ saves. Contracted multiply-adds are those that
# nvcc wrote, and no others.
CXX_FLAGS = ["-std=c++20", "-O0", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w"]
INCLUDE = re.compile(r'#include "([\w./]+)"')
RUNTIME = HERE / "ptx" / "runtime" / "instructions.h"  # what every translated entry includes
HEADERS = [HERE / "simt.h", HERE / "shadow.h", *sorted(RUNTIME.parent.glob("*.h"))]


def why_absent() -> str | None:
    """Why nvcc's code cannot be run here, or None."""
    return None if _find_nvcc() else "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"


@cache
def nvcc_version() -> str:
    return subprocess.run([_find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


def digest(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()[:24]


def sources(csrc: Path = CSRC, operation: str = "*") -> list[Path]:
    """The files with kernels, of one operation or of all."""
    return [path for path in sorted(csrc.glob(f"cuda/{operation}/*.cu")) if "PETX_KERNEL" in path.read_text()]


def with_included(source: Path, csrc: Path) -> dict[str, bytes]:
    """The text of a file and of all of csrc that it includes, directly or not, by path."""
    found: dict[str, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(csrc))
        if name not in found:
            found[name] = path.read_bytes()
            waiting += [csrc / other for other in INCLUDE.findall(path.read_text())]
    return dict(sorted(found.items()))


def ptx_of(source: Path, csrc: Path = CSRC) -> Path:
    """What nvcc makes of one file, with everything that it includes in the name."""
    texts = itertools.chain.from_iterable(with_included(source, csrc).items())
    name = digest(nvcc_version(), " ".join(NVCC_FLAGS), str(source.relative_to(csrc)), *texts)
    target = CACHE / f"{source.parent.name}-{source.stem}-{name}.ptx"
    with made_once(target) as unfinished:
        if unfinished:
            run([_find_nvcc(), *NVCC_FLAGS, f"-I{csrc}", source, "-o", unfinished])
    return target


def assembled(ptx: Path, architecture: str) -> tuple[Path, str]:
    """The machine code of such a file (a cubin) and what ``ptxas -v`` says of each kernel."""
    cubin = ptx.with_suffix(f".{architecture}.cubin")
    said = cubin.with_suffix(".txt")
    with made_once(cubin) as unfinished:
        if unfinished:
            tool = Path(_find_nvcc()).resolve().with_name("ptxas")
            command = [tool, f"-arch={architecture}", "-v", ptx, "-o", unfinished]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            said.write_text(done.stdout + done.stderr)
    return cubin, said.read_text()


def kernels_of(csrc: Path = CSRC, operation: str = "*") -> dict[str, Entry]:
    """Every kernel by its name. What several files instantiate is taken once: one source, one name."""
    found: dict[str, Entry] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = list(pool.map(lambda source: ptx_of(source, csrc), sources(csrc, operation)))
    for path in files:
        for entry in entries(path.read_text()):
            if entry.name in found and "_GLOBAL__N_" in entry.name:
                raise ValueError(f"two files have a kernel {entry.name} in an unnamed namespace")
            found.setdefault(entry.name, entry)
    return found


class Kernel:
    """A translated entry, loaded. ``counts`` goes up with each call."""

    def __init__(self, library: Path):
        described = json.loads(library.with_suffix(".json").read_text())
        self.name, self.opcodes = described["name"], described["opcodes"]
        self.library = ctypes.CDLL(str(library))
        self.counts = (ctypes.c_int64 * len(self.opcodes)).in_dll(self.library, "counts")
        self.address = ctypes.cast(self.library.body, ctypes.c_void_p).value

    def executed(self) -> dict[str, int]:
        """Opcode -> how often a thread executed it since the last reset."""
        found: dict[str, int] = {}
        for count, opcodes in zip(self.counts, self.opcodes, strict=True):
            for opcode, times in opcodes.items() if count else ():
                found[opcode] = found.get(opcode, 0) + count * times
        return found

    def reset(self) -> None:
        ctypes.memset(self.counts, 0, ctypes.sizeof(self.counts))


@cache
def runtime() -> str:
    """A name for the runtime, the compiler and its flags as they are now."""
    headers = [path.read_bytes() for path in (*HEADERS, CSRC / "kernels" / "types.h")]
    return digest(" ".join([*compiler(), *CXX_FLAGS]), *headers)


@cache
def read_before() -> Path:
    """A folder with the runtime as g++ has read it, where it looks before the file: half a second less an entry."""
    folder = CACHE / f"runtime-{runtime()}"
    with made_once(folder / RUNTIME.relative_to(HERE).with_suffix(".h.gch")) as unfinished:
        if unfinished:
            run([*compiler(), *CXX_FLAGS, f"-I{HERE}", f"-I{CSRC}", "-x", "c++-header", RUNTIME, "-o", unfinished])
    return folder


def library_of(entry: Entry) -> Path:
    """The shared library of one entry; its functions of the emulator are those of the process that loads it."""
    unit = translated(entry)
    library = CACHE / f"{digest(unit.source, unit.described(), runtime())}.so"
    with made_once(library) as unfinished:
        if unfinished:
            source = unfinished.with_suffix(".cpp")
            source.write_text(unit.source)
            library.with_suffix(".json").write_text(unit.described())
            folders = [f"-I{folder}" for folder in (read_before(), HERE, CSRC)]
            run([*compiler(), *CXX_FLAGS, *folders, "-shared", source, "-o", unfinished])
            source.unlink()
    return library


def symbols(library: Path) -> dict[str, int]:
    """Name -> offset of what a library defines, what is not exported too."""
    tool = shutil.which("nm")
    assert tool, "nm (binutils) names the kernels of the emulator's library"
    listed = subprocess.run([tool, "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    return {name: int(at, 16) for at, name in re.findall(r"^([0-9a-f]+) [tTwW] (\w+)$", listed, re.MULTILINE)}
