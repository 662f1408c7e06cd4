// A tile of a product for whom works on its results in runs of sixteen bytes: 64 rows by 64 or 128 columns whose
// results never leave the registers that they were made in.
//
// A product of 16 x 8 leaves a lane two neighbouring columns of two rows. Which columns of the operand these are is
// free, since each is a row of it that some lane names: of 32 columns product n takes 2 n and 2 n + 1 of every eight.
// So four products leave a lane eight neighbouring columns of each of its rows, which an access of memory moves, and of
// all its rows the same eight, whose biases are read once. Operands are contiguous along the depth and pass through
// shared memory as in wide_tile.cuh, 64 deep in two or three stages; packs of the columns are exchanged so that those
// eight rows lie in different banks.
#pragma once

#include "cuda/common/row_block.cuh"
#include "cuda/common/wide_tile.cuh"

namespace petx::cuda {

template <class S, int columns>
class RunTile {
  using Wide = WideTile<S, 2>;

 public:
  using T = S;
  using C = float;
  using Run = RunOf<T>;
  static constexpr int kThreads = kTileLaunch.threads, kM = 64, kN = columns, kRun = 8;

 private:
  static constexpr int kDepth = 64, kPart = 32, kPartPacks = kPart * kDepth / kRun;
  static constexpr int kRowParts = kM / kPart, kColumnParts = kN / kPart;  // a warp has all columns of a part
  static constexpr int kWarpRows = kM * kColumnParts / (kThreads / 32), kHalves = kWarpRows / 16;
  static constexpr int kStagePacks = (kRowParts + kColumnParts) * kPartPacks, kStages = kN > 64 ? 2 : 3;
  static constexpr int kGatesAt = kStages * kStagePacks * 16;

 public:
  static constexpr int kSharedBytes = kGatesAt + kM * kN * 2;
  static_assert(fits(kTileLaunch, kSharedBytes));
  static constexpr int shared_bytes(int) { return kSharedBytes; }
  static constexpr int kRows = 2 * kHalves;  // of a thread, which has one run of each
  static constexpr bool kOneRun = true;
  // Four threads have neighbouring runs of a row: so many parts of its sum.
  static constexpr int kRowSums = kN / (4 * kRun);
  // Threads that have the same columns, and their rows' sums in them.
  static constexpr int kColumnGroups = kM / kRows;

  struct Sums {
    float value[kHalves][4][4];

    // What the products are added to: the same for all rows.
    PETX_DEVICE void begin(const Run& with) {
#pragma unroll
      for (int i = 0; i < kHalves; ++i)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) value[i][n][e] = with.value[2 * n + e % 2];
    }
    PETX_DEVICE Run run(int number, int, int) const {
      Run found;
#pragma unroll
      for (int j = 0; j < kRun; ++j) found.value[j] = value[number / 2][j / 2][number % 2 * 2 + j % 2];
      return found;
    }
  };

  // Of each of this thread's runs a pack that it keeps beside the sums, for which there are no registers.
  struct Gates {
    PETX_DEVICE void set(int number, Pack<T> pack) const {
      Shared<Pack<T>>(kGatesAt).set(number * kThreads + thread_index(), pack);
    }
    PETX_DEVICE Pack<T> get(int number) const {
      return Shared<Pack<T>>(kGatesAt).get(number * kThreads + thread_index());
    }
  };

  // Calls visit(c) for the places in a tile where this thread's runs begin.
  template <class Visit>
  PETX_DEVICE static void each_place(const Visit& visit) {
    visit(column_part() * kPart + thread() % 4 * kRun);
  }
  // Calls visit(number, row) for this thread's rows.
  template <class Visit>
  PETX_DEVICE static void each_row(const Visit& visit) {
#pragma unroll
    for (int number = 0; number < kRows; ++number) visit(number, first_row() + 8 * number);
  }
  // visit(row): for whom has no sums of them in registers.
  template <class Visit>
  PETX_DEVICE static void each_row_in_turn(const Visit& visit) {
#pragma unroll 1
    for (int row = first_row(), end = row + 8 * kRows; row < end; row += 8) visit(row);
  }
  // The part in which the place `c` is.
  PETX_DEVICE static int part(int c) { return c / (4 * kRun); }
  // Among the threads that have the same columns.
  PETX_DEVICE static int column_group() { return thread() / 32 / kColumnParts * 8 + thread() % 32 / 4; }
  // A sum of this thread's rows is all that its group has.
  PETX_DEVICE static void join_rows(Run&) {}
  PETX_DEVICE static bool leaves_columns() { return true; }

