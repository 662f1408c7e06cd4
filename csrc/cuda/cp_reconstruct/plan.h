// How a call of cp_reconstruct is launched: a block takes 64 rows of one module and some tiles of columns.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/cp_reconstruct.h"

namespace petx::cuda {

// Pointers travel in the launch's own parameters, which a graph capture keeps and no copy has to bring to the device.
// They may take 4 KB: 240 weights and as many results.
inline constexpr int64_t kTableModules = 240;

struct CpReconstructPlan {
  // How many blocks a call has before a block takes more than one tile: what fits on the largest GPUs at once.
  static constexpr int64_t kManyBlocks = 256;
  int64_t row_tiles, column_tiles;
  int64_t tiles_a_block, groups;  // tiles of columns per block, and blocks per 64 rows

  explicit CpReconstructPlan(const CpReconstructParams& p)
      : row_tiles(tiles_along(p.d_out)), column_tiles(tiles_along(p.d_in)) {
    int64_t many = p.modules * row_tiles * column_tiles / kManyBlocks;
    int64_t most = many < 1 || column_tiles < 1 ? 1 : many < column_tiles ? many : column_tiles;
    groups = (column_tiles + most - 1) / most;
    tiles_a_block = groups ? (column_tiles + groups - 1) / groups : 1;
    groups = (column_tiles + tiles_a_block - 1) / tiles_a_block;
  }
  int64_t blocks_a_module() const { return row_tiles * groups; }
};

}  // namespace petx::cuda
