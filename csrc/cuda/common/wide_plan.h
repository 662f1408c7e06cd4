// Which tiles of results a product is cut into: 64 x 64 (mma_tile.cuh), or 128 x 32 n for 16-bit types (wide_tile.cuh),
// which read each operand less often and take fewer instructions, but make fewer blocks: n is 2 or 3, of the products
// down of expert_mixture 1 or 3. Host code, from shapes alone; the rule is the one by which docs/cost.md models a
// launch.
#pragma once

#include <initializer_list>

#include "cuda/common/plan.h"

namespace petx::cuda {

// A kind of tile. `parts`: n of the wide ones, 0 for 64 x 64.
struct TileKind {
  int parts;

  static constexpr int64_t kWideRows = 128;
  int64_t rows() const { return parts ? kWideRows : kTile; }
  int64_t columns() const { return parts ? 32 * parts : kTile; }
  int64_t down(int64_t all_rows) const { return (all_rows + rows() - 1) / rows(); }
  int64_t across(int64_t all_columns) const { return (all_columns + columns() - 1) / columns(); }
  // Instructions of a thread, as counted: for 64 of the depth, and besides.
  int64_t of_chunk() const { return parts ? 50 + 40 * parts : 115; }
  int64_t outside() const { return parts ? 300 + 200 * parts : 260; }
};

// Modelled cycles of the busiest of an H100's multiprocessors for `blocks` that each make a tile from `depth`: what its
// warps issue (two blocks take 7/6 of one, which fills 43 % of the slots: 2 warps a scheduler), or the bytes that it
// gets from the second-level cache, 24 a cycle.
inline int64_t tile_cycles(TileKind kind, int64_t blocks, int64_t depth, int64_t bytes_besides) {
  const int64_t of_one = (blocks + kMultiprocessors - 1) / kMultiprocessors;
  const int64_t instructions = tiles_along(depth) * kind.of_chunk() + kind.outside();
  const int64_t issue = turns(of_one) * instructions * 200 / (43 * 6);
  const int64_t bytes = of_one * ((kind.rows() + kind.columns()) * depth * 2 + bytes_besides) / 24;
  return issue > bytes ? issue : bytes;
}

// Fewer rows than this stay with 64 x 64 tiles: they are one split of the tokens, and make too few blocks.
constexpr int64_t kFewestWideRows = 513;

// PETX_CUDA_WIDE: 1 for no wide tiles, 2 or 3 for n; 0, the rule's choice.
inline int64_t wanted_parts() { return env_int_or("PETX_CUDA_WIDE", 0, 3); }
inline bool may_take(TileKind kind, DType dtype, int64_t rows) {
  if (dtype != DType::bf16 && dtype != DType::f16) return kind.parts == 0;
  const int64_t wanted = wanted_parts();
  if (wanted) return kind.parts == (wanted == 1 ? 0 : wanted);
  return kind.parts == 0 || rows >= kFewestWideRows;
}

// Of a product whose depth is split among blocks, `each` a split: block `number`'s tile and its split, where that
// begins, and how deep it is.
struct DepthPart {
  int64_t tile, split, from, depth;

  // In the type of the caller's indices, on which its registers hang.
  template <class Index>
  PETX_HD static DepthPart of(Index number, Index splits, int64_t depth, int64_t each) {
    const Index split = number % splits;
    const int64_t from = split * each;
    return {number / splits, split, from, depth - from < each ? depth - from : each};
  }
};

// Columns of a product's results, `times` over.
struct ProductColumns {
  int64_t columns, times = 1;
};

// The tiles of a product of `rows` rows by all of `products`, whose results are written twice in a type of 16 bits.
inline TileKind kind_of_product(DType dtype, int64_t rows, int64_t depth,
                                std::initializer_list<ProductColumns> products) {
  TileKind best = {0};
  int64_t least = INT64_MAX;
  for (int parts : {0, 2, 3}) {
    const TileKind kind = {parts};
    if (!may_take(kind, dtype, rows)) continue;
    int64_t tiles = 0;
    for (const ProductColumns& one : products) tiles += one.times * kind.across(one.columns);
    const int64_t cost = tile_cycles(kind, kind.down(rows) * tiles, depth, 4 * kind.rows() * kind.columns());
    if (cost < least) least = cost, best = kind;
  }
  return best;
}

// Blocks of 64 rows that share a result's columns, in tiles of 64 or, for 16-bit types, 128 columns (turned_tile.cuh):
// those by which the busiest multiprocessor takes less. What follows a product is the same for either.
struct TiledColumns : ColumnShares {
  int64_t width;  // of a tile

  // `again`: tiles of 64 columns that take as long as what each block repeats.
  TiledColumns(DType dtype, int64_t rows, int64_t depth, std::initializer_list<ProductColumns> products,
               int64_t again = 0)
      : TiledColumns(rows, products, again, is_wide(dtype, rows, depth, products, again) ? kWide : kTile) {}
  bool wide() const { return width == kWide; }
  int64_t tiles_of(int64_t columns) const { return (columns + width - 1) / width; }

