// How a call of mode_update is launched: blocks of 64 rows, several of which share the rows if there are few.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/mode_update.h"

namespace petx::cuda {

struct ModeUpdatePlan {
  // Blocks that a call should have at least, if there is work for them: about one per multiprocessor of a large card.
  static constexpr int64_t kBlocks = 128;
  int64_t blocks;  // of rows
  int64_t tiles;   // of a result's columns
  int64_t shares;  // parts of the K tiles' columns, each with blocks of its own

  explicit ModeUpdatePlan(const ModeUpdateParams& p) : blocks(tiles_along(p.rows)), tiles(tiles_along(p.d_out)) {
    shares = blocks ? kBlocks / blocks : 1;
    if (shares > p.count * tiles) shares = p.count * tiles;
    if (shares < 1) shares = 1;
  }
};

}  // namespace petx::cuda
