// How a call of mode_update is launched: blocks of 64 rows, several of which share the rows if there are few.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/mode_update.h"

namespace petx::cuda {

struct ModeUpdatePlan {
  int64_t blocks;       // of rows
  int64_t tiles;        // of a result's columns
  ColumnShares shares;  // of the K results' columns; each recomputes h
  ColumnShares dx;      // of dx's columns; each recomputes dh

  explicit ModeUpdatePlan(const ModeUpdateParams& p)
      : blocks(tiles_along(p.rows)),
        tiles(tiles_along(p.d_out)),
        shares(blocks, p.count * tiles, again(p)),
        dx(blocks, p.x ? tiles_along(p.d_in) : 1, p.count * tiles_along(p.rank)) {}

 private:
  // h in tiles of a result, whose stores take as long as three steps of 64 of a product's depth.
  static int64_t again(const ModeUpdateParams& p) {
    int64_t depth = p.x ? tiles_along(p.d_in) : 0, of_tile = tiles_along(p.rank) + 3;
    return (depth * tiles_along(p.rank) + of_tile - 1) / of_tile + 1;
  }
};

}  // namespace petx::cuda
