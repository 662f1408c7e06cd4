// Sums over tokens in an order fixed by the shape: gradients of weights, of biases and of gate vectors.
//
// Tokens are cut into splits; each split's sum is made by one block from its first token to its last, and the splits
// are added up in their order by a second launch. No atomics: the number of splits follows from
// the number of tokens and not from the card, so the order is the same on every run and every GPU (launch.cuh says what
// that means for bits).
#pragma once

#include "cuda/common/row_block.cuh"
#include "kernels/math.h"

namespace petx::cuda {

// Tokens cut into splits of one size, but for the last.
struct Splits {
  int64_t rows, size, count;
  explicit Splits(int64_t n) : rows(n), size(0), count(0) {
    int64_t wanted = token_splits(n);
    size = (n + wanted - 1) / wanted;
    count = (n + size - 1) / size;
  }
};

// to [groups * m, n] = a^T b, group by group: a [N, groups * m], b [N, groups * n].
template <class T>
struct WeightGrad {
  const T* a;
  const T* b;
  int64_t m, n, groups;
  int64_t offset;  // of `to` in a split's sums

  PETX_HD int64_t row_tiles() const { return (m + TileOf<T>::kM - 1) / TileOf<T>::kM; }
  PETX_HD int64_t column_tiles() const { return (n + TileOf<T>::kN - 1) / TileOf<T>::kN; }
  PETX_HD int64_t tiles() const { return groups * row_tiles() * column_tiles(); }
};

template <class T, int kMost>
struct WeightGrads {
  WeightGrad<T> each[kMost];
  int count = 0;
  int64_t rows, split_rows, split_sums;  // tokens, tokens a split, values a split
  Compute<T>* sums;                      // [splits, split_sums]
};

template <class T, int kMost>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks) weight_grads(WeightGrads<T, kMost> all) {
  using Tile = TileOf<T>;
  int64_t tile = block_x();
  int number = 0;
  while (tile >= all.each[number].tiles()) tile -= all.each[number++].tiles();
  const WeightGrad<T> grad = all.each[number];
  int64_t column = tile % grad.column_tiles() * Tile::kN;
  int64_t row = tile / grad.column_tiles() % grad.row_tiles() * Tile::kM;
  int64_t group = tile / grad.column_tiles() / grad.row_tiles();

  int64_t begin = block_y() * all.split_rows;
  int64_t depth = all.rows - begin < all.split_rows ? all.rows - begin : all.split_rows;
  int64_t a_width = grad.groups * grad.m, b_width = grad.groups * grad.n;
  Columns<T> a{grad.a + begin * a_width + group * grad.m + row, a_width, grad.m - row};
  Columns<T> b{grad.b + begin * b_width + group * grad.n + column, b_width, grad.n - column};
  Tile::multiply(0, a, b, depth);

  Compute<T>* to = all.sums + block_y() * all.split_sums + grad.offset + (group * grad.m + row) * grad.n + column;
  const int j = thread_index() % Tile::kN;
  if (j >= grad.n - column) return;
  const int rows = grad.m - row < Tile::kM ? static_cast<int>(grad.m - row) : Tile::kM;
  constexpr int kStep = Tile::kThreads / Tile::kN;
  to += thread_index() / Tile::kN * grad.n + j;
  for (int i = thread_index() / Tile::kN; i < rows; i += kStep, to += kStep * grad.n) write(to, Tile::result(0, i, j));
}

// to [width] = sum over tokens of weight * value, each 1 where its pointer is null.
template <class T>
struct ColumnSum {
  const T* value;            // [N, width]
  const Compute<T>* weight;  // [N]
  int64_t width, offset;

  static constexpr int kLanes = 8, kRun = 16 / sizeof(T), kColumns = kLanes * kRun;  // of a block
  PETX_HD int64_t blocks() const { return (width + kColumns - 1) / kColumns; }
};

template <class T, int kMost>
struct ColumnSums {
  ColumnSum<T> each[kMost];
  int count = 0;
  int64_t rows, split_rows, split_sums;
  Compute<T>* sums;
};

