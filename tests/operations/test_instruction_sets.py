"""CPU loops written for one instruction set give the bits of the others, of which a run takes only this machine's best;
and places in tensors that no test can hold are not kept in 32 bits."""

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
#include "cpu/gated_adapter/call.h"
#include "kernels/mode_update.h"
#include "kernels/philox.h"
#define PETX_ISA_BODY "cpu/gated_adapter/rows.inl"
#include "cpu/common/foreach_isa.h"

using namespace petx;
using namespace petx::cpu;
using Mask = const float* (*)(uint64_t, uint64_t, int64_t, double, float*);

static float alone(uint64_t seed, uint64_t element, double p) {
  return philox(seed, element / 4).word[element % 4] >> 8 >= dropout_threshold(p) ? float(1 / (1 - p)) : 0;
}

static long wrong_places() {
  long wrong = 0;
  const int64_t seed = 0x1234567890abcdef, d = 7;
  GatedAdapterParams site = {};
  site.d = d, site.dropout = 0.5, site.seed = &seed;
  for (int64_t row : {int64_t{0}, int64_t{3}, int64_t{1} << 31, int64_t{1} << 33, (int64_t{1} << 40) + 1}) {
    float words[d + 8];
    const float* found = baseline::dropout_row<float>(site, row, words);
    for (int j = 0; j < d; ++j) wrong += found[j] != alone(seed, row * d + j, site.dropout);
  }
  ModeUpdateParams update = {};
  update.rows = int64_t{1} << 31, update.rank = 64;
  wrong += update.mask_begin(3) != uint64_t{3} << 37;
  update.shared_mask = true;
  return wrong + (update.mask_begin(3) != 0);
}

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
        for (int64_t j = 0; j < count; ++j) wrong += wanted[j] != alone(0xfedcba9876543210, first + j, p);
        for (Mask mask : others) {
          const float* found = mask(0xfedcba9876543210, first, count, p, room.data());
          for (int64_t j = 0; j < count; ++j) wrong += found[j] != wanted[j], kept += found[j] != 0, ++all;
        }
      }
  std::printf("%zu %ld %ld %ld %ld\n", others.size(), wrong, wrong_places(), kept, all);
}
"""


@pytest.mark.slow  # the compiler's seconds
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")
def test_dropout_masks_of_every_instruction_set(tmp_path):
    (tmp_path / "masks.cpp").write_text(PROGRAM)
    options = ["-std=c++20", "-O2", "-fopenmp-simd", f"-I{CSRC}", "masks.cpp", "-o", "masks"]
    subprocess.run([*COMPILER, *options], cwd=tmp_path, check=True)
    sets, wrong, wrong_places, kept, values = map(int, subprocess.check_output([tmp_path / "masks"], text=True).split())
    assert wrong == wrong_places == 0
    assert sets == 0 or 0.6 < kept / values < 0.73  # p is 0.1, 0.9 and next to nothing
