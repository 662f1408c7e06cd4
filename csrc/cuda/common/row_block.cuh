// A block of rows as its threads see it: products are made by the whole block, a tile of columns at a time; everything
// else is done by the four threads that own a row, whose sums are two shuffles away.
#pragma once

#include "cuda/common/kernel.cuh"
#include "cuda/common/turned_tile.cuh"

namespace petx::cuda {

// Consecutive values of a row.
template <class S>
struct RunOf {
  Compute<S> value[16 / sizeof(S)];
};
// In place of the columns left, of runs that are all whole and may be moved at once.
struct WholeRuns {};

template <class S, class TileType = TileOf<S>>
class RowBlock {
 public:
  using T = S;
  using C = Compute<T>;
  using Tile = TileType;
  static constexpr int kSharers = Tile::kThreads / Tile::kM;  // threads that own a row
  static constexpr int kRun = 16 / sizeof(T);                 // consecutive columns a thread takes at a time
  static_assert(kSharers == 4);

  PETX_DEVICE RowBlock(int64_t all_rows, int64_t block)
      : first(block * Tile::kM),
        rows(all_rows - first < Tile::kM ? all_rows - first : Tile::kM),
        row(static_cast<uint32_t>(thread_index()) / kSharers),
        sharer(static_cast<uint32_t>(thread_index()) % kSharers),
        token(first + row) {}

  PETX_DEVICE bool valid() const { return row < rows; }

  // The sum of a row's four threads, in all of them.
  PETX_DEVICE static C row_sum(C value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
  }

  // This block's rows of a [N, width] tensor, from `column` on.
  PETX_DEVICE Rows<T> block_rows(const void* data, int64_t width, int64_t column = 0) const {
    return {static_cast<const T*>(data) + first * width + column, width, rows};
  }
  // Rows, or columns, [begin, end) of a matrix whose rows are `width` long, as many as a tile has columns.
  PETX_DEVICE static Rows<T> weight_rows(const void* data, int64_t begin, int64_t end, int64_t width) {
    return {static_cast<const T*>(data) + begin * width, width, end - begin};
  }
  PETX_DEVICE static Columns<T> weight_columns(const void* data, int64_t begin, int64_t end, int64_t width) {
    return {static_cast<const T*>(data) + begin, width, end - begin};
  }

  // Calls visit(tile) for the tiles of columns that are this block's share.
  template <class Visit>
  PETX_DEVICE static void each_tile(const ColumnShares& shares, const Visit& visit) {
    const int begin = static_cast<int>(block_y() * shares.each), left = static_cast<int>(shares.tiles) - begin;
#pragma unroll 1
    for (int n = 0; n < shares.each && n < left; ++n) visit(int64_t(begin + n));
  }

  using Run = RunOf<T>;
  using Whole = WholeRuns;

  // Calls visit(column, column in the tile, columns left) for each of this thread's runs of a tile of `columns` that
  // begins at `begin`.
  template <class Visit>
  PETX_DEVICE void each_run(int64_t begin, int64_t end, const Visit& visit, int columns = Tile::kN) const {
    each_place(begin, end, [&](int c) { visit(begin + c, c, end - begin - c); }, columns);
  }

  template <class Visit>
  PETX_DEVICE void each_whole_run(int64_t begin, int64_t end, const Visit& visit) const {
    each_place(begin, end, [&](int c) { visit(begin + c, c, Whole{}); });
  }

  // Of a wide tile, whose block has the rows of two of these: this one is its `half`.
  template <class Wide>
  PETX_DEVICE Run wide_result(int half, int c) const {
    Run run;
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] = Wide::result(half * Tile::kM + row, c, j);
    return run;
  }

  PETX_DEVICE Run result(int slot, int c) const {
    Run run;
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] = Tile::result(slot, row, c, j);
    return run;
  }

  // A run of a tensor in global memory, zeros past `left`; sixteen bytes at once where memory allows.
  PETX_DEVICE static Run load_run(const void* data, int64_t i, int64_t left) {
    const T* from = static_cast<const T*>(data) + i;
    Run run;
    if (left >= kRun && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      unpack(run.value, read(reinterpret_cast<const Pack<T>*>(from)));
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) run.value[j] = j < left ? load(read(from + j)) : C(0);
    }
    return run;
  }
  PETX_DEVICE static Run load_run(const void* data, int64_t i, Whole) {
    Run run;
    unpack(run.value, read(reinterpret_cast<const Pack<T>*>(static_cast<const T*>(data) + i)));
    return run;
  }
  PETX_DEVICE static void store_run(void* data, int64_t i, Whole, const Run& run) {
    write(reinterpret_cast<Pack<T>*>(static_cast<T*>(data) + i), pack<T>(run.value));
  }
  PETX_DEVICE static void store_run(void* data, int64_t i, int64_t left, const Run& run) {
    T* to = static_cast<T*>(data) + i;
    if (left >= kRun && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      write(reinterpret_cast<Pack<T>*>(to), pack<T>(run.value));
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        T stored;
        store(stored, run.value[j]);
        if (j < left) write(to + j, stored);
      }
    }
  }

  // The same of a tensor in the compute type.
  template <class Left>
  PETX_DEVICE static Run load_wide_run(const void* data, int64_t i, Left left) {
    Run run;
#pragma unroll
    for (int at = 0; at < kRun; at += Wide::kRun) {
      const typename Wide::Run part = Wide::load_run(data, i + at, left_from(left, at));
#pragma unroll
      for (int j = 0; j < Wide::kRun; ++j) run.value[at + j] = part.value[j];
    }
    return run;
  }
  template <class Left>
  PETX_DEVICE static void store_wide_run(void* data, int64_t i, Left left, const Run& run) {
#pragma unroll
    for (int at = 0; at < kRun; at += Wide::kRun) {
      typename Wide::Run part;
#pragma unroll
      for (int j = 0; j < Wide::kRun; ++j) part.value[j] = run.value[at + j];
      Wide::store_run(data, i + at, left_from(left, at), part);
    }
  }

  PETX_DEVICE static void multiply_by(Run& run, const Run& other) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] *= other.value[j];
  }
  // What a later read of the stored run will find.
  PETX_DEVICE static Run rounded(Run run) {
#pragma unroll
    for (C& value : run.value) {
      T stored;
      store(stored, value);
      value = load(stored);
    }
    return run;
  }
  PETX_DEVICE static void add_to(Run& run, const Run& other) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] += other.value[j];
  }

  int64_t first, rows;  // the block's first row, and how many it has
  int row, sharer;      // this thread's among them, and its number among the row's four
  int64_t token;        // that row's among all

 private:
  using Wide = RowBlock<C>;
  PETX_DEVICE static int64_t left_from(int64_t left, int at) { return left - at; }
  PETX_DEVICE static auto left_from(Whole, int) { return typename Wide::Whole{}; }

  template <class Visit>
  PETX_DEVICE void each_place(int64_t begin, int64_t end, const Visit& visit, int columns = Tile::kN) const {
    if (!valid()) return;
#pragma unroll 1
    for (int c = kRun * sharer; c < columns && begin + c < end; c += kRun * kSharers) visit(c);
  }
};

}  // namespace petx::cuda