// Eight lanes of a warp read neighbouring runs of sixteen bytes, its other lanes and the block's other warps the tokens
// that follow.
template <class T, int kMost>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks) column_sums(ColumnSums<T, kMost> all) {
  using C = Compute<T>;
  using Sum = ColumnSum<T>;
  constexpr int kRun = Sum::kRun, kLanes = Sum::kLanes, kTokens = kSumLaunch.threads / kLanes;
  constexpr int kWarps = kSumLaunch.threads / 32;
  // A warp's sums of value j of its runs lie side by side, those of the next so far on that no two banks meet.
  constexpr int kStride = kRun == 8 ? 12 : 8;
  int64_t block = block_x();
  int number = 0;
  while (block >= all.each[number].blocks()) block -= all.each[number++].blocks();
  const ColumnSum<T> job = all.each[number];
  const int lane = thread_index() % kLanes, warp = thread_index() / 32;
  int64_t first = block * Sum::kColumns, begin = block_y() * all.split_rows;
  int64_t end = begin + all.split_rows < all.rows ? begin + all.split_rows : all.rows;
  const int64_t column = first + lane * kRun, left = job.width - column;
  typename RowBlock<T>::Run sum = {};
  if (left > 0)
    for (int64_t t = begin + thread_index() / kLanes; t < end; t += kTokens) {
      typename RowBlock<T>::Run value;
      if (job.value) {
        value = RowBlock<T>::load_run(job.value, t * job.width + column, left);
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j) value.value[j] = C(1);
      }
      const C weight = job.weight ? read(job.weight + t) : C(1);
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum.value[j] += value.value[j] * weight;
    }
  Shared<C> parts(0);
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    C value = sum.value[j];
#pragma unroll
    for (int mask = kLanes; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
    if (thread_index() % 32 < kLanes) parts.set((warp * kRun + j) * kStride + lane, value);
  }
  sync_block();
  const int c = thread_index();
  if (c >= Sum::kColumns || first + c >= job.width) return;
  C whole = 0;
  for (int k = 0; k < kWarps; ++k) whole += parts.get((k * kRun + c % kRun) * kStride + c / kRun);
  write(all.sums + block_y() * all.split_sums + job.offset + first + c, whole);
}

// to [count] = the sum of `parts` vectors that lie `stride` apart, in their order, each the sum of `pieces` that follow
// one another; times sigma' of a middle_y gate where `sigmoid_of` is given. A thread takes a run of sixteen bytes.
template <class T>
struct Reduction {
  const Compute<T>* from;
  Compute<T>* to;
  int64_t parts, stride, count;
  const T* sigmoid_of;
  int64_t pieces = 1;
  int64_t copies = 1;         // of the sum, one behind the other
  const T* narrow = nullptr;  // the sum itself, made by others in T: nothing is added up

  static constexpr int kRun = 16 / sizeof(Compute<T>);  // values of a thread
  PETX_HD int64_t blocks() const { return sum_blocks((count + kRun - 1) / kRun); }
};

template <class T, int kMost>
struct Reductions {
  Reduction<T> each[kMost];
  int count = 0;
};

template <class T, int kMost>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks) reduce(Reductions<T, kMost> all) {
  using C = Compute<T>;
  int64_t block = block_x();
  int number = 0;
  while (block >= all.each[number].blocks()) block -= all.each[number++].blocks();
  const Reduction<T> job = all.each[number];
  using Sums = RowBlock<C>;
  constexpr int kRun = Reduction<T>::kRun;
  const int64_t i = (block * kSumLaunch.threads + thread_index()) * kRun, left = job.count - i;
  if (left <= 0) return;
  typename Sums::Run sum = {};
  if (job.narrow) {
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (j < left) sum.value[j] = load(read(job.narrow + i + j));
  }
#pragma unroll 1
  for (int64_t part = 0; part < job.parts; ++part)
#pragma unroll 1
    for (int64_t piece = 0; piece < job.pieces; ++piece)
      Sums::add_to(sum, Sums::load_run(job.from, part * job.stride + piece * job.count + i, left));
  if (job.sigmoid_of) {
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (j < left) {
        C sigma = sigmoid(C(load(read(job.sigmoid_of + i + j))));
        sum.value[j] *= sigma * (C(1) - sigma);
      }
  }
#pragma unroll 1
  for (int64_t copy = 0; copy < job.copies; ++copy) Sums::store_run(job.to, copy * job.count + i, left, sum);
}

// One launch for all jobs of a table, `rows_of_blocks` deep; none where the table is empty.
template <class Table>
int launch_table(void (*kernel)(Table), const Table& table, int64_t blocks, int64_t rows_of_blocks, int shared_bytes,
                 void* stream) {
  return blocks ? launch(kernel, blocks, rows_of_blocks, kSumLaunch.threads, shared_bytes, stream, table) : 0;
}

