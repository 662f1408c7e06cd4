"""CPU loops written for one instruction set give the bits of the others; a run takes only this machine's best."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "g++").split()
PROGRAM = r"""
#include <cstdio>
#include <type_traits>
#include <vector>
#include "kernels/philox.h"
#define PETX_ISA_BODY "cpu/common/dropout.inl"
#include "cpu/common/foreach_isa.h"

using namespace petx::cpu;
using Mask = const float* (*)(uint64_t, uint64_t, int64_t, double, float*);

int main() {
  std::vector<Mask> others;
  if (__builtin_cpu_supports("avx2")) others.push_back(avx2::dropout_mask<float>);
  if (best_isa() == Isa::avx512) others.push_back(avx512::dropout_mask<float>);
  long wrong = 0, kept = 0, all = 0;
  for (uint64_t first : {0ull, 1ull, 6ull, 4 * 4294967293ull, 17179869179ull})  // counters of more than 32 bits, too
    for (int64_t count : {1, 7, 64, 131, 768})
      for (double p : {0.1, 0.9, 1e-9}) {
        std::vector<float> room(count + 8), own(count + 8);
        const float* wanted = baseline::dropout_mask<float>(0xfedcba9876543210, first, count, p, own.data());
        for (Mask mask : others) {
          const float* found = mask(0xfedcba9876543210, first, count, p, room.data());
          for (int64_t j = 0; j < count; ++j) wrong += found[j] != wanted[j], kept += found[j] != 0, ++all;
        }
      }
  std::printf("%zu %ld %ld %ld\n", others.size(), wrong, kept, all);
}
"""


@pytest.mark.slow  # the compiler's seconds
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")
def test_dropout_masks_of_every_instruction_set(tmp_path):
    (tmp_path / "masks.cpp").write_text(PROGRAM)
    options = ["-std=c++20", "-O2", "-fopenmp-simd", f"-I{CSRC}", "masks.cpp", "-o", "masks"]
    subprocess.run([*COMPILER, *options], cwd=tmp_path, check=True)
    sets, wrong, kept, values = map(int, subprocess.check_output([tmp_path / "masks"], text=True).split())
    assert wrong == 0
    assert sets == 0 or 0.6 < kept / values < 0.73  # p is 0.1, 0.9 and next to nothing
