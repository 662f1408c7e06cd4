// How a call of mode_update is launched: blocks of 64 rows, several of which share the rows if there are few.
//
// Two products are as deep as the input or the results are wide, and have R columns alone: x U^T and dy_k V. There are
// too few tiles of them to fill the card, and one takes as long as all of its depth. Their depth is therefore split
// among blocks, which leave parts of the sum to the launch that goes on with it. So no size is left to cuBLAS: by the
// model (docs/cost.md) 4096-wide updates take less this way than as products of torch's with launches between them.
#pragma once

#include "cuda/common/wide_plan.h"
#include "kernels/mode_update.h"

namespace petx::cuda {

// How the depth of `groups` tiles of a product is split.
struct DepthSplits {
  static constexpr int64_t kMost = 8;  // parts that are read back
  int64_t each, count;                 // values of the depth a split, and splits

  // `launch`: what splitting costs besides, in the units of `busiest`, a 24th of a tile of depth 64.
  DepthSplits(int64_t groups, int64_t depth, int64_t launch) : each(depth), count(1) {
    const int64_t chunks = tiles_along(depth);
    int64_t least = busiest(groups, chunks + kFixed);
    for (int64_t splits = 2; splits <= kMost && splits <= chunks; ++splits) {
      int64_t of_split = (chunks + splits - 1) / splits;
      int64_t cost = busiest(groups * splits, of_split + kFixed) + launch;
      if (cost < least) least = cost, each = of_split * kTile, count = (chunks + of_split - 1) / of_split;
    }
  }

 private:
  static constexpr int64_t kFixed = 3;  // chunks that a block takes as long as, besides those of its depth
};

struct ModeUpdatePlan {
  // A launch, and adding up the parts, in the units of DepthSplits.
  static constexpr int64_t kLaunch = 120;

  int64_t blocks;      // of rows
  int64_t rank_tiles;  // of the rank
  DepthSplits down;    // of x U^T, which has a launch of its own in any case
  TiledColumns up;     // of the K results' columns
  DepthSplits out;     // of dy_k V
  TiledColumns dx;     // of dx's columns; each adds up dh

  explicit ModeUpdatePlan(const ModeUpdateParams& p)
      : blocks(tiles_along(p.rows)),
        rank_tiles(tiles_along(p.rank)),
        down(blocks * rank_tiles, p.x ? p.d_in : 0, 0),
        up(p.dtype, p.rows, p.rank, {{p.d_out, p.count}}),
        out(blocks * p.count * rank_tiles, p.d_out, kLaunch),
        dx(p.dtype, p.rows, p.rank, {{p.x ? p.d_in : 1}}, 1) {}
};

}  // namespace petx::cuda
