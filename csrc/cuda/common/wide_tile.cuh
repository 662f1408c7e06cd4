// One tile of a matrix product on the matrix units, 128 x 32 n results, for 16-bit types and any shape.
//
// A block of 8 warps, four by two, computes 32 x 16 n results per warp, which stay in registers: 12 products of a warp
// for 5 loads of fragments at n = 3, where the 64 x 64 of mma_tile.cuh have 4 for 3, and an operand is read half as
// often. What a rank of 96 or 192 needs is no more than n = 3 has. Operands pass through shared memory 64 deep, in
// three stages if two blocks then fit into a multiprocessor, in two otherwise; a chunk takes one barrier, behind which
// the stage that was multiplied last is filled again.
//
// A stage is made of parts of 32 rows by 64 of the depth, 4 KB along whichever index runs through memory: 32 lines of
// eight packs (sixteen bytes each), or 64 lines of four. Each thread brings one pack of each part, always at the same
// place, so that parts, steps of the depth and halves of a part are constants away from each other. Places within
// eight packs, or within four of every other line, are exchanged so that the eight packs of an ldmatrix start in eight
// different groups of banks.
#pragma once

#include "cuda/common/operand.cuh"

namespace petx::cuda {

// Packs of a stage of tiles of 128 x 32 `parts`, and as many stages as two blocks leave room for.
constexpr int wide_stage_packs(int parts) { return (4 + parts) * 256; }
constexpr int wide_stages(int parts) { return fits(kTileLaunch, 3 * 16 * wide_stage_packs(parts)) ? 3 : 2; }

template <class S, int parts, int stages = wide_stages(parts)>
class WideTile {
 public:
  using T = S;
  static constexpr int kThreads = kTileLaunch.threads, kM = 128, kN = 32 * parts;

 private:
  static constexpr int kDepth = 64, kPack = 8, kPart = 32, kRowParts = kM / kPart;
  static constexpr int kPartPacks = kPart * kDepth / kPack, kStagePacks = wide_stage_packs(parts);
  static constexpr int kStages = stages;
  static_assert(kPartPacks == kThreads, "a thread brings a pack of each part");
  static_assert(kStagePacks == (kRowParts + parts) * kPartPacks);

 public:
  static constexpr int kSharedBytes = kStages * kStagePacks * 16;
  static_assert(fits(kTileLaunch, kSharedBytes) && kM * kN * sizeof(float) <= kSharedBytes);

  // What a thread has of the results: of 16 rows each, pairs of columns; see each_pair.
  struct Sums {
    float value[2][2 * parts][4] = {};
  };

  PETX_DEVICE static void add(Sums& to, const Sums& sums) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < 2 * parts; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) to.value[half][n][e] += sums.value[half][n][e];
  }

  // Adds A B^T over `depth`.
  template <class A, class B>
  PETX_DEVICE static void multiply(Sums& sums, const A& a, const B& b, int64_t depth) {
    multiply_sides(sums, a, Side<B, parts>(b, depth, warp_column()), NoSide{}, depth);
  }
  // The same of two operands, of which the last 32 columns are the second's.
  template <class A, class B, class Last>
  PETX_DEVICE static void multiply_beside(Sums& sums, const A& a, const B& b, const Last& last, int64_t depth) {
    multiply_sides(sums, a, Side<B, parts - 1>(b, depth, warp_column()), Side<Last, 1>(last, depth, warp_column()),
                   depth);
  }

  // The block's 128 of `all` rows of `a`, which lie `stride` apart, times B^T, left in shared memory.
  template <class B>
  PETX_DEVICE static void multiply_rows(const void* a, int64_t stride, int64_t all, const B& b, int64_t depth) {
    const int64_t first = block_x() * kM;
    Sums sums;
    multiply(sums, Rows<T>{static_cast<const T*>(a) + first * stride, stride, all - first}, b, depth);
    leave(sums);
  }

  // Puts the results where every thread finds them, in the place of the stages.
  PETX_DEVICE static void leave(const Sums& sums) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int at = result_place(warp / 2 * kPart + lane / 4, warp % 2 * 16 + lane % 4 * 2, kN);
    sync_block();
#pragma unroll
    for (int half = 0; half < 4; ++half)