 private:
  static constexpr int64_t kWide = 128;
  // What a thread executes for one of its results, and the bytes of it and of what is read beside the product.
  static constexpr int64_t kOfResult = 45, kBytesOfResult = 6;

  TiledColumns(int64_t rows, std::initializer_list<ProductColumns> products, int64_t again, int64_t width)
      : ColumnShares(tiles_along(rows), count_tiles(products, width), tiles_again(again, width)), width(width) {}
  static int64_t tiles_again(int64_t again, int64_t width) { return (again * kTile + width - 1) / width; }
  static int64_t count_tiles(std::initializer_list<ProductColumns> products, int64_t width) {
    int64_t tiles = 0;
    for (const ProductColumns& one : products) tiles += one.times * ((one.columns + width - 1) / width);
    return tiles;
  }
  static bool is_wide(DType dtype, int64_t rows, int64_t depth, std::initializer_list<ProductColumns> products,
                      int64_t again) {
    if (!may_take({2}, dtype, rows) && !may_take({3}, dtype, rows)) return false;
    if (!may_take({0}, dtype, rows)) return true;
    return cycles(rows, depth, products, again, {2}, kWide) < cycles(rows, depth, products, again, {0}, kTile);
  }
  static int64_t cycles(int64_t rows, int64_t depth, std::initializer_list<ProductColumns> products, int64_t again,
                        TileKind kind, int64_t width) {
    // Whatever PETX_CUDA_SHARES is, which changes no bit.
    const int64_t tiles = count_tiles(products, width), groups = tiles_along(rows);
    const int64_t each = tiles_of_a_share(groups, tiles, tiles_again(again, width), 2 * kMultiprocessors);
    const int64_t blocks = each ? groups * ((tiles + each - 1) / each) : 0;
    const int64_t of_one = (blocks + kMultiprocessors - 1) / kMultiprocessors, results = width * kTile / 256;
    const int64_t instructions = tiles_along(depth) * kind.of_chunk() + results * kOfResult;
    const int64_t columns = each * width + again * kTile;  // of a block
    const int64_t issue = turns(of_one) * columns / width * instructions * 200 / (43 * 6);
    const int64_t bytes =
        of_one * columns / width * ((kTile + width) * depth * 2 + kTile * width * kBytesOfResult) / 24;
    return issue > bytes ? issue : bytes;
  }
};

// Whether products of that depth, behind each other in blocks of 64 rows, can go by strips (strip.cuh): those of 16-bit
// types can up to a depth of 64, none where PETX_CUDA_WIDE is 1. From what size on they do, an operation's plan says;
// where PETX_CUDA_WIDE is 2 or 3, at any.
inline bool may_take_strips(DType dtype, int64_t depth) {
  return (dtype == DType::bf16 || dtype == DType::f16) && depth <= kTile && wanted_parts() != 1;
}

// For `petx info`.
inline std::string words_of(const char* product, TileKind kind) {
  return std::string(", ") + product + " by tiles of " + std::to_string(kind.rows()) + " x " +
         std::to_string(kind.columns());
}

// How the sums over tokens that are products, a^T b, are made: by which tiles, and of how many splits of the tokens.
// Wide tiles are fewer, so they may take more splits than tiles of 64 x 64, which keep token_splits'.
struct GradTiles {
  TileKind kind = {0};
  int64_t split_rows = 0, splits = 0;

  // Adds the gradients, [groups * m, n] each, then `choose`.
  void add(int64_t m, int64_t n, int64_t groups) {
    for (int parts : {0, 2, 3})
      tiles_[parts] += groups * TileKind{parts}.down(m > n ? m : n) * TileKind{parts}.across(m > n ? n : m);
    values_ += groups * m * n;
  }
  void choose(DType dtype, int64_t rows) {
    set(rows, token_splits(rows), {0});
    if (!rows) return;
    int64_t least = may_take({0}, dtype, rows) ? cycles(rows, {0}, splits) : INT64_MAX;
    const int64_t fixed = env_int_or("PETX_CUDA_SPLITS", 0, 65535);
    for (int parts : {2, 3}) {
      if (!may_take({parts}, dtype, rows)) continue;
      for (int64_t count = fixed ? fixed : 1; count <= (fixed ? fixed : kMostSplits); ++count) {
        const int64_t cost = cycles(rows, {parts}, count);
        if (cost < least) least = cost, set(rows, count, {parts});
      }
    }
  }

 private:
  static constexpr int64_t kMostSplits = 16;  // as token_splits

  void set(int64_t rows, int64_t count, TileKind of) {
    kind = of;
    split_rows = count ? (rows + count - 1) / count : 0;
    splits = split_rows ? (rows + split_rows - 1) / split_rows : 0;
  }
  // A tile's sums are written and, by the launch that adds up the splits, read.
  int64_t cycles(int64_t rows, TileKind of, int64_t count) const {
    const int64_t sums = 4 * of.rows() * of.columns();
    return tile_cycles(of, tiles_[of.parts] * count, (rows + count - 1) / count, sums) +
           4 * values_ * count / (24 * kMultiprocessors);
  }

  int64_t tiles_[4] = {}, values_ = 0;
};

}  // namespace petx::cuda