// The sums over tokens of one call: jobs are named one by one, their places in the workspace follow, then the launches,
// which are three at most: products, column sums, and the splits added up.
template <class T, int kProducts, int kColumns, int kReductions>
class TokenSums {
  using C = Compute<T>;

 public:
  explicit TokenSums(int64_t rows) : splits_(rows) {}

  // to [groups * m, n] = a^T b, group by group; see WeightGrad. Nothing where `to` is null, as below.
  void product(void* to, const void* a, const void* b, int64_t m, int64_t n, int64_t groups = 1) {
    if (!to) return;
    products_.each[products_.count++] = {static_cast<const T*>(a), static_cast<const T*>(b), m, n, groups, split_sums_};
    finish_split(to, groups * m * n);
  }
  // to [m, n] = the sum over all pairs of a_k^T b_k.
  void product_of_pairs(void* to, int pairs, const void* const* a, const void* const* b, int64_t m, int64_t n) {
    if (!to || !pairs) return;
    for (int k = 0; k < pairs; ++k)
      products_.each[products_.count++] = {static_cast<const T*>(a[k]), static_cast<const T*>(b[k]), m, n, 1,
                                           split_sums_ + k * m * n};
    finish_split(to, m * n, pairs);
  }
  // to [copies, width] = sum over tokens of weight * value; see ColumnSum.
  void column(void* to, const void* value, const C* weight, int64_t width, int64_t copies = 1) {
    if (!to) return;
    columns_.each[columns_.count++] = {static_cast<const T*>(value), weight, width, split_sums_};
    finish_split(to, width);
    reductions_.each[reductions_.count - 1].copies = copies;
  }
  // to [count] = what others have left in T.
  void widen(void* to, const T* narrow, int64_t count) {
    if (!to) return;
    finish(to, nullptr, 0, 0, count);
    reductions_.each[reductions_.count - 1].narrow = narrow;
  }
  // to [count] = the sum of `parts` vectors that lie `stride` apart; see Reduction.
  void finish(void* to, const C* from, int64_t parts, int64_t stride, int64_t count, const void* sigmoid_of = nullptr) {
    if (!to) return;
    reductions_.each[reductions_.count++] = {
        from, static_cast<C*>(to), parts, stride, count, static_cast<const T*>(sigmoid_of)};
  }

  // After the last job.
  void place(Workspace& workspace) {
    C* sums = workspace.take<C>(splits_.count * split_sums_);
    products_.rows = columns_.rows = splits_.rows;
    products_.split_rows = columns_.split_rows = splits_.size;
    products_.split_sums = columns_.split_sums = split_sums_;
    products_.sums = columns_.sums = sums;
    for (int i = 0; i < reductions_.count; ++i) {
      Reduction<T>& job = reductions_.each[i];
      if (!job.parts && !job.narrow) job.from = sums + job.stride, job.parts = splits_.count, job.stride = split_sums_;
    }
  }

  int run(void* stream) const {
    int64_t tiles = 0, column_blocks = 0, reduce_blocks = 0;
    for (int i = 0; i < products_.count; ++i) tiles += products_.each[i].tiles();
    for (int i = 0; i < columns_.count; ++i) column_blocks += columns_.each[i].blocks();
    for (int i = 0; i < reductions_.count; ++i) reduce_blocks += reductions_.each[i].blocks();
    int bytes = TileOf<T>::shared_bytes(1);
    if (int error = launch_table(weight_grads<T, kProducts>, products_, tiles, splits_.count, bytes, stream))
      return error;
    bytes = 8 * 8 * 12 * sizeof(C);  // of eight warps
    if (int error = launch_table(column_sums<T, kColumns>, columns_, column_blocks, splits_.count, bytes, stream))
      return error;
    return launch_table(reduce<T, kReductions>, reductions_, reduce_blocks, 1, 0, stream);
  }

 private:
  // Sums by split have no address yet: `stride` keeps the offset, `parts` 0 says so.
  void finish_split(void* to, int64_t count, int64_t pieces = 1) {
    finish(to, nullptr, 0, split_sums_, count);
    reductions_.each[reductions_.count - 1].pieces = pieces;
    split_sums_ += pieces * count;
  }

  Splits splits_;
  WeightGrads<T, kProducts> products_ = {};
  ColumnSums<T, kColumns> columns_ = {};
  Reductions<T, kReductions> reductions_ = {};
  int64_t split_sums_ = 0;
};

}  // namespace petx::cuda
