"""Runs the PTX that nvcc makes of the kernels, on the fibers and with the checks of tests/emulator.

The emulator compiles the kernels' source with g++ and replaces ``primitives.cuh``, so neither nvcc's code generation
nor the inline PTX takes part. Here both do: nvcc compiles for compute_80, :mod:`translate` turns each entry into C++
statement by statement, and a launch of the emulator's library runs that in place of its own kernel. An entry is
translated and compiled when it is first launched. docs/kernels.md says what remains unproven (ptxas, caches, time).
"""

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests import emulator
from tests.emulator.ptx import build
from tests.emulator.ptx.build import Kernel, why_absent

__all__ = ["Launch", "PtxEmulator", "why_absent"]


@dataclass
class Launch:
    """A launch and what it took: ``opcodes`` executed by all threads together, ``counters`` of the emulator. Where only
    a sample of the blocks was run, both are scaled up to the grid."""

    kernel: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    opcodes: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def instructions(self) -> int:
        return sum(self.opcodes.values())


class _Launch(ctypes.Structure):
    _fields_ = [("kernel", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("grid_x", "grid_y", "threads", "shared_bytes")
    ]


_FindBody = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Launch))


@dataclass
class _Kernels:
    """nvcc's kernels of one source tree, loaded as they are launched."""

    csrc: Path
    operation: str
    entries: dict = field(default_factory=dict)
    loaded: dict[str, Kernel] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.loaded:
            if not self.entries:
                self.entries.update(build.kernels_of(self.csrc, self.operation))
            self.loaded[name] = Kernel(build.library_of(self.entries[name]))
        return self.loaded[name]


class PtxEmulator(emulator.Emulator):
    """An :class:`~tests.emulator.Emulator` whose kernels are nvcc's, of all operations or of one; ``library`` holds
    their launchers."""

    def __init__(self, library: Path, csrc: Path = emulator.CSRC, operation: str = "*"):
        # The translated entries find the emulator's functions in what is loaded for all.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        super().__init__(library)
        self.kernels = _Kernels(csrc, operation)
        self.launches: list[Launch] = []
        self.sample = 0  # blocks of each launch that are run, for counts alone; 0 is all
        self._before: dict[str, int] | None = None
        offsets = build.symbols(library)
        base = ctypes.cast(self.library.simt_report, ctypes.c_void_p).value - offsets["simt_report"]
        self._names = {base + offset: name for name, offset in offsets.items()}
        self._failure: BaseException | None = None
        self._find = _FindBody(self._body)

    def _body(self, launch):
        try:
            asked = launch.contents
            name = self._names[asked.kernel]
            kernel = self.kernels[name]
            self._close()
            kernel.reset()
            self._before = self._counted()
            self.launches.append(Launch(name, (asked.grid_x, asked.grid_y), asked.threads, asked.shared_bytes))
            return kernel.address
        except BaseException as error:  # no exception crosses C; `call` raises it
            self._failure = error
            return None

    def _counted(self):
        counters = self.counters()
        return {name: getattr(counters, name) for name, _ in counters._fields_}

    def _close(self):
        """Notes what the latest launch took."""
        if self._before is None:
            return
        launch = self.launches[-1]
        run = min(self.sample or launch.blocks, launch.blocks)
        for opcode, times in self.kernels[launch.kernel].executed().items():
            launch.opcodes[opcode] = times * launch.blocks // run
        for name, value in self._counted().items():
            launch.counters[name] = (value - self._before[name]) * launch.blocks // run
        launch.counters["launches"] = 1
        self._before = None

    def result(self, name, shape, dtype):
        if not self.sample:
            return super().result(name, shape, dtype)
        # What blocks that are not run would have written is read by others.
        tensor = torch.zeros(shape, dtype=dtype)
        return tensor, self.buffer(name, tensor, writable=True)

    def call(self, function, *arguments):
        self._failure = None
        self.library.simt_set_find_body(self._find)
        self.library.simt_set_sample(ctypes.c_int64(self.sample))
        try:
            super().call(function, *arguments)
            self._close()
        except emulator.KernelFault:
            if self._failure:
                raise self._failure from None
            raise
        finally:
            self._before = None
            self.library.simt_set_find_body(None)
            self.library.simt_set_sample(ctypes.c_int64(0))

    def reset(self) -> None:
        """Forgets launches and counts."""
        self.library.simt_reset_counters()
        self.launches.clear()
