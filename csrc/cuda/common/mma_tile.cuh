// One tile of a matrix product on the matrix units, for 16-bit types and any shape; the interface of fma_tile.cuh.
//
// A block of 8 warps computes 64 x 64 results, 16 x 32 a warp. Operands pass through shared memory 64 deep in two
// stages, the next one on its way while one is multiplied. A stage is 64 lines of 128 bytes, along whichever index runs
// through memory; ldmatrix turns it where that is not the depth. Pack c of line i lies at c ^ (i % 8), so that the
// eight packs of an ldmatrix, one below the other, start in eight different groups of banks.
#pragma once

#include "cuda/common/operand.cuh"

namespace petx::cuda {

template <class S>
class MmaTile {
 public:
  using T = S;
  using C = Compute<T>;
  static constexpr int kThreads = kTileLaunch.threads, kM = 64, kN = 64;

 private:
  static constexpr int kDepth = 64, kPack = 8, kLinePacks = kDepth / kPack;
  static constexpr int kStageBytes = kM * kDepth * sizeof(T), kOperandBytes = 2 * kStageBytes;
  static constexpr int kWarpRows = 16, kWarpColumns = 32;
  static_assert(kM == kN && kM == kDepth, "one routine stages either operand in either direction");

 public:
  static constexpr int kResultBytes = kM * kN * sizeof(C);
  static constexpr int shared_bytes(int results) { return 2 * kOperandBytes + results * kResultBytes; }

  // Result number `slot` of the block: element (row, column).
  PETX_DEVICE static C result(int slot, int row, int column) { return results(slot).get(result_place(row, column)); }
  PETX_DEVICE static void set_result(int slot, int row, int column, C value) {
    results(slot).set(result_place(row, column), value);
  }

  // result(slot) = A B^T over `depth`, ready for every thread.
  template <class A, class B>
  PETX_DEVICE static void multiply(int slot, const A& a, const B& b, int64_t depth) {
    int warp = thread_index() / 32, lane = thread_index() % 32;
    int first_row = warp / 2 * kWarpRows, first_column = warp % 2 * kWarpColumns;
    float sum[kWarpColumns / 8][4] = {};
    int chunks = static_cast<int>((depth + kDepth - 1) / kDepth);
    stage(0, a, b, 0, depth);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) stage((chunk + 1) % 2, a, b, int64_t(chunk + 1) * kDepth, depth);
      if (chunk + 1 < chunks)
        wait_copies<1>();
      else
        wait_copies<0>();
      sync_block();
      Shared<Pack<T>> left(chunk % 2 * kStageBytes), right(kOperandBytes + chunk % 2 * kStageBytes);
#pragma unroll 2
      for (int k = 0; k < kDepth; k += 16) {
        uint32_t rows[4];
        // Matrices: rows 0-7 and 8-15, then the same eight further in depth.
        fragment<A::kTransposed>(rows, left, first_row + lane % 16 / 8 * 8, k + lane / 16 * 8);
#pragma unroll
        for (int pair = 0; pair < kWarpColumns / 16; ++pair) {
          uint32_t columns[4];
          // Matrices: columns 0-7, the same eight further in depth, then columns 8-15.
          fragment<B::kTransposed>(columns, right, first_column + pair * 16 + lane / 16 * 8, k + lane % 16 / 8 * 8);
          multiply_matrices(sum[2 * pair], rows, columns[0], columns[1], T{});
          multiply_matrices(sum[2 * pair + 1], rows, columns[2], columns[3], T{});
        }
      }
      sync_block();
    }
    lane = opaque(lane);  // sixteen addresses are not kept from one product to the next
#pragma unroll
    for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        set_result(slot, first_row + lane / 4 + e / 2 * 8, first_column + n * 8 + lane % 4 * 2 + e % 2, sum[n][e]);
    sync_block();
  }

 private:
  PETX_DEVICE static Shared<C> results(int slot) { return Shared<C>(2 * kOperandBytes + slot * kResultBytes); }
  PETX_DEVICE static int place(int line, int pack) { return line * kLinePacks + (pack ^ line % 8); }

  // Loads the four matrices whose rows begin at `i` and depths at `k`, as this lane's matrix has them.
  template <bool transposed>
  PETX_DEVICE static void fragment(uint32_t (&to)[4], Shared<Pack<T>> from, int i, int k) {
    int within = thread_index() % 8;
    load_matrices<transposed>(to, from, transposed ? place(k + within, i / kPack) : place(i + within, k / kPack));
  }

  template <class A, class B>
  PETX_DEVICE static void stage(int number, const A& a, const B& b, int64_t k0, int64_t depth) {
    stage(Shared<Pack<T>>(number * kStageBytes), a, k0, depth);
    stage(Shared<Pack<T>>(kOperandBytes + number * kStageBytes), b, k0, depth);
    commit_copies();
  }

  template <class Operand>
  PETX_DEVICE static void stage(Shared<Pack<T>> to, const Operand& from, int64_t k0, int64_t depth) {
    int64_t lines = Operand::kTransposed ? depth - k0 : from.count,
            length = Operand::kTransposed ? from.count : depth - k0;
    int64_t first_line = Operand::kTransposed ? k0 : 0, first_value = Operand::kTransposed ? 0 : k0;
    bool aligned = from.aligned();
#pragma unroll 1
    for (int e = thread_index(); e < kM * kLinePacks; e += kThreads) {
      int line = e / kLinePacks, pack = e % kLinePacks;
      const T* source = from.line(first_line + line) + first_value + pack * kPack;
      bool whole = aligned && line < lines && (pack + 1) * kPack <= length;
      if (whole) {
        copy_async(to, place(line, pack), source);
        continue;
      }
      Pack<T> values = {};
#pragma unroll
      for (int u = 0; u < kPack; ++u)
        if (line < lines && pack * kPack + u < length) values.value[u] = read(source + u);
      to.set(place(line, pack), values);
    }
  }
};

}  // namespace petx::cuda
