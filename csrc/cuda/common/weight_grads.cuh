// Gradients of weights, products of two tensors over all tokens, a split of the tokens a block: see token_sums.cuh.
// Sums of columns stand beside them in the same launch.
#pragma once

#include "cuda/common/column_sums.cuh"
#include "cuda/common/kernel.cuh"
#include "cuda/common/wide_plan.h"
#include "cuda/common/wide_tile.cuh"

namespace petx::cuda {

// to [groups * m, n] = a^T b, group by group: a [N, groups * m], b [N, groups * n].
template <class T>
struct WeightGrad {
  const T* a;
  const T* b;
  int64_t m, n, groups;
  int64_t offset;  // of `to` in a split's sums

  // Of wide tiles the longer of m and n are the rows.
  PETX_HD bool turned(bool wide) const { return wide && n > m; }
  PETX_HD int64_t row_tiles(bool wide, int of) const { return ((turned(wide) ? n : m) + of - 1) / of; }
  PETX_HD int64_t column_tiles(bool wide, int of) const { return ((turned(wide) ? m : n) + of - 1) / of; }
};

template <class T, int kMost>
struct WeightGrads {
  WeightGrad<T> each[kMost];
  int count = 0;
  int64_t rows, split_rows, split_sums;  // tokens, tokens a split, values a split
  int64_t splits;
  Compute<T>* sums;  // [splits, split_sums]

  PETX_HD int64_t tiles(int number, bool wide, int rows, int columns) const {
    const WeightGrad<T>& grad = each[number];
    return grad.groups * grad.row_tiles(wide, rows) * grad.column_tiles(wide, columns);
  }
};

// A tile of one of the gradients, and a split of the tokens.
template <class T, bool wide, int kM, int kN>
struct GradTile {
  WeightGrad<T> grad;
  bool turned;
  int64_t row, column, group, depth;
  Columns<T> rows, columns;  // the operands, from the split's first token on
  Compute<T>* to;            // the tile's first value, of rows or, turned, columns `grad.n` apart

