// How a call of gated_adapter is launched.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/gated_adapter.h"

namespace petx::cuda {

// Whether a token's gate is one number, which takes all of its row's columns.
PETX_HD inline bool has_token_gate(const GatedAdapterParams& p) {
  return p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
}

// Whether the backward's pass that makes dS writes dx, to which the products' launch then adds.
PETX_HD inline bool begins_dx(const GatedAdapterParams& p) { return p.d_x == p.d && (p.residual || has_token_gate(p)); }

struct GatedAdapterPlan {
  int64_t blocks;       // of 64 rows
  ColumnShares shares;  // of the blocks, for h's columns in tiles of a head
  int64_t adapter_rank_tiles, gate_rank_tiles;

  explicit GatedAdapterPlan(const GatedAdapterParams& p)
      : blocks(tiles_along(p.rows)),
        shares(blocks, p.heads * tiles_along(p.d / p.heads)),
        adapter_rank_tiles(tiles_along(p.r)),
        gate_rank_tiles(tiles_along(p.r_g)) {}

  // Passes over whole rows behind the products: for what needs all columns, and of small all tokens of a sample.
  static int row_passes(const GatedAdapterParams& p) {
    if (p.granularity == Granularity::small) return 2;
    return has_token_gate(p) || p.norm != Norm::none;
  }
};

}  // namespace petx::cuda
