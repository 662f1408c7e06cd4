// Sums over tokens that are no products: of columns, with or without a weight a token. See token_sums.cuh.
#pragma once

#include "cuda/common/row_block.cuh"

namespace petx::cuda {

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
  int64_t splits;

  PETX_HD int64_t blocks_of_split() const {
    int64_t blocks = 0;
    for (int i = 0; i < kMost; ++i) blocks += i < count ? each[i].blocks() : 0;
    return blocks;
  }
  PETX_HD int64_t blocks() const { return blocks_of_split() * splits; }
};

// The sum of every kStep-th token from t to `end` at a run from `column` on. Several loads are under way together, as
// those of parts below.
template <int kStep, class T, class Left>
PETX_DEVICE void add_tokens(typename RowBlock<T>::Run& sum, const ColumnSum<T>& job, int64_t t, int64_t end,
                            int64_t column, Left left) {
  using Run = typename RowBlock<T>::Run;
  using C = Compute<T>;
  // More would spill.
  constexpr int kRun = ColumnSum<T>::kRun, kAhead = sizeof(T) == 2 && !std::is_same_v<Left, int64_t> ? 3 : 2;
  const T* value = job.value ? job.value + t * job.width + column : nullptr;
  const C* weight = job.weight ? job.weight + t : nullptr;
#pragma unroll 1
  for (int more = static_cast<int>((end - t + kStep - 1) / kStep); more > 0; more -= kAhead) {
    Run run[kAhead];
    C by[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n >= more) break;
      by[n] = weight ? read(weight + n * kStep) : C(1);
      if (value) {
        run[n] = RowBlock<T>::load_run(value, 0, left);
        value += kStep * job.width;
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j) run[n].value[j] = C(1);
      }
    }
    if (weight) weight += kAhead * kStep;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n >= more) break;
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum.value[j] += run[n].value[j] * by[n];
    }
  }
}

// Sums of columns, of which a block's warps each have a part: eight lanes of a warp have neighbouring runs of sixteen
// bytes, its other lanes the same of other tokens. They lie in shared memory from `bytes` on.
template <class T>
class ColumnParts {
  using C = Compute<T>;
  static constexpr int kRun = ColumnSum<T>::kRun, kLanes = ColumnSum<T>::kLanes;
  static constexpr int kWarps = kSumLaunch.threads / 32;
  // A warp's sums of value j of its runs lie side by side, those of the next so far on that no two banks meet.
  static constexpr int kStride = kRun == 8 ? 12 : 8;

 public:
  static constexpr int kSharedBytes = 8 * 8 * 12 * sizeof(C);  // of eight warps

  PETX_DEVICE explicit ColumnParts(int bytes) : parts_(bytes) {}
  PETX_DEVICE void set(const RunOf<T>& sum) const {
    const int lane = thread_index() % kLanes, warp = thread_index() / 32;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      C value = sum.value[j];
#pragma unroll
      for (int mask = kLanes; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
      if (thread_index() % 32 < kLanes) parts_.set((warp * kRun + j) * kStride + lane, value);
    }
  }
  // Column c of the block's, behind a barrier.
  PETX_DEVICE C whole(int c) const {
    C whole = 0;
    for (int k = 0; k < kWarps; ++k) whole += parts_.get((k * kRun + c % kRun) * kStride + c / kRun);
    return whole;
  }
  // to [left] = the block's sums, of which each thread has `sum`.
  PETX_DEVICE void put(C* to, int64_t left, const RunOf<T>& sum) const {
    set(sum);
    sync_block();
    const int c = thread_index();
    if (c < ColumnSum<T>::kColumns && c < left) write(to + c, whole(c));
  }

 private:
  Shared<C> parts_;
};

// Eight lanes of a warp read neighbouring runs of sixteen bytes, its other lanes and the block's other warps the tokens
// that follow.
template <class T, int kMost>
PETX_DEVICE void sum_columns(const ColumnSums<T, kMost>& all, int64_t block, int64_t split) {
  using Sum = ColumnSum<T>;
  constexpr int kRun = Sum::kRun, kLanes = Sum::kLanes, kTokens = kSumLaunch.threads / kLanes;
  int number = 0;
  while (block >= all.each[number].blocks()) block -= all.each[number++].blocks();
  const ColumnSum<T> job = all.each[number];
  const int lane = thread_index() % kLanes;
  int64_t first = block * Sum::kColumns, begin = split * all.split_rows;
  int64_t end = begin + all.split_rows < all.rows ? begin + all.split_rows : all.rows;
  const int64_t column = first + lane * kRun, left = job.width - column;
  typename RowBlock<T>::Run sum = {};
  const int64_t t = begin + thread_index() / kLanes;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(job.value) | job.width * sizeof(T);
  if (left >= kRun && bits % 16 == 0)
    add_tokens<kTokens>(sum, job, t, end, column, typename RowBlock<T>::Whole{});
  else if (left > 0)
    add_tokens<kTokens>(sum, job, t, end, column, left);
  ColumnParts<T>(0).put(all.sums + split * all.split_sums + job.offset + first, job.width - first, sum);
}

// Block (columns, split): where no products are that these could stand beside.
template <class T, int kMost>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks) column_sums(ColumnSums<T, kMost> all) {
  sum_columns(all, block_x(), block_y());
}

template <class T, int kMost>
int launch_columns(const ColumnSums<T, kMost>& all, void* stream) {
  const int64_t blocks = all.blocks_of_split();
  if (!blocks) return 0;
  return launch(column_sums<T, kMost>, blocks, all.splits, kSumLaunch.threads, ColumnParts<T>::kSharedBytes, stream,
                all);
}

// Block `number` of a launch in which others stand before.
template <class T, int kMost>
PETX_DEVICE void sum_columns_beside(const ColumnSums<T, kMost>& all, int64_t number) {
  const int blocks = static_cast<int>(all.blocks_of_split()), block = static_cast<int>(number);
  if (block < blocks * static_cast<int>(all.splits)) sum_columns(all, block % blocks, block / blocks);
}

}  // namespace petx::cuda