  template <int kMost>
  PETX_DEVICE explicit GradTile(const WeightGrads<T, kMost>& all) {
    int64_t tile = block_x();
    int number = 0;
    while (tile >= all.tiles(number, wide, kM, kN)) tile -= all.tiles(number++, wide, kM, kN);
    grad = all.each[number], turned = grad.turned(wide);
    const int64_t row_tiles = grad.row_tiles(wide, kM), column_tiles = grad.column_tiles(wide, kN);
    column = tile % column_tiles * kN, row = tile / column_tiles % row_tiles * kM;
    group = tile / column_tiles / row_tiles;
    const int64_t begin = block_y() * all.split_rows;
    depth = all.rows - begin < all.split_rows ? all.rows - begin : all.split_rows;
    const int64_t m = turned ? column : row, n = turned ? row : column;
    const int64_t a_width = grad.groups * grad.m, b_width = grad.groups * grad.n;
    const Columns<T> a{grad.a + begin * a_width + group * grad.m + m, a_width, grad.m - m};
    const Columns<T> b{grad.b + begin * b_width + group * grad.n + n, b_width, grad.n - n};
    rows = turned ? b : a, columns = turned ? a : b;
    to = all.sums + block_y() * all.split_sums + grad.offset + (group * grad.m + m) * grad.n + n;
  }
};

// Block (tile of a product, of all of which there are `tiles`, split), and behind these the sums of columns.
template <class T, int kMost, int kColumns>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    weight_grads(WeightGrads<T, kMost> all, ColumnSums<T, kColumns> columns, int64_t tiles) {
  using Tile = TileOf<T>;
  if (block_x() >= tiles) return sum_columns_beside(columns, (block_x() - tiles) * all.splits + block_y());
  const GradTile<T, false, Tile::kM, Tile::kN> tile(all);
  Tile::multiply(0, tile.rows, tile.columns, tile.depth);

  const int j = thread_index() % Tile::kN;
  if (j >= tile.columns.count) return;
  const int rows = tile.rows.count < Tile::kM ? static_cast<int>(tile.rows.count) : Tile::kM;
  constexpr int kStep = Tile::kThreads / Tile::kN;
  Compute<T>* to = tile.to + thread_index() / Tile::kN * tile.grad.n + j;
  for (int i = thread_index() / Tile::kN; i < rows; i += kStep, to += kStep * tile.grad.n)
    write(to, Tile::result(0, i, j));
}

// The same by tiles of 128 x 32 n. The sums leave the registers that they were made in: four lanes write a sector of
// eight values of a row, or eight lanes one of a column that is a row of a turned gradient.
template <class T, int kMost, int kColumns, int parts>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    wide_weight_grads(WeightGrads<T, kMost> all, ColumnSums<T, kColumns> columns, int64_t tiles) {
  using Tile = WideTile<T, parts>;
  if (block_x() >= tiles) return sum_columns_beside(columns, (block_x() - tiles) * all.splits + block_y());
  const GradTile<T, true, Tile::kM, Tile::kN> tile(all);
  typename Tile::Sums sums;
  Tile::multiply(sums, tile.rows, tile.columns, tile.depth);

  const int64_t n = tile.grad.n;
  const bool pairs = !tile.turned && n % 2 == 0 && reinterpret_cast<uintptr_t>(tile.to) % 8 == 0;
  Tile::each_pair(sums, [&](int row, int column, float first, float second) {
    if (row >= tile.rows.count) return;
    float* to = tile.to + (tile.turned ? column * n + row : row * n + column);
    if (pairs) {
      if (column < tile.columns.count) write_pair(to, first, second);
      return;
    }
    if (column < tile.columns.count) write(to, first);
    if (column + 1 < tile.columns.count) write(to + (tile.turned ? n : 1), second);
  });
}

// Whether others may follow `products` blocks in their launch, `all` together: two run side by side, and more than
// that or than the products make alone would take a turn more.
inline bool stand_beside(int64_t products, int64_t all) {
  const int64_t turns = (products + kMultiprocessors - 1) / kMultiprocessors;
  return all <= kMultiprocessors * (turns > 2 ? turns : 2);
}

// The launch, by the tiles that were chosen; the columns' own where these do not stand beside.
template <class T, int kMost, int kColumns>
int launch_weight_grads(const WeightGrads<T, kMost>& table, const ColumnSums<T, kColumns>& columns,
                        const GradTiles& chosen, void* stream) {
  const bool wide = chosen.kind.parts != 0;
  int64_t tiles = 0;
  for (int i = 0; i < table.count; ++i)
    tiles += table.tiles(i, wide, static_cast<int>(chosen.kind.rows()), static_cast<int>(chosen.kind.columns()));
  if (!tiles) return launch_columns(columns, stream);
  const int64_t column_rows = (columns.blocks() + table.splits - 1) / table.splits;
  const bool beside = stand_beside(tiles * table.splits, (tiles + column_rows) * table.splits);
  if (!beside)
    if (int error = launch_columns(columns, stream)) return error;
  auto start = [&](auto* kernel, int shared_bytes) {
    return launch(kernel, beside ? tiles + column_rows : tiles, table.splits, kTileLaunch.threads, shared_bytes, stream,
                  table, columns, tiles);
  };
  static_assert(kTileLaunch.threads == kSumLaunch.threads);
  static_assert(ColumnParts<T>::kSharedBytes <= TileOf<T>::shared_bytes(1));
  if constexpr (sizeof(T) == 2) {
    if (chosen.kind.parts == 2) return start(wide_weight_grads<T, kMost, kColumns, 2>, WideTile<T, 2>::kSharedBytes);
    if (chosen.kind.parts == 3) return start(wide_weight_grads<T, kMost, kColumns, 3>, WideTile<T, 3>::kSharedBytes);
  }
  return start(weight_grads<T, kMost, kColumns>, TileOf<T>::shared_bytes(1));
}

}  // namespace petx::cuda
