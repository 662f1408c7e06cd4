"""The emulated kernels as torch's operators: of each operation a pair of files that bear its name.

``<stem>.cpp`` turns numbers and pointers into the parameter struct and calls the launchers; ``<stem>.py`` turns the
operator's own arguments into these. Its ``IMPLEMENTATIONS`` maps an operator's name to a function that takes the
emulator and the operator's arguments.
"""

import contextlib
import ctypes
import functools
import importlib
import pkgutil
import warnings

import torch

__all__ = ["DTYPES", "addresses", "integers", "in_place_of_cpu_kernels", "reals", "workspace"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of DType in kernels/types.h


def integers(*values):
    """A C array of int64; a dtype is its number, a bool 0 or 1."""
    values = [DTYPES.index(value) if isinstance(value, torch.dtype) else int(value) for value in values]
    return (ctypes.c_int64 * len(values))(*values)


def reals(*values):
    return (ctypes.c_double * len(values))(*values)


def addresses(*values):
    """A C array of pointers; None is null."""
    return (ctypes.c_void_p * len(values))(*values)


def workspace(emulator, asked, *call):
    """The address of a workspace of as many bytes as the library's function ``asked`` wants for this call."""
    size = getattr(emulator.library, asked)
    size.restype = ctypes.c_int64
    return ctypes.c_void_p(emulator.result("workspace", (size(*call),), torch.uint8)[1])


@contextlib.contextmanager
def in_place_of_cpu_kernels(emulator):
    """The operators on CPU tensors are the emulated CUDA kernels: all above them stays as users call it."""
    library = torch.library.Library("petx", "IMPL")
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for module in modules:
            for name, run in module.IMPLEMENTATIONS.items():
                library.impl(name, functools.partial(run, emulator), "CPU", allow_override=True)
    try:
        yield emulator
    finally:
        library._destroy()
