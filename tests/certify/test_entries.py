"""The shipped cases launch every kernel that the library has: what no case launches, no certificate speaks of."""

import ctypes

import pytest
import torch

from petx import ops
from petx.certify.cases import CASES
from petx.certify.rule import outputs_and_grads
from tests.emulator import Emulator, kernels
from tests.emulator.cost.counting import short_name
from tests.emulator.operations import in_place_of_cpu_kernels
from tests.emulator.ptx import _FindBody
from tests.emulator.ptx.build import symbols
from tests.packaging.test_tools import kernels as declared

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")]
DTYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat16", torch.float16: "Half"}


class Listing(Emulator):
    """Runs nothing, and keeps the names of the kernels that it is asked for."""

    def __init__(self, library):
        super().__init__(library)
        offsets = symbols(library)
        nothing = ctypes.cast(self.library.simt_report, ctypes.c_void_p).value  # a function without effects
        base, self.launched = nothing - offsets["simt_report"], set()
        names = {base + offset: name for name, offset in offsets.items()}

        def find(launch):
            self.launched.add(short_name(names[launch.contents.kernel]))
            return nothing

        self._find = _FindBody(find)
        self.library.simt_set_find_body(self._find)


def test_every_kernel_of_every_dtype_is_launched(monkeypatch):
    names = {name.rpartition("::")[2].partition("<")[0] for name in declared()}
    listing = Listing(kernels())
    # Some have tiles for 16-bit types alone.
    had = {short_name(name) for name in symbols(kernels())}
    try:
        with in_place_of_cpu_kernels(listing):
            for trials in CASES.values():
                for trial in trials:
                    monkeypatch.undo()
                    for name, value in trial.environment.items():
                        monkeypatch.setenv(name, value)
                    for dtype in DTYPES:
                        tensors = trial.case.inputs(dtype)
                        outputs_and_grads(trial.case.run, tensors)
                        # Alone, as a certificate asks for each: sums of columns that stand beside no products.
                        for bias in {"down_bias", "up_bias"} & tensors.keys() if trial.each_gradient else ():
                            for name, tensor in tensors.items():
                                tensor.requires_grad_(name == bias)
                            outputs_and_grads(trial.case.run, tensors)
    finally:
        listing.library.simt_set_find_body(None)
    every = {f"{name}<{type_}>" for name in names for type_ in DTYPES.values()} & had
    missing = every - listing.launched
    assert not missing
    assert {name.partition("<")[0] for name in every} == names
