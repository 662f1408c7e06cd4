// How a call of gated_adapter is launched.
#pragma once

#include "cuda/common/wide_plan.h"
#include "kernels/gated_adapter.h"

namespace petx::cuda {

// Whether a token's gate is one number, which takes all of its row's columns.
PETX_HD inline bool has_token_gate(const GatedAdapterParams& p) {
  return p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
}

// Whether the backward's pass that makes dS writes dx, to which the products' launch then adds.
PETX_HD inline bool begins_dx(const GatedAdapterParams& p) { return p.d_x == p.d && (p.residual || has_token_gate(p)); }

struct GatedAdapterPlan {
  int64_t blocks;              // of 64 rows
  TiledColumns up;             // of the blocks, for h's columns in tiles of a head
  TileKind down, hidden_grad;  // of the products to the ranks

  explicit GatedAdapterPlan(const GatedAdapterParams& p)
      : blocks(tiles_along(p.rows)),
        up(p.dtype, p.rows, p.r / p.heads + p.r_g, {{p.d / p.heads, p.heads}}),
        down(kind_of_product(p.dtype, p.rows, p.d, {{p.r}, {p.r_g}})),
        hidden_grad(kind_of_product(p.dtype, p.rows, p.d / p.heads, {{p.r / p.heads, p.heads}, {p.r_g}})) {}

  // Of the products that dh and dx come from, where they are wanted.
  static TiledColumns input_grads(const GatedAdapterParams& p, int64_t h_columns, int64_t x_columns) {
    const int64_t depth = p.r_g ? (p.r + p.r_g) / 2 : p.r;
    return {p.dtype, p.rows, depth, {{h_columns}, {x_columns}}};
  }

  // The weights' gradients if all are asked for; the launcher (TokenSums) chooses for those that are.
  static GradTiles grads(const GatedAdapterParams& p) {
    GradTiles tiles;
    tiles.add(p.d / p.heads, p.r / p.heads, p.heads), tiles.add(p.r, p.down_width(), 1);
    if (p.r_g) tiles.add(p.d, p.r_g, 1), tiles.add(p.r_g, p.d_x, 1);
    tiles.choose(p.dtype, p.rows);
    return tiles;
  }

  // Passes over whole rows behind the products: for what needs all columns, and of small all tokens of a sample.
  static int row_passes(const GatedAdapterParams& p) {
    if (p.granularity == Granularity::small) return 2;
    return has_token_gate(p) || p.norm != Norm::none;
  }
};

}  // namespace petx::cuda
