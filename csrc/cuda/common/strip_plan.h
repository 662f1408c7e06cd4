// How strips (strip.cuh) share the columns of a block of rows.
#pragma once

#include "cuda/common/launch.cuh"

namespace petx::cuda {

// Blocks of strips that share the columns of 64 rows: those by which the busiest multiprocessor takes least. Four run
// at a time; fewer leave more of the issue slots empty (docs/cost.md). A block costs half a tile before it begins.
// PETX_CUDA_SHARES overrides.
struct StripShares : ColumnShares {
  static constexpr int64_t kOfFewer[] = {0, 45, 47, 70, 54};  // what so many side by side take, in tenths

  StripShares(int64_t blocks, int64_t tiles) : ColumnShares(blocks, tiles) {
    if (env_int_or("PETX_CUDA_SHARES", 0, tiles)) return;
    int64_t least = INT64_MAX;
    for (int64_t wanted = 1; wanted <= tiles; ++wanted) {
      const int64_t one = (tiles + wanted - 1) / wanted, shares = (tiles + one - 1) / one;
      const int64_t of_one = (blocks * shares + kMultiprocessors - 1) / kMultiprocessors;
      const int64_t cost = (of_one / 4 * kOfFewer[4] + kOfFewer[of_one % 4]) * (2 * one + 1);
      if (cost < least) least = cost, each = one, count = shares;
    }
  }
};

}  // namespace petx::cuda
