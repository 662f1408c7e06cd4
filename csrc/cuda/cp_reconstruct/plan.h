// How a call of cp_reconstruct is launched: a block takes 64 rows of one module and some tiles of columns. In 16-bit
// types and up to a rank of 64 it keeps A of its rows in registers (common/strip.cuh), where there are so many tiles
// that they save more than the launch takes which makes A and U's images. The backward has that launch in any case,
// unless there is no gate, and as many blocks of rows either way: there strips take two fifths of the instructions.
#pragma once

#include "cuda/common/wide_plan.h"
#include "kernels/cp_reconstruct.h"

namespace petx::cuda {

// Pointers travel in the launch's own parameters, which a graph capture keeps and no copy has to bring to the device.
// They may take 4 KB: 240 weights and as many results.
inline constexpr int64_t kTableModules = 240;

struct CpReconstructPlan {
  int64_t row_tiles;
  ColumnShares shares;  // of 64 rows; A_k of the rows costs each about a tile
  bool strips;          // of the forward
  bool backward_strips;

  explicit CpReconstructPlan(const CpReconstructParams& p)
      : row_tiles(tiles_along(p.d_out)),
        shares(p.modules * row_tiles, tiles_along(p.d_in), 1),
        strips(may_take_strips(p.dtype, p.rank) &&
               (wanted_parts() || p.modules * row_tiles * shares.tiles >= kFewestTiles)),
        backward_strips(strips || (may_take_strips(p.dtype, p.rank) && p.gate != Gate::none)) {}
  int64_t blocks_a_module() const { return row_tiles * shares.count; }

 private:
  // By the model (docs/cost.md) a tile takes a multiprocessor 1.5 microseconds, two side by side, and by strips 0.4;
  // the launch takes 4.
  static constexpr int64_t kFewestTiles = 4 * kMultiprocessors;
};

}  // namespace petx::cuda
