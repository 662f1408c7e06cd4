"""Runs the CUDA kernels of csrc/cuda on the CPU; docs/kernels.md says how and why.

:func:`build` compiles kernels and emulator with g++ into one library, :class:`Emulator` calls it with torch tensors.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]

ORDERS = {"ascending": (0, 0), "descending": (1, 0), "random-1": (2, 1), "random-2": (2, 2)}
GUARD = 4096  # bytes on each side of a tensor that belong to no buffer


class KernelFault(Exception):
    """A kernel did what a GPU leaves undefined; the text is the emulator's report."""


def build(sources, library, flags=FLAGS):
    """Compile ``sources`` (.cu and .cpp) together with the emulator into ``library``, in parallel."""
    sources = [*sources, *sorted(HERE.glob("*.cpp"))]

    def compiled(source):
        return compile_unit(source, library.with_name(f"{library.stem}-{object_name(source)}"), CSRC, flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return link(list(pool.map(compiled, sources)), library, flags)


def object_name(source):
    """Of a source's object file: with its folder, since each operation has a forward.cu."""
    return f"{source.parent.name}-{source.stem}.o"


def compile_unit(source, target, csrc=CSRC, flags=FLAGS):
    """One object file; the emulator's primitives.cuh is found before the GPU's."""
    run([*compiler(), *flags, f"-I{HERE}", f"-I{csrc}", "-x", "c++", "-c", source, "-o", target])
    return target


def link(objects, library, flags=()):
    run([*compiler(), *flags, "-shared", "-Wl,-Bsymbolic", *objects, "-o", library])
    return library


def compiler():
    return os.environ.get("CXX", "g++").split()


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


@contextlib.contextmanager
def made_once(target):
    """Yields a path to make ``target`` at, or None where it is there; others who want it wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        if not target.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        yield unfinished
        os.replace(unfinished, target)


def kernels(flags=FLAGS):
    """All of ``csrc/cuda`` with what calls it, as the sources are now."""
    sources = [*sorted(CSRC.glob("cuda/*/*.c*[!h]")), *sorted(HERE.glob("operations/*.cpp"))]
    return kept("kernels", sources, flags)


def kept(name, sources, flags=FLAGS):
    """The library of :func:`build` for the files as they are now, kept in the build folder; one process makes it while
    others wait."""
    folders = (CSRC / "cuda", CSRC / "kernels", HERE)
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix[:2] in (".c", ".h")]
    content = hashlib.sha256(" ".join([name, *flags, os.environ.get("CXX", "")]).encode())
    for path in files:
        content.update(str(path).encode() + path.read_bytes())
    library = HERE.parents[1] / "build" / "emulator" / content.hexdigest()[:16] / f"{name}.so"
    with made_once(library) as unfinished:
        if unfinished:
            with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
                os.replace(build(sources, Path(scratch, library.name), flags=flags), unfinished)
    return library


class Counters(ctypes.Structure):
    """What was counted since the last reset; bytes are those the kernels asked for, cached or not."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "launches barriers global_read global_written matrix_products bank_conflicts "
            "distinct_read distinct_written sectors_read sectors_written"
        ).split()
    ]


class Emulator:
    """A built library, with one call's buffers at a time."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.simt_report.restype = self.library.simt_conflicts.restype = ctypes.c_char_p
        self.order = "ascending"
        self.offset = 0  # of inputs, in elements, from where sixteen bytes may be moved at once
        self._guarded = []

    def buffer(self, name, tensor, writable=False, unwritten=False):
        """The address of a copy of ``tensor`` that lies alone; None stays None. What is ``unwritten`` may be read only
        where a kernel has written."""
        if tensor is None:
            return None
        contents = 2 if unwritten else int(writable)  # Contents in simt.h
        size = tensor.numel() * tensor.element_size()
        begin = 0 if writable else self.offset * tensor.element_size()
        room = torch.full((begin + size + 2 * GUARD,), 0xFF, dtype=torch.uint8)
        view = room[GUARD + begin : GUARD + begin + size]
        view.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        self._guarded.append((tensor, view, room, writable))
        self.library.simt_add_buffer(name.encode(), ctypes.c_void_p(view.data_ptr()), ctypes.c_int64(size), contents)
        return view.data_ptr()

    def result(self, name, shape, dtype):
        """A tensor for a kernel's result, filled with NaN, and its address."""
        tensor = torch.empty(shape, dtype=dtype)
        tensor.view(-1).view(torch.uint8).fill_(0xFF)
        return tensor, self.buffer(name, tensor, writable=True, unwritten=True)

    def call(self, function, *arguments):
        """Run the library's ``function``, raise :class:`KernelFault` or fetch the results back."""
        order, seed = ORDERS[self.order]
        self.library.simt_set_order(order, ctypes.c_uint64(seed))
        try:
            if getattr(self.library, function)(*arguments):
                raise KernelFault(self.library.simt_report().decode())
            for tensor, view, room, writable in self._guarded:
                assert (room[:GUARD] == 0xFF).all() and (room[-GUARD:] == 0xFF).all()
                if writable:
                    tensor.view(-1).view(torch.uint8).copy_(view)
        finally:
            self._guarded.clear()
            self.library.simt_clear_buffers()

    def counters(self):
        counters = Counters()
        self.library.simt_counters(ctypes.byref(counters))
        return counters

    def conflicts(self):
        """ "file:line: count" of each place with bank conflicts since the last reset."""
        return self.library.simt_conflicts().decode()