#pragma unroll
      for (int n = 0; n < 2 * parts; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          Shared<float>(0).set_exchanged(at, n % 2 * 8 + e, half * 8 * kN + n / 2 * kPart,
                                         sums.value[half / 2][n][half % 2 * 2 + e]);
    sync_block();
  }
  // The same where rows are columns and columns rows, `bytes` from the start of shared memory.
  PETX_DEVICE static void leave_turned(const Sums& sums, int bytes) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int at = result_place(warp % 2 * 16 + lane % 4 * 2, warp / 2 * kPart + lane / 4, kM);
    sync_block();
#pragma unroll
    for (int half = 0; half < 4; ++half)
#pragma unroll
      for (int n = 0; n < 2 * parts; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          Shared<float>(bytes).set_exchanged(at, half * 8 + e, (e + n % 2 * 8 + n / 2 * kPart) * kM,
                                             sums.value[half / 2][n][half % 2 * 2 + e]);
    sync_block();
  }
  // Element (row, column + on), of columns that begin at a multiple of the next power of two.
  PETX_DEVICE static float result(int row, int column, int on = 0) {
    return Shared<float>(0).get_exchanged(result_place(row, column, kN), on);
  }

  // Calls visit(row, column, first, second) for this thread's results (row, column) and (row, column + 1).
  template <class Visit>
  PETX_DEVICE static void each_pair(const Sums& sums, const Visit& visit) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int row = warp / 2 * kPart + lane / 4, column = warp % 2 * 16 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 4; ++half)
#pragma unroll
      for (int n = 0; n < 2 * parts; ++n) {
        const float (&of)[4] = sums.value[half / 2][n];
        visit(row + half * 8, column + n / 2 * kPart + n % 2 * 8, of[half % 2 * 2], of[half % 2 * 2 + 1]);
      }
  }

 private:
  template <class A, class First, class Last>
  PETX_DEVICE static void multiply_sides(Sums& sums, const A& a, First first, Last last, int64_t depth) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int chunks = static_cast<int>((depth + kDepth - 1) / kDepth);
    Feed<A, kRowParts> left(a, depth);
    // Matrices: rows 0-7 and 8-15, then the same eight further in depth.
    const int rows_at = warp / 2 * kPartPacks + begin_of<A::kTransposed>(lane % 16 / 8 * 8, lane / 16 * 8);
    auto bring = [&](int chunk, int stage) {
      left.stage(chunk, stage), first.stage(chunk, stage + kRowParts * kPartPacks);
      last.stage(chunk, stage + (kRowParts + First::kParts) * kPartPacks);
    };
#pragma unroll
    for (int chunk = 0; chunk < kStages - 1; ++chunk) {
      if (chunk < chunks) bring(chunk, chunk * kStagePacks);
      commit_copies();
    }
    int now = 0, next = (kStages - 1) * kStagePacks;  // first packs of stages
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_copies<kStages - 2>();
      sync_block();
      if (chunk + kStages - 1 < chunks) bring(chunk + kStages - 1, next);
      commit_copies();
      const Shared<Pack<T>> in(now * 16);
      const int steps = (static_cast<int>(depth) - chunk * kDepth + 15) / 16;  // zeros from there on
