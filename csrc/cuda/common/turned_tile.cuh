// A tile of 64 rows by 128 columns for 16-bit types, with the interface of mma_tile.cuh: the wide tile of its turned
// product. A block of 64 rows reads its operand half as often as by tiles of 64 columns, and the rows keep their
// owners.
#pragma once

#include "cuda/common/wide_tile.cuh"

namespace petx::cuda {

template <class S>
class TurnedTile {
  using Wide = WideTile<S, 2, 2>;

 public:
  using T = S;
  using C = float;
  static constexpr int kThreads = Wide::kThreads, kM = Wide::kN, kN = Wide::kM;
  static constexpr int kResultBytes = kM * kN * sizeof(C);
  // Two results fit where one does: that of slot 1 lies in the place of the stages, and has to be made last.
  static constexpr int shared_bytes(int) { return Wide::kSharedBytes + kResultBytes; }
  static_assert(kResultBytes <= Wide::kSharedBytes && fits(kTileLaunch, shared_bytes(2)));

  PETX_DEVICE static C result(int slot, int row, int column, int on = 0) {
    return results(slot).get_exchanged(result_place(row, column, kN), on);
  }
  PETX_DEVICE static void set_result(int slot, int row, int column, C value) {
    results(slot).set(result_place(row, column, kN), value);
  }

  // result(slot) = A B^T over `depth`, ready for every thread.
  template <class A, class B>
  PETX_DEVICE static void multiply(int slot, const A& a, const B& b, int64_t depth) {
    sync_block();  // slot 1 may still be read
    typename Wide::Sums sums;
    Wide::multiply(sums, b, a, depth);
    Wide::leave_turned(sums, place(slot));
  }

 private:
  PETX_DEVICE static int place(int slot) { return slot ? 0 : Wide::kSharedBytes; }
  PETX_DEVICE static Shared<C> results(int slot) { return Shared<C>(place(slot)); }
};

}  // namespace petx::cuda
