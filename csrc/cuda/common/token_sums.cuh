// Sums over tokens in an order fixed by the shape: gradients of weights, of biases and of gate vectors.
//
// Tokens are cut into splits; each split's sum is made by one block from its first token to its last, and the splits
// are added up in their order by a later launch. No atomics: the number of splits follows from shapes, that of
// products by wide tiles (wide_plan.h) also from which gradients are asked for, and never from the card. So the order
// is the same on every run and every GPU (launch.cuh says what that means for bits).
#pragma once

#include "cuda/common/grad_to.cuh"
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

// to [count] = the sum of `parts` vectors that lie `stride` apart, in their order, each the sum of `pieces` that lie
// `piece` apart; times sigma' of a middle_y gate where `sigmoid_of` is given. A thread takes a run of sixteen bytes.
// Many parts, which are sums of blocks of rows, are shared out among a block's warps, whose sums follow in their order.
template <class T>
struct Reduction {
  const Compute<T>* from;
  GradTo<T> to;
  int64_t parts, stride, count;
  const T* sigmoid_of;
  int64_t pieces = 1, piece = 0;
  int64_t copies = 1;         // of the sum, one behind the other
  const T* narrow = nullptr;  // the sum itself, made by others in T: nothing is added up

  static constexpr int kRun = GradTo<T>::kRun;  // values of a thread
  static constexpr int64_t kManyParts = 32;
  PETX_HD bool many() const { return parts > kManyParts && pieces == 1; }
  PETX_HD int64_t blocks() const {
    const int64_t runs = (count + kRun - 1) / kRun;
    return many() ? (runs + 31) / 32 : sum_blocks(runs);
  }
};

template <class T, int kMost>
struct Reductions {
  Reduction<T> each[kMost];
  int count = 0;
  int64_t first_block[kMost];  // of each; of those that are not there, past the last
  static constexpr int kWarps = kSumLaunch.threads / 32;
  static constexpr int kSharedBytes = kSumLaunch.threads * 16;  // a run of each thread
};

// Places of a call with few sums, of which two are used: a table of two is copied into local memory by ptxas.
inline constexpr int kFewReductions = 4;

// The sum of a job's parts [first, last) at value i. Loads are ordered with each other, so that a load waits for the
// one before unless it is asked for in the same breath: eight of them, then their sum in the fixed order.
template <class T, class Left>
PETX_DEVICE void add_parts(typename GradTo<T>::Run& sum, const Reduction<T>& job, int64_t first, int64_t last,
                           int64_t i, Left left) {
  using Sums = RowBlock<Compute<T>>;
  constexpr int kAhead = 8;
  const Compute<T>* from = job.from + first * job.stride + i;
  const int64_t next_part = job.stride - (job.pieces - 1) * job.piece;
  int64_t piece = 0;
#pragma unroll 1
  for (int64_t more = (last - first) * job.pieces; more > 0; more -= kAhead) {
    typename Sums::Run part[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n >= more) break;
      part[n] = Sums::load_run(from, 0, left);
      const bool last_piece = ++piece == job.pieces;
      from += last_piece ? next_part : job.piece;
      piece = last_piece ? 0 : piece;
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n >= more) break;
      Sums::add_to(sum, part[n]);
    }
  }
}

template <class T, int kMost>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks) reduce(Reductions<T, kMost> all) {
  using C = Compute<T>;
  using Sums = RowBlock<C>;
  int number = 0;
  while (number + 1 < kMost && block_x() >= all.first_block[number + 1]) ++number;
  const int64_t block = block_x() - all.first_block[number];
  const Reduction<T> job = all.each[number];
  constexpr int kRun = Reduction<T>::kRun, kWarps = Reductions<T, kMost>::kWarps;
  const bool many = job.many();
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int64_t run = many ? block * 32 + lane : block * kSumLaunch.threads + thread_index();
  const int64_t i = run * kRun, left = job.count - i;
  if (!many && left <= 0) return;
  const int64_t each = many ? (job.parts + kWarps - 1) / kWarps : job.parts, first = many ? warp * each : 0;
  const int64_t last = job.parts - first < each ? job.parts : first + each;
  typename Sums::Run sum = {};
  if (job.narrow) {
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (j < left) sum.value[j] = load(read(job.narrow + i + j));
  }
  const uintptr_t bits = reinterpret_cast<uintptr_t>(job.from) | (job.stride | job.piece) * sizeof(C);
  if (left >= kRun && bits % 16 == 0)
    add_parts(sum, job, first, last, i, typename Sums::Whole{});
  else if (left > 0)
    add_parts(sum, job, first, last, i, left);
  if (many) {
    Shared<C> sums(0);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sums.set((warp * kRun + j) * 32 + lane, sum.value[j]);
    sync_block();
    if (warp != 0 || left <= 0) return;
#pragma unroll 1
    for (int other = 1; other < kWarps; ++other)
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum.value[j] += sums.get((other * kRun + j) * 32 + lane);
  }
  if (job.sigmoid_of) {
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (j < left) {
        C sigma = sigmoid(C(load(read(job.sigmoid_of + i + j))));
        sum.value[j] *= sigma * (C(1) - sigma);
      }
  }
#pragma unroll 1
  for (int64_t copy = 0; copy < job.copies; ++copy) job.to.put_run(copy * job.count + i, left, sum);
}

// One launch for all jobs of a table, `rows_of_blocks` deep; none where the table is empty.
template <class Table>
int launch_table(void (*kernel)(Table), const Table& table, int64_t blocks, int64_t rows_of_blocks, int shared_bytes,
                 void* stream) {
  return blocks ? launch(kernel, blocks, rows_of_blocks, kSumLaunch.threads, shared_bytes, stream, table) : 0;
}

