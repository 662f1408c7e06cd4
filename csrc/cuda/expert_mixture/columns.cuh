// Passes of expert_mixture in which no value needs its whole row: gates that are equal have no softmax, and no gradient
// that is summed over a row, so that an expert's place in the row does not matter. A block takes columns and a split of
// the rows (common/column_pass.h), so that there are blocks enough for every multiprocessor, and leaves sums of
// columns.
#pragma once

#include "cuda/common/column_sums.cuh"
#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {

// A thread of such a block: a run of sixteen bytes of the columns of [N, width], of every 32nd row.
template <class S>
class MixtureColumns {
 public:
  using T = S;
  using C = Compute<T>;
  using Run = RunOf<T>;
  static constexpr int kRun = RowBlock<T>::kRun;

  PETX_DEVICE MixtureColumns(const MixtureCall<C>& call, const ColumnPass& pass, int64_t of_width)
      : p(call),
        width(of_width),
        first(block_x() * ColumnSum<T>::kColumns),
        column(first + thread_index() % ColumnPass::kLanes * kRun),
        left(width - column) {
    const int64_t begin = block_y() * pass.size;
    from_ = begin + thread_index() / ColumnPass::kLanes;
    end_ = begin + pass.size < p.rows ? begin + pass.size : p.rows;
  }

  // Calls visit(token, position in the tensor, whether the token is in scope) for this thread's rows.
  template <class Visit>
  PETX_DEVICE void each_row(const Visit& visit) const {
    if (left <= 0) return;
#pragma unroll 1
    for (int64_t t = from_; t < end_; t += ColumnPass::kRowsAtOnce) visit(t, t * width + column, p.in_scope(t));
  }
  PETX_DEVICE Run load_run(const void* data, int64_t i) const { return RowBlock<T>::load_run(data, i, left); }
  PETX_DEVICE void store_run(void* data, int64_t i, const Run& run) const {
    RowBlock<T>::store_run(data, i, left, run);
  }
  // Of a pass over [N, K r]: the down bias of this run, and what u is with it, rounded as u without it is.
  PETX_DEVICE Run down_bias() const { return p.down_bias ? load_run(p.down_bias, column) : Run{}; }
  PETX_DEVICE Run biased(Run u, const Run& bias) const {
    if (!p.down_bias) return u;
    RowBlock<T>::add_to(u, bias);
    return RowBlock<T>::rounded(u);
  }
  // sums [splits, width] of the columns, of which each thread has `sum`.
  PETX_DEVICE void put_sums(C* sums, const Run& sum) const {
    ColumnParts<T>(0).put(sums + block_y() * width + first, width - first, sum);
  }

  const MixtureCall<C>& p;
  const int64_t width, first, column, left;  // `first` column of the block; this run's, and how many are left from it

 private:
  int64_t from_, end_;
};

}  // namespace petx::cuda
