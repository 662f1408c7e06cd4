// How a call of expert_mixture is launched: fused, or hybrid with the wide products made by torch (cuBLAS).
#pragma once

#include "cuda/common/column_pass.h"
#include "cuda/common/strip_plan.h"
#include "cuda/common/wide_plan.h"
#include "kernels/expert_mixture.h"

namespace petx::cuda {

// The tiles of a product from d columns down to the experts' ranks and, behind these, to a value an expert.
struct DownTiles {
  TileKind kind = {0};
  // Both in one tile of 128 x 96, whose last 32 columns are the experts'.
  bool joined = false;
  // Few rows make few tiles of 128 x 32, each as deep as d: then their depth is split among blocks, `depth` each, which
  // leave parts of the sums to the launch behind.
  static constexpr int64_t kMostSplits = 4;  // which a row asks for together
  int64_t depth, splits = 1;

  // Of `experts` columns behind the ranks', or none; `may_split` where a launch follows that adds parts up.
  DownTiles(const ExpertMixtureParams& p, int64_t experts, bool may_split);
  int64_t rank_tiles(int64_t stacked) const { return joined ? 1 : kind.across(stacked); }
};

// How a pass over [N, width] is shared where no row has to be whole (columns.cuh).
inline ColumnPass columns_pass(const ExpertMixtureParams& p, int64_t width) {
  return ColumnPass(p.dtype, p.rows, width, kPassLaunch.blocks);
}

struct ExpertMixturePlan {
  int64_t blocks;       // of 64 rows
  ColumnShares shares;  // of the blocks, for y's columns where torch makes the product
  TiledColumns up;      // the same where they are made here
  bool hybrid;
  bool strips;  // y's and dx's columns by strips of 64 rows (common/strip.cuh), each 64 columns a tile
  StripShares strip_shares;
  std::string why;

  explicit ExpertMixturePlan(const ExpertMixtureParams& p);

 private:
  void choose_path(const ExpertMixtureParams& p);
};

}  // namespace petx::cuda
