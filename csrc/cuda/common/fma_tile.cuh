// One tile of a matrix product on the plain arithmetic units, for any shape and any dtype.
//
// A block of 256 threads computes 64 x 64 results, 4 x 4 per thread: 8 values read from shared memory serve 16
// multiply-adds, which is what the units can be fed. Operands pass through shared memory 16 deep and already in the
// compute type, transposed so that a warp reads consecutive words.
// The result lands in shared memory, where each thread finds whole pieces of one row for the work that follows.
#pragma once

#include "cuda/common/operand.cuh"

namespace petx::cuda {

template <class S>
class FmaTile {
 public:
  using T = S;
  using C = Compute<T>;
  static constexpr int kThreads = kTileLaunch.threads, kM = 64, kN = 64;

 private:
  // What a warp stages at a time lies in different banks: 16 deep two rows of floats, or in each turn one of doubles.
  static constexpr int kDepth = 16, kStride = sizeof(C) == 4 ? kM + 2 : kM + 1;
  static constexpr int kOperandBytes = kDepth * kStride * sizeof(C);

 public:
  static constexpr int kResultBytes = kM * kN * sizeof(C);
  static constexpr int shared_bytes(int results) { return 2 * kOperandBytes + results * kResultBytes; }

  // Result number `slot` of the block: element (row, column + on), of columns that begin at a multiple of the next
  // power of two.
  PETX_DEVICE static C result(int slot, int row, int column, int on = 0) {
    return results(slot).get_exchanged(result_place(row, column), on);
  }

  PETX_DEVICE static void set_result(int slot, int row, int column, C value) {
    results(slot).set(result_place(row, column), value);
  }

  // result(slot) = A B^T over `depth`, ready for every thread.
  template <class A, class B>
  PETX_DEVICE static void multiply(int slot, const A& a, const B& b, int64_t depth) {
    Shared<C> left(0), right(kOperandBytes);
    int row = thread_index() / 16 * 4, column = thread_index() % 16;
    C sum[4][4] = {};
    for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
      stage(left, a, k0, depth);
      stage(right, b, k0, depth);
      sync_block();
#pragma unroll 2  // more takes registers that two blocks do not leave
      for (int k = 0; k < kDepth; ++k) {
        C l[4], r[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) l[i] = left.get(k * kStride + row + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) r[j] = right.get(k * kStride + column + 16 * j);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] += l[i] * r[j];
      }
      sync_block();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) set_result(slot, row + i, column + 16 * j, sum[i][j]);
    sync_block();
  }

 private:
  PETX_DEVICE static Shared<C> results(int slot) { return Shared<C>(2 * kOperandBytes + slot * kResultBytes); }

  template <class Operand>
  PETX_DEVICE static void stage(Shared<C> to, const Operand& from, int64_t k0, int64_t depth) {
#pragma unroll 1
    for (int e = thread_index(); e < kM * kDepth; e += kThreads) {
      int i = Operand::kTransposed ? e % kM : e / kDepth, k = Operand::kTransposed ? e / kM : e % kDepth;
      to.set(k * kStride + i, k0 + k < depth ? from(i, k0 + k) : C(0));
    }
  }
};

}  // namespace petx::cuda
