// One tile of a matrix product on the matrix units, for 16-bit types and any shape; the interface of fma_tile.cuh.
//
// A block of 8 warps computes 64 x 64 results, 16 x 32 per warp. Operands pass through shared memory 64 deep in two
// stages, the next one on its way while one is multiplied. A stage is 64 lines of 128 bytes, along whichever index runs
// through memory; ldmatrix turns it if that is not the depth. Pack c of line i lies at c ^ (i % 8), so that the
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

  // Result number `slot` of the block: element (row, column + on), of columns that begin at a multiple of the next
  // power of two.
  PETX_DEVICE static C result(int slot, int row, int column, int on = 0) {
    return results(slot).get_exchanged(result_place(row, column), on);
  }
  PETX_DEVICE static void set_result(int slot, int row, int column, C value) {
    results(slot).set(result_place(row, column), value);
  }

  // Rows of an operand that whoever computes them leaves where a product has its first chunk, pack by pack and zeros
  // past the end of either side: as A they need no copy. Behind a barrier after the product before.
  struct StagedRows {
    static constexpr bool kTransposed = false;
    PETX_DEVICE static void set(int row, int pack, const Pack<T>& values) {
      Shared<Pack<T>>(0).set(place(row, pack), values);
    }
  };

  // result(slot) = A B^T over `depth`, ready for every thread.
  template <class A, class B>
  PETX_DEVICE static void multiply(int slot, const A& a, const B& b, int64_t depth) {
    int warp = thread_index() / 32, lane = thread_index() % 32;
    int first_row = warp / 2 * kWarpRows, first_column = warp % 2 * kWarpColumns;
    float sum[kWarpColumns / 8][4] = {};
    const int chunks = static_cast<int>((depth + kDepth - 1) / kDepth);
    Feed<A> left(a, depth);
    Feed<B> right(b, depth);
    // Matrices: rows 0-7 and 8-15, then the same eight further in depth; columns 0-7, the same eight further in depth,
    // then columns 8-15.
    const int rows_at = begin_of<A::kTransposed>(first_row + lane % 16 / 8 * 8, lane / 16 * 8);
    const int columns_at = begin_of<B::kTransposed>(first_column + lane / 16 * 8, lane % 16 / 8 * 8);
    left.stage(0, 0), right.stage(0, kOperandBytes);
    commit_copies();
    int now = 0;  // where the stage begins, in bytes
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) {
        const int next = now ^ kStageBytes;
        left.stage(chunk + 1, next), right.stage(chunk + 1, kOperandBytes + next);
        commit_copies();
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      sync_block();
      const Shared<Pack<T>> rows_in(now), columns_in(kOperandBytes + now);
      auto multiply_step = [&](int step) {
        uint32_t rows[4];
        load_matrices<A::kTransposed>(rows, rows_in, rows_at, packs_on<A::kTransposed>(step),
                                      lines_on<A::kTransposed>(step));
#pragma unroll
        for (int pair = 0; pair < kWarpColumns / 16; ++pair) {
          uint32_t columns[4];
          load_matrices<B::kTransposed>(columns, columns_in, columns_at,
                                        packs_on<B::kTransposed>(step) ^ packs_on<!B::kTransposed>(pair),
                                        lines_on<B::kTransposed>(step) + lines_on<!B::kTransposed>(pair));
          multiply_matrices(sum[2 * pair], rows, columns[0], columns[1], T{});
          multiply_matrices(sum[2 * pair + 1], rows, columns[2], columns[3], T{});
        }
      };
      const int rest = static_cast<int>(depth) - chunk * kDepth;  // zeros from there on
      if (rest >= kDepth) {
#pragma unroll
        for (int step = 0; step < kDepth / 16; ++step) multiply_step(step);
      } else {
#pragma unroll 1
        for (int step = 0; 16 * step < rest; ++step) multiply_step(step);
      }
      now ^= kStageBytes;
      sync_block();
    }
    lane = opaque(lane) & 31;  // an address is not kept from one product to the next
