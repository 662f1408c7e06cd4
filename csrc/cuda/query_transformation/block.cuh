// What forward and backward of query_transformation share: the rows of a thread, which are every 32nd of a split, and
// where they lie in tensors whose samples lie apart.
#pragma once

#include "cuda/common/column_sums.cuh"
#include "cuda/query_transformation/plan.h"

namespace petx::cuda {

// A tensor as such a thread goes through it.
template <class T>
struct RowPath {
  const T* data;
  int64_t sample, row;  // values from one to the next
  int64_t step;         // to the next of the thread's rows,
  int64_t wrap;         // and on where it lies in one sample more than `step` counts

  RowPath(const RowPlaces& places, int64_t length)
      : data(static_cast<const T*>(places.data)), sample(places.sample), row(places.row) {
    constexpr int64_t kStep = QueryTransformationPlan::kRowsAtOnce;
    step = kStep / length * sample + kStep % length * row, wrap = sample - length * row;
  }
  bool whole() const {
    const uintptr_t strides = static_cast<uintptr_t>(sample | row) * sizeof(T);
    return (reinterpret_cast<uintptr_t>(data) | strides) % 16 == 0;
  }
};

// A call as its kernels get it. `read` is what the residual is made of, `other` what it is added to or, in the
// backward, the result's gradient.
template <class T>
struct TransformationCall {
  Compute<T> factor;
  int64_t rows, width, length, within_step;
  int64_t across, size;  // of the plan
  RowPath<T> read, other;
  const T *scale, *shift;
  bool whole;  // runs are sixteen bytes at multiples of sixteen

  TransformationCall(const QueryTransformationParams& p, const RowPlaces& second, const void* made)
      : TransformationCall(p, second, made, length_of(p, second)) {}

 private:
  // Rows that lie as if there were one sample are one.
  static int64_t length_of(const QueryTransformationParams& p, const RowPlaces& second) {
    auto dense = [&](const RowPlaces& t) { return !t.data || t.sample == p.length * t.row; };
    return dense(p.x) && dense(second) ? p.rows : p.length;
  }
  TransformationCall(const QueryTransformationParams& p, const RowPlaces& second, const void* made, int64_t length)
      : factor(static_cast<Compute<T>>(p.factor)),
        rows(p.rows),
        width(p.width),
        length(length),
        within_step(QueryTransformationPlan::kRowsAtOnce % length),
        across(0),
        size(0),
        read(p.x, length),
        other(second, length),
        scale(static_cast<const T*>(p.scale)),
        shift(static_cast<const T*>(p.shift)) {
    const QueryTransformationPlan plan(p);
    across = plan.across, size = plan.size;
    const uintptr_t vectors = reinterpret_cast<uintptr_t>(scale) | reinterpret_cast<uintptr_t>(shift);
    const uintptr_t dense = reinterpret_cast<uintptr_t>(made) | static_cast<uintptr_t>(width) * sizeof(T);
    whole = read.whole() && other.whole() && (vectors | dense) % 16 == 0;
  }
};

// A thread of a block: its columns, and its rows one after the other.
template <class T>
class TransformationThread {
  static constexpr int kLanes = QueryTransformationPlan::kLanes;
  static constexpr int kStep = QueryTransformationPlan::kRowsAtOnce, kRun = 16 / sizeof(T);

 public:
  PETX_DEVICE explicit TransformationThread(const TransformationCall<T>& call) : call_(call) {
    const int split = split_of(call);
    column = first_column(call) + thread_index() % kLanes * kRun;
    const int64_t begin = split * call.size, left = call.rows - begin;
    const int slot = thread_index() / kLanes, rows = static_cast<int>(left < call.size ? left : call.size);
    row = begin + slot, count = slot < rows ? (rows - slot + kStep - 1) / kStep : 0;
    sample_ = call.length < call.rows ? row / call.length : 0, within_ = row - sample_ * call.length;
  }

  // The address of the first of its runs; next() and on() lead to the one after.
  PETX_DEVICE const T* first(const RowPath<T>& path) const {
    return path.data + sample_ * path.sample + within_ * path.row + column;
  }
  PETX_DEVICE void next() {
    within_ += call_.within_step;
    wraps_ = within_ >= call_.length;
    if (wraps_) within_ -= call_.length;
  }
  PETX_DEVICE void on(const T*& at, const RowPath<T>& path) const { at += path.step + (wraps_ ? path.wrap : 0); }

  // Of the block.
  PETX_DEVICE static int split_of(const TransformationCall<T>& call) {
    return static_cast<int>(block_x()) / static_cast<int>(call.across);
  }
  PETX_DEVICE static int64_t first_column(const TransformationCall<T>& call) {
    return block_x() % call.across * (kLanes * kRun);
  }

  int count;            // of its rows
  int64_t column, row;  // of its run, of the first row

 private:
  const TransformationCall<T>& call_;
  int64_t sample_, within_;
  bool wraps_ = false;
};

// A run as it lies in memory, which takes half the registers that 16-bit values take in the compute type.
template <class T>
PETX_DEVICE Pack<T> load_pack(const T* from, WholeRuns) {
  return read(reinterpret_cast<const Pack<T>*>(from));
}
template <class T>
PETX_DEVICE Pack<T> load_pack(const T* from, int64_t left) {
  return read_pack(from, left);
}

}  // namespace petx::cuda