#pragma unroll
      for (int step = 0; step < kDepth / 16; ++step) {
        if (step >= steps) break;
        uint32_t rows[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          load_matrices<A::kTransposed>(rows[half], in, rows_at, A::kTransposed ? 2 * half : 2 * step,
                                        A::kTransposed ? step * 64 : half * 128);
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          uint32_t columns[4];
          if (part < First::kParts)
            first.load(columns, in, part, step);
          else
            last.load(columns, in, part, step);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            multiply_matrices(sums.value[half][2 * part], rows[half], columns[0], columns[1], T{});
            multiply_matrices(sums.value[half][2 * part + 1], rows[half], columns[2], columns[3], T{});
          }
        }
      }
      now = next_stage(now), next = next_stage(next);
    }
  }

  PETX_DEVICE static int next_stage(int stage) {
    return stage == (kStages - 1) * kStagePacks ? 0 : stage + kStagePacks;
  }
  // The pack that this lane names where its matrix begins at row `i` and depth `k` of a part.
  template <bool transposed>
  PETX_DEVICE static int begin_of(int i, int k) {
    const int within = thread_index() % 8;
    return transposed ? place<true>(k + within, i / kPack) : place<false>(i + within, k / kPack);
  }

 public:
  // Of a part: eight packs of a row's depth a line, or four packs of rows at one depth.
  template <bool transposed>
  PETX_DEVICE static int place(int line, int pack) {
    return transposed ? line * 4 + (pack ^ line / 2 % 4) : line * 8 + (pack ^ line % 8);
  }

  // What a thread brings of an operand: of each part and chunk a pack, to the place `in_part`.
  template <class Operand, int count>
  class Feed {
    static constexpr bool kTransposed = Operand::kTransposed;
    static constexpr int kLinePacks = kTransposed ? 4 : 8;

   public:
    PETX_DEVICE Feed(const Operand& operand, int64_t depth,
                     int in_part = place<kTransposed>(thread_index() / kLinePacks, thread_index() % kLinePacks))
        : from_(operand), depth_(depth), place_(in_part), gap_(kTransposed ? kPart : kPart * operand.stride) {
      constexpr int kRows = kPart * count;
      all_ = from_.count >= kRows;
      // Every pack lies wholly inside the matrix or wholly outside.
      whole_ = from_.aligned() && (kTransposed ? all_ || from_.count % kPack == 0 : depth % kPack == 0);
      next_ = from_.line(thread_index() / kLinePacks) + thread_index() % kLinePacks * kPack;
    }

    // Brings chunk after chunk, from 0 on, to the parts that begin with pack `to`.
    PETX_DEVICE void stage(int chunk, int to) {
      const Shared<Pack<T>> in(to * 16);
      const int line = thread_index() / kLinePacks, first = thread_index() % kLinePacks * kPack;
      const int64_t rest = depth_ - int64_t(chunk) * kDepth;
      if (!whole_) {
        stage_values(in, line, first, rest);
      } else if (all_ && rest >= kDepth) {
#pragma unroll
        for (int part = 0; part < count; ++part) copy_async(in, place_ + part * kPartPacks, next_ + part * gap_, true);
      } else {
        // The pack's first row in its part; no row is wanted past the depth.
        const int row = kTransposed ? first : line, last = kTransposed ? line : first;
        const int64_t rows = last < rest ? from_.count : 0;
#pragma unroll
        for (int part = 0; part < count; ++part)
          copy_async(in, place_ + part * kPartPacks, next_ + part * gap_, row + part * kPart < rows);
      }
      next_ += kTransposed ? kDepth * from_.stride : kDepth;
    }

   private:
    // The same for any alignment and any size, value by value.
    PETX_DEVICE void stage_values(const Shared<Pack<T>>& in, int line, int first, int64_t rest) const {
#pragma unroll 1
      for (int part = 0; part < count; ++part) {
        const int64_t lines = kTransposed ? rest : from_.count - part * kPart;
        const int64_t length = kTransposed ? from_.count - part * kPart : rest;
        Pack<T> values = {};
#pragma unroll
        for (int u = 0; u < kPack; ++u)
          if (line < lines && first + u < length) values.value[u] = read(next_ + part * gap_ + u);
        in.set(place_ + part * kPartPacks, values);
      }
    }

    const Operand from_;
    const T* next_;
    int64_t depth_;
    int place_;
    int64_t gap_;  // between parts
    bool whole_, all_;
  };

  // The side of a product that is columns: what a thread brings of it, and where its warp finds fragments. Matrices:
  // columns 0-7, the same eight further in depth, then columns 8-15. A warp has every other 16 columns, so that the
  // next are always a part away.
  PETX_DEVICE static int warp_column() { return thread_index() / 32 % 2 * 16; }
  template <class Operand, int count>
  class Side : public Feed<Operand, count> {
   public:
    static constexpr int kParts = count;
    PETX_DEVICE Side(const Operand& operand, int64_t depth, int column)
        : Feed<Operand, count>(operand, depth),
          at_(kRowParts * kPartPacks +
              begin_of<Operand::kTransposed>(column + thread_index() % 32 / 16 * 8, thread_index() % 16 / 8 * 8)) {}
    PETX_DEVICE void load(uint32_t (&columns)[4], const Shared<Pack<T>>& in, int part, int step) const {
      load_matrices<Operand::kTransposed>(columns, in, at_, Operand::kTransposed ? 0 : 2 * step,
                                          part * kPartPacks + (Operand::kTransposed ? step * 64 : 0));
    }

   private:
    int at_;
  };
  struct NoSide {
    PETX_DEVICE void stage(int, int) {}
    PETX_DEVICE void load(uint32_t (&)[4], const Shared<Pack<T>>&, int, int) const {}
  };
};

}  // namespace petx::cuda
