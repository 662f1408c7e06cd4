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

// By which tiles, of 64 x 64 or 128 x 64, a product down to the ranks is made, and into how many splits its depth is
// cut: what takes the busiest multiprocessor least.
struct DepthSplits {
  static constexpr int64_t kMost = 8;  // parts that are read back
  TileKind kind = {0};
  int64_t each, count = 1;  // values of the depth a split, and splits
  int64_t tiles;            // of ranks

  // `times` products; `launch`: cycles that splitting costs besides.
  DepthSplits(DType dtype, int64_t rows, int64_t rank, int64_t depth, int64_t times, int64_t launch)
      : each(depth), tiles(tiles_along(rank)) {
    const int64_t chunks = tiles_along(depth);
    int64_t least = INT64_MAX;
    for (const TileKind of : {TileKind{0}, TileKind{2}}) {
      if (!may_take(of, dtype, rows) && !(of.parts && may_take({3}, dtype, rows))) continue;
      const int64_t blocks = of.down(rows) * tiles * times, results = of.rows() * of.columns();
      for (int64_t wanted = 1; wanted <= kMost && (wanted <= chunks || wanted == 1); ++wanted) {
        const int64_t of_split = (chunks + wanted - 1) / wanted,
                      splits = of_split ? (chunks + of_split - 1) / of_split : 1;
        if (splits != wanted) continue;
        int64_t cost = tile_cycles(of, blocks * splits, of_split * kTile, (splits > 1 ? 4 : 2) * results);
        if (splits > 1) cost += launch + 4 * rows * rank * times * splits / (24 * kMultiprocessors);
        if (cost < least) least = cost, kind = of, each = splits > 1 ? of_split * kTile : depth, count = splits;
      }
    }
  }
  int64_t blocks() const { return tiles * count; }  // of a block of rows
  PETX_HD DepthPart part(int64_t number, int64_t depth) const {
    return DepthPart::of(static_cast<int>(number), static_cast<int>(count), depth, each);
  }
};

struct ModeUpdatePlan {
  static constexpr int64_t kLaunch = 3500;  // cycles

  int64_t blocks;    // of 64 rows
  DepthSplits down;  // of x U^T, which has a launch of its own in any case
  TiledColumns up;   // of a result's columns, for the blocks of rows of all K; each makes g_k
  DepthSplits out;   // of dy_k V
  TiledColumns dx;   // of dx's columns; each adds up dh

  explicit ModeUpdatePlan(const ModeUpdateParams& p)
      : blocks(tiles_along(p.rows)),
        down(p.dtype, p.rows, p.rank, p.x ? p.d_in : 0, 1, 0),
        up(p.dtype, blocks * p.count * kTile, p.rank, {{p.d_out}}, of_mixing(down.count)),
        out(p.dtype, p.rows, p.rank, p.d_out, p.count, kLaunch),
        dx(p.dtype, p.rows, p.rank, {{p.x ? p.d_in : 1}}, 1) {}

 private:
  // Of g_k of 64 rows by 64 ranks, in tiles of 64 columns, by their bytes of the second-level cache: 24 KB a tile, 16 a
  // part of h, and 24 of the core and of what else that takes.
  static int64_t of_mixing(int64_t parts) { return (24 + 16 * parts) / 24; }
};

}  // namespace petx::cuda