  // sums += A B^T over `depth`. `staged`: A is at most one chunk deep and lies where MmaTile's StagedRows are put, so
  // that it is not brought.
  template <class A, class B>
  PETX_DEVICE static void multiply(Sums& sums, int, const A& a, const B& b, int64_t depth, bool staged = false) {
    static_assert(!A::kTransposed && !B::kTransposed);
    const uint32_t warp = thread() / 32, lane = thread() % 32, first_row = warp / kColumnParts * kWarpRows;
    const int chunks = static_cast<int>((depth + kDepth - 1) / kDepth);
    typename Wide::template Feed<A, kRowParts> left(a, depth);
    typename Wide::template Feed<B, kColumnParts> right(b, depth, place(thread() / 8, thread() % 8));
    // Matrices: rows 0-7 and 8-15, then the same eight further in depth; eight columns, the same eight further in
    // depth, then the next eight.
    const int rows_at =
        first_row / kPart * kPartPacks + Wide::template place<false>(first_row % kPart + lane % 16, lane / 16);
    const int columns_at =
        (kRowParts + column_part()) * kPartPacks + place(lane % 8 / 2 * 8 + lane % 2 + lane / 16 * 2, lane / 8 % 2);
    sync_block();  // the stages may still be read
#pragma unroll
    for (int chunk = 0; chunk < kStages - 1; ++chunk) {
      if (chunk < chunks && !(staged && chunk == 0)) left.stage(chunk, chunk * kStagePacks);
      if (chunk < chunks) right.stage(chunk, right_of(chunk * kStagePacks));
      commit_copies();
    }
    int now = 0, next = (kStages - 1) * kStagePacks;  // first packs of stages
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_copies<kStages - 2>();
      sync_block();
      if (chunk + kStages - 1 < chunks)
        left.stage(chunk + kStages - 1, next), right.stage(chunk + kStages - 1, right_of(next));
      commit_copies();
      const Shared<Pack<T>> in(now * 16);
      const int steps = (static_cast<int>(depth) - chunk * kDepth + 15) / 16;  // zeros from there on
#pragma unroll
      for (int step = 0; step < kDepth / 16; ++step) {
        if (step >= steps) break;
        uint32_t rows[kHalves][4];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) load_matrices<false>(rows[half], in, rows_at, 2 * step, half * 128);
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t of[4];
          load_matrices<false>(of, in, columns_at, 2 * step, pair * 32);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            multiply_matrices(sums.value[half][2 * pair], rows[half], of[0], of[1], T{});
            multiply_matrices(sums.value[half][2 * pair + 1], rows[half], of[2], of[3], T{});
          }
        }
      }
      now = next_stage(now), next = next_stage(next);
    }
  }

 private:
  // Unsigned, of which quotients and remainders are an instruction each.
  PETX_DEVICE static uint32_t thread() { return static_cast<uint32_t>(thread_index()); }
  PETX_DEVICE static uint32_t column_part() { return thread() / 32 % kColumnParts; }
  PETX_DEVICE static int first_row() { return thread() / 32 / kColumnParts * kWarpRows + thread() % 32 / 4; }
  PETX_DEVICE static int right_of(int stage) { return stage + kRowParts * kPartPacks; }
  PETX_DEVICE static int next_stage(int stage) {
    return stage == (kStages - 1) * kStagePacks ? 0 : stage + kStagePacks;
  }
  // Of a part of the columns: those that a matrix takes lie two by two, eight apart.
  PETX_DEVICE static uint32_t place(uint32_t line, uint32_t pack) {
    return line * 8 + (pack ^ (line / 8 * 2 + line % 2));
  }
};

// The same on the plain units: results in shared memory, a row a thread and several runs of it.
template <class S>
class PlainRunTile : public FmaTile<S> {
  using Base = FmaTile<S>;

 public:
  using T = S;
  using C = Compute<T>;
  using Run = RunOf<T>;
  static constexpr int kRun = 16 / sizeof(T), kRows = 1, kRowSums = Base::kN / (4 * kRun),
                       kColumnGroups = Base::kThreads / 32;
  static constexpr bool kOneRun = false;

  // They begin with zeros.
  struct Sums {
    int slot;
    PETX_DEVICE Run run(int, int row, int c) const {
      Run found;
#pragma unroll
      for (int j = 0; j < kRun; ++j) found.value[j] = Base::result(slot, row, c, j);
      return found;
    }
  };
  using Gates = Sums;
  template <class A, class B>
  PETX_DEVICE static void multiply(Sums& sums, int slot, const A& a, const B& b, int64_t depth, bool = false) {
    sums.slot = slot;
    Base::multiply(slot, a, b, depth);
  }

  template <class Visit>
  PETX_DEVICE static void each_place(const Visit& visit) {
#pragma unroll 1
    for (int c = thread_index() % 4 * kRun; c < Base::kN; c += 4 * kRun) visit(c);
  }
  template <class Visit>
  PETX_DEVICE static void each_row(const Visit& visit) {
    visit(0, thread_index() / 4);
  }
  template <class Visit>
  PETX_DEVICE static void each_row_in_turn(const Visit& visit) {
    visit(thread_index() / 4);
  }
  PETX_DEVICE static int part(int c) { return c / (4 * kRun); }
  PETX_DEVICE static int column_group() { return thread_index() / 32; }
  // The rows of a warp, in all of its threads.
  PETX_DEVICE static void join_rows(Run& sum) {
#pragma unroll
    for (C& value : sum.value)
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
  }
  PETX_DEVICE static bool leaves_columns() { return thread_index() % 32 < 4; }
};

template <class T, bool wide = false>
using RunTileOf = std::conditional_t<sizeof(T) == 2, RunTile<T, wide ? 128 : 64>, PlainRunTile<T>>;

}  // namespace petx::cuda
