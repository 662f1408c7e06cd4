// Sums over tokens in an order fixed by the shape: gradients of weights, of biases and of gate vectors.
//
// Tokens are cut into splits; each split's sum is made by one block from its first token to its last, and the splits
// are added up in their order by a second launch. No atomics: the number of splits follows from
// the number of tokens and not from the card, so the order is the same on every run and every GPU (launch.cuh says what
// that means for bits).
#pragma once

#include "cuda/common/row_block.cuh"
#include "cuda/common/weight_grads.cuh"
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
// which are three at most: products, column sums (and one in the compute type), and the splits added up.
template <class T, int kProducts, int kColumns, int kReductions>
class TokenSums {
  using C = Compute<T>;

 public:
  explicit TokenSums(int64_t rows) : splits_(rows) {}

  // to [groups * m, n] = a^T b, group by group; see WeightGrad. Nothing where `to` is null, as below.
  void product(void* to, const void* a, const void* b, int64_t m, int64_t n, int64_t groups = 1) {
    if (!to) return;
    const int64_t first = product_values_;
    add_product(a, b, m, n, groups);
    finish_split(to, kOfProducts, first, groups * m * n);
  }
  // to [m, n] = the sum over all pairs of a_k^T b_k.
  void product_of_pairs(void* to, int pairs, const void* const* a, const void* const* b, int64_t m, int64_t n) {
    if (!to || !pairs) return;
    const int64_t first = product_values_;
    for (int k = 0; k < pairs; ++k) add_product(a[k], b[k], m, n, 1);
    finish_split(to, kOfProducts, first, m * n, pairs);
  }
  // to [copies, width] = sum over tokens of weight * value; see ColumnSum.
  void column(void* to, const void* value, const C* weight, int64_t width, int64_t copies = 1) {
    if (!to) return;
    columns_.each[columns_.count++] = {static_cast<const T*>(value), weight, width, column_values_};
    finish_split(to, kOfColumns, column_values_, width);
    column_values_ += width;
    reductions_.each[reductions_.count - 1].copies = copies;
  }
  // to [width] = sum over tokens of `value`, which is in the compute type: a launch of its own; at most one a call.
  void wide_column(void* to, const void* value, int64_t width) {
    if (!to) return;
    wide_columns_.each[wide_columns_.count++] = {static_cast<const C*>(value), nullptr, width, column_values_};
    finish_split(to, kOfColumns, column_values_, width);
    column_values_ += width;
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
    tiles_.choose(DTypeOf<T>::value, splits_.rows);
    products_.rows = columns_.rows = wide_columns_.rows = splits_.rows;
    products_.split_rows = tiles_.split_rows, products_.split_sums = product_values_;
    columns_.split_rows = wide_columns_.split_rows = splits_.size;
    columns_.split_sums = wide_columns_.split_sums = column_values_;
    products_.sums = workspace.take<C>(tiles_.splits * product_values_);
    columns_.sums = wide_columns_.sums = workspace.take<C>(splits_.count * column_values_);
    for (int i = 0; i < reductions_.count; ++i) {
      Reduction<T>& job = reductions_.each[i];
      if (job.parts == kOfProducts)
        job.from = products_.sums + job.stride, job.parts = tiles_.splits, job.stride = product_values_;
      if (job.parts == kOfColumns)
        job.from = columns_.sums + job.stride, job.parts = splits_.count, job.stride = column_values_;
    }
  }

  int run(void* stream) const {
    int64_t column_blocks = 0, reduce_blocks = 0;
    for (int i = 0; i < columns_.count; ++i) column_blocks += columns_.each[i].blocks();
    for (int i = 0; i < reductions_.count; ++i) reduce_blocks += reductions_.each[i].blocks();
    if (int error = launch_weight_grads(products_, tiles_, stream)) return error;
    const int bytes = 8 * 8 * 12 * sizeof(C);  // of eight warps
    if (int error = launch_table(column_sums<T, kColumns>, columns_, column_blocks, splits_.count, bytes, stream))
      return error;
    if (wide_columns_.count)
      if (int error = launch_table(column_sums<C, kColumns>, wide_columns_, wide_columns_.each[0].blocks(),
                                   splits_.count, bytes, stream))
        return error;
    return launch_table(reduce<T, kReductions>, reductions_, reduce_blocks, 1, 0, stream);
  }

 private:
  // Sums by split have no address yet: `parts` says so, and `stride` keeps the offset.
  static constexpr int64_t kOfProducts = -1, kOfColumns = -2;
  void finish_split(void* to, int64_t of, int64_t first, int64_t count, int64_t pieces = 1) {
    finish(to, nullptr, of, first, count);
    reductions_.each[reductions_.count - 1].pieces = pieces;
  }
  void add_product(const void* a, const void* b, int64_t m, int64_t n, int64_t groups) {
    products_.each[products_.count++] = {static_cast<const T*>(a), static_cast<const T*>(b), m, n, groups,
                                         product_values_};
    product_values_ += groups * m * n;
    tiles_.add(m, n, groups);
  }

  Splits splits_;  // of the columns; the products have their own
  GradTiles tiles_;
  WeightGrads<T, kProducts> products_ = {};
  ColumnSums<T, kColumns> columns_ = {};
  ColumnSums<C, kColumns> wide_columns_ = {};
  Reductions<T, kReductions> reductions_ = {};
  int64_t product_values_ = 0, column_values_ = 0;  // of a split
};

}  // namespace petx::cuda
