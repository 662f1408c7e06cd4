// How a call of cp_reconstruct is launched: a block takes 64 rows of one module and some tiles of columns.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/cp_reconstruct.h"

namespace petx::cuda {

// Pointers travel in the launch's own parameters, which a graph capture keeps and no copy has to bring to the device.
// They may take 4 KB: 240 weights and as many results.
inline constexpr int64_t kTableModules = 240;

struct CpReconstructPlan {
  int64_t row_tiles;
  ColumnShares shares;  // of 64 rows; A_k of the rows costs each about a tile

  explicit CpReconstructPlan(const CpReconstructParams& p)
      : row_tiles(tiles_along(p.d_out)), shares(p.modules * row_tiles, tiles_along(p.d_in), 1) {}
  int64_t blocks_a_module() const { return row_tiles * shares.count; }
};

}  // namespace petx::cuda