template <class T, int kMost>
int launch_reductions(Reductions<T, kMost> table, void* stream) {
  int64_t blocks = 0;
  for (int i = 0; i < kMost; ++i) {
    table.first_block[i] = i < table.count ? blocks : INT64_MAX;
    if (i < table.count) blocks += table.each[i].blocks();
  }
  return launch_table(reduce<T, kMost>, table, blocks, 1, Reductions<T, kMost>::kSharedBytes, stream);
}

// The sums over tokens of one call: jobs are named one by one, their places in the workspace follow, then the launches.
// These are products with column sums beside them, or where these do not stand beside (weight_grads.cuh) a launch of
// each, and the splits added up: three at most.
template <class T, int kProducts, int kColumns, int kReductions>
class TokenSums {
  using C = Compute<T>;

 public:
  explicit TokenSums(int64_t rows) : splits_(rows) {}

  // to [groups * m, n] = a^T b, group by group; see WeightGrad. Nothing where `to` is null, as below.
  void product(GradTo<T> to, const void* a, const void* b, int64_t m, int64_t n, int64_t groups = 1) {
    if (!to.data) return;
    const int64_t first = product_values_;
    add_product(a, b, m, n, groups);
    finish_split(to, kOfProducts, first, groups * m * n);
  }
  // to [m, n] = the sum over all pairs of a_k^T b_k.
  void product_of_pairs(GradTo<T> to, int pairs, const void* const* a, const void* const* b, int64_t m, int64_t n) {
    if (!to.data || !pairs) return;
    const int64_t first = product_values_;
    for (int k = 0; k < pairs; ++k) add_product(a[k], b[k], m, n, 1);
    finish_split(to, kOfProducts, first, m * n, pairs);
  }
  // to [copies, width] = sum over tokens of weight * value; see ColumnSum.
  void column(GradTo<T> to, const void* value, const C* weight, int64_t width, int64_t copies = 1) {
    if (!to.data) return;
    columns_.each[columns_.count++] = {static_cast<const T*>(value), weight, width, column_values_};
    add_columns(to, width);
    reductions_.each[reductions_.count - 1].copies = copies;
  }
  // to [count] = what others have left in T.
  void widen(GradTo<T> to, const T* narrow, int64_t count) {
    if (!to.data) return;
    finish(to, nullptr, 0, 0, count);
    reductions_.each[reductions_.count - 1].narrow = narrow;
  }
  // to [copies, count] = the sum of `parts` vectors that lie `stride` apart; see Reduction.
  void finish(GradTo<T> to, const C* from, int64_t parts, int64_t stride, int64_t count,
              const void* sigmoid_of = nullptr, int64_t copies = 1) {
    if (!to.data) return;
    reductions_.each[reductions_.count++] = {from, to, parts, stride, count, static_cast<const T*>(sigmoid_of)};
    reductions_.each[reductions_.count - 1].copies = copies;
  }

  // After the last job.
  void place(Workspace& workspace) {
    tiles_.choose(DTypeOf<T>::value, splits_.rows);
    products_.rows = columns_.rows = splits_.rows;
    products_.splits = tiles_.splits, products_.split_rows = tiles_.split_rows, products_.split_sums = product_values_;
    columns_.splits = splits_.count, columns_.split_rows = splits_.size, columns_.split_sums = column_values_;
    products_.sums = workspace.take<C>(tiles_.splits * product_values_);
    columns_.sums = workspace.take<C>(splits_.count * column_values_);
    for (int i = 0; i < reductions_.count; ++i) {
      Reduction<T>& job = reductions_.each[i];
      if (job.parts == kOfProducts)
        job.from = products_.sums + job.stride, job.parts = tiles_.splits, job.stride = product_values_;
      if (job.parts == kOfColumns)
        job.from = columns_.sums + job.stride, job.parts = splits_.count, job.stride = column_values_;
    }
  }

  int run(void* stream) const {
    if (int error = launch_weight_grads(products_, columns_, tiles_, stream)) return error;
    return launch_reductions(reductions_, stream);
  }

 private:
  // Sums by split have no address yet: `parts` says so, and `stride` keeps the offset. Each begins at sixteen bytes,
  // however odd the one before is.
  static constexpr int64_t kOfProducts = -1, kOfColumns = -2;
  void finish_split(GradTo<T> to, int64_t of, int64_t first, int64_t count, int64_t pieces = 1) {
    finish(to, nullptr, of, first, count);
    Reduction<T>& job = reductions_.each[reductions_.count - 1];
    job.pieces = pieces, job.piece = in_runs(count);
  }
  void add_product(const void* a, const void* b, int64_t m, int64_t n, int64_t groups) {
    products_.each[products_.count++] = {static_cast<const T*>(a), static_cast<const T*>(b), m, n, groups,
                                         product_values_};
    product_values_ += in_runs(groups * m * n);
    tiles_.add(m, n, groups);
  }
  void add_columns(GradTo<T> to, int64_t width) {
    finish_split(to, kOfColumns, column_values_, width);
    column_values_ += in_runs(width);
  }
  static int64_t in_runs(int64_t count) {
    constexpr int kRun = Reduction<T>::kRun;
    return (count + kRun - 1) / kRun * kRun;
  }

  Splits splits_;  // of the columns; the products have their own
  GradTiles tiles_;
  WeightGrads<T, kProducts> products_ = {};
  ColumnSums<T, kColumns> columns_ = {};
  Reductions<T, kReductions> reductions_ = {};
  int64_t product_values_ = 0, column_values_ = 0;  // of a split
};

}  // namespace petx::cuda