#pragma unroll
    for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        results(slot).set_exchanged(result_place(first_row + lane / 4, first_column + lane % 4 * 2), n * 8 + e % 2,
                                    e / 2 * 8 * kN, sum[n][e]);
    sync_block();
  }

 private:
  PETX_DEVICE static Shared<C> results(int slot) { return Shared<C>(2 * kOperandBytes + slot * kResultBytes); }
  PETX_DEVICE static int place(int line, int pack) { return line * kLinePacks + (pack ^ line % 8); }

  // The pack that this lane names where its matrix begins at row `i` and depth `k` of a stage. What lies 16 further
  // along lines is a constant away, what lies 16 further along a line is exchanged by an exclusive or: `times` of
  // either.
  template <bool transposed>
  PETX_DEVICE static int begin_of(int i, int k) {
    int within = thread_index() % 8;
    return transposed ? place(k + within, i / kPack) : place(i + within, k / kPack);
  }
  template <bool along_lines>
  PETX_DEVICE static int lines_on(int times) {
    return along_lines ? times * 16 * kLinePacks : 0;
  }
  template <bool along_lines>
  PETX_DEVICE static int packs_on(int times) {
    return along_lines ? 0 : times * (16 / kPack);
  }

  // What a thread brings of an operand: two packs of each chunk. Their places in a stage are fixed, a constant apart,
  // and their addresses advance by a constant: a whole chunk costs two copies and two additions.
  template <class Operand, class Unused = void>
  class Feed {
   public:
    PETX_DEVICE Feed(const Operand& operand, int64_t depth) : from_(operand), depth_(depth) {
      const int line = thread_index() / kLinePacks, pack = thread_index() % kLinePacks;
      all_ = from_.count >= kM;
      // Every pack lies wholly inside the matrix or wholly outside.
      whole_ = from_.aligned() && (Operand::kTransposed ? all_ || from_.count % kPack == 0 : depth % kPack == 0);
      next_ = from_.line(line) + pack * kPack;
      gap_ = from_.line(line + kLines) - from_.line(line);
      place_ = place(line, pack);
    }

    // Brings chunk after chunk, from 0 on, to the stage that begins `bytes` from the start of shared memory.
    PETX_DEVICE void stage(int chunk, int bytes) {
      const Shared<Pack<T>> to(bytes);
      if (!whole_) {
        MmaTile::stage(to, from_, int64_t(chunk) * kDepth, depth_);
        return;
      }
      const int rest = static_cast<int>(depth_) - chunk * kDepth;
      if (all_ && rest >= kDepth) {
#pragma unroll
        for (int n = 0; n < 2; ++n) copy_async(to, place_ + n * kLines * kLinePacks, next_ + n * gap_, true);
      } else {
        const int line = thread_index() / kLinePacks, end = (thread_index() % kLinePacks + 1) * kPack;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int of = line + n * kLines;
          const bool wanted = Operand::kTransposed ? of < rest && end <= from_.count : end <= rest && of < from_.count;
          copy_async(to, place_ + n * kLines * kLinePacks, next_ + n * gap_, wanted);
        }
      }
      next_ += Operand::kTransposed ? kDepth * from_.stride : kDepth;
    }

   private:
    static constexpr int kLines = kThreads / kLinePacks;
    static_assert(2 * kLines == kM && kLines % 8 == 0, "packs of two lines that far apart are exchanged alike");
    const Operand& from_;
    const T* next_;
    int64_t gap_, depth_;  // between the two packs
    int place_;
    bool whole_, all_;
  };

  template <class Unused>
  class Feed<StagedRows, Unused> {
   public:
    PETX_DEVICE Feed(const StagedRows&, int64_t) {}
    PETX_DEVICE void stage(int, int) {}
  };

  // The same for any alignment, any size and values that are computed as they are read, value by value.
  template <class Operand>
  PETX_DEVICE static void stage(Shared<Pack<T>> to, const Operand& from, int64_t k0, int64_t depth) {
    int64_t lines = Operand::kTransposed ? depth - k0 : from.count,
            length = Operand::kTransposed ? from.count : depth - k0;
    int64_t first_line = Operand::kTransposed ? k0 : 0, first_value = Operand::kTransposed ? 0 : k0;
#pragma unroll 1
    for (int e = thread_index(); e < kM * kLinePacks; e += kThreads) {
      int line = e / kLinePacks, pack = e % kLinePacks;
      const T* source = from.line(first_line + line) + first_value + pack * kPack;
      Pack<T> values = {};
#pragma unroll
      for (int u = 0; u < kPack; ++u)
        if (line < lines && pack * kPack + u < length)
          values.value[u] = from.fetch(source + u, first_value + pack * kPack + u);
      to.set(place(line, pack), values);
    }
  }
};

}  // namespace petx::cuda
