// Where the gradient of a parameter goes: its sum is made in the compute type and stored in that or in the storage
// type, as the parameter itself is, so that no cast follows.
#pragma once

#include "cuda/common/row_block.cuh"

namespace petx::cuda {

template <class T>
struct GradTo {
  using C = Compute<T>;
  using Run = typename RowBlock<C>::Run;
  static constexpr int kRun = RowBlock<C>::kRun;
  void* data;   // null if nobody wants it
  bool narrow;  // T, not C

  // Gradient `leaf` of a call whose `narrow` has a bit for each.
  PETX_HD static GradTo of(void* data, int64_t narrow, int leaf) { return {data, (narrow >> leaf & 1) != 0}; }
  // That of the parameter's values from number `values` on.
  PETX_HD GradTo from(int64_t values) const {
    const int64_t bytes = narrow ? sizeof(T) : sizeof(C);
    return {data ? static_cast<char*>(data) + values * bytes : nullptr, narrow};
  }

  PETX_DEVICE void put(int64_t i, C value) const {
    if (narrow)
      cuda::put<T>(data, i, value);
    else
      write(static_cast<C*>(data) + i, value);
  }
  // Values that follow one another, the first `left` of them.
  PETX_DEVICE void put_run(int64_t i, int64_t left, const Run& run) const {
    if constexpr (sizeof(T) < sizeof(C)) {
      if (narrow) return put_narrow(static_cast<T*>(data) + i, left, run);
    }
    RowBlock<C>::store_run(data, i, left, run);
  }

 private:
  PETX_DEVICE static void put_narrow(T* to, int64_t left, const Run& run) {
    static_assert(kRun == 4);
    if (left >= kRun && reinterpret_cast<uintptr_t>(to) % sizeof(HalfPack<T>) == 0) {
      const TwoWords pairs = {pair_of(run.value[0], run.value[1], T{}), pair_of(run.value[2], run.value[3], T{})};
      write(reinterpret_cast<HalfPack<T>*>(to), bit_cast<HalfPack<T>>(pairs));
      return;
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      T stored;
      store(stored, run.value[j]);
      if (j < left) write(to + j, stored);
    }
  }
};

}  // namespace petx::cuda
