// Products of a strip of 64 rows by any number of columns, at most 64 deep, for 16-bit types: those up from a low rank,
// where few steps of a product stand against many values that follow it.
//
// A block of four warps, 16 rows each. The rows' operand stays in registers for all of the block's columns; the other
// passes through shared memory, 64 columns a stage. A lane has eight columns side by side of each of two rows, a pack
// of sixteen bytes: what follows reads, changes and writes it as it lies in memory, and no result goes through shared
// memory. Packed again it is an operand of the product along the columns.
//
// For that, the columns and the depth are numbered otherwise than in memory. Of step s of 16, numbers 2 t + e and
// 8 + 2 t + e, which are lane t's of four, are depths 16 t + 4 s + e and two further; of half g of a tile of columns,
// number 2 t + e of fragment f is column 32 g + 8 t + 2 f + e. An image is a tile of columns in this order, as it lies
// in shared memory, zeros past the end of either side; a launch before makes it. Pack c of a line, which is a depth, is
// exchanged by an exclusive or so that the eight packs of an ldmatrix start in eight different groups of banks.
#pragma once

#include "cuda/common/kernel.cuh"

namespace petx::cuda {

// Values of the images of so many columns.
inline int64_t images_of_columns(int64_t columns) { return tiles_along(columns) * kTile * kTile; }

template <class S>
class Strip {
 public:
  using T = S;
  static constexpr int kThreads = kStripLaunch.threads, kRows = 64, kDepth = 64, kColumns = 64;
  static constexpr int kImage = kDepth * kColumns;  // values
  static_assert(kRows == kTile && kImage == kTile * kTile);

 private:
  static constexpr int kPack = 8, kLinePacks = kColumns / kPack, kImagePacks = kImage / kPack, kStages = 3;
  static_assert(kThreads / 32 * 16 == kRows && kImagePacks % kThreads == 0);

 public:
  static constexpr int kSharedBytes = kStages * kImagePacks * 16;
  static_assert(fits(kStripLaunch, kSharedBytes));

  // Makes the image of a tile of columns, of which `from` has `count` and the depth. By all threads of a block.
  template <int threads, class Operand>
  PETX_DEVICE static void make_image(const Operand& from, int64_t depth, T* to) {
#pragma unroll 1
    for (int e = thread_index(); e < kImagePacks; e += threads) {
      const int line = e / kLinePacks, pack = e % kLinePacks ^ exchanged(line);
      Pack<T> values = {};
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const int column = pack / 4 * 32 + j / 2 * 8 + pack % 4 * 2 + j % 2;
        if (line < depth && column < from.count)
          values.value[j] = read(Operand::kTransposed ? from.line(line) + column : from.line(column) + line);
      }
      write(reinterpret_cast<Pack<T>*>(to) + e, values);
    }
  }

  // The strip's row that is the first of this lane's two; the other is eight further.
  PETX_DEVICE static int row(int thread = thread_index()) { return thread / 32 * 16 + thread % 32 / 4; }

  // What a lane has of the rows' operand, a fragment for each step of the depth.
  struct Rows {
    uint32_t word[kDepth / 16][4];

    // Of rows that lie `stride` apart, of which there are `count`.
    PETX_DEVICE Rows(const T* data, int64_t stride, int64_t count, int64_t depth) {
      const int first = thread_index() % 4 * 16;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int half = n / 2, at = first + n % 2 * kPack, of = row() + half * 8;
        const Pack<T> pack = read_pack(data + of * stride + at, of < count ? depth - at : 0);
        const FourWords words = bit_cast<FourWords>(pack);
#pragma unroll
        for (int w = 0; w < 4; ++w) word[n % 2 * 2 + w / 2][half + w % 2 * 2] = words.word[w];
      }
    }
    PETX_DEVICE void of_step(int step, uint32_t (&to)[4]) const {
#pragma unroll
      for (int w = 0; w < 4; ++w) to[w] = word[step][w];
    }
  };
  // The same in shared memory behind the stages, for whom registers are too few: each thread's own.
  struct KeptRows {
    static constexpr int kSharedBytes = kThreads * kDepth / 16 * 16;

    PETX_DEVICE explicit KeptRows(const Rows& rows) {
#pragma unroll
      for (int step = 0; step < kDepth / 16; ++step) {
        FourWords words;
        rows.of_step(step, words.word);
        place().set(step * kThreads + thread_index(), bit_cast<Pack<T>>(words));
      }
    }
    PETX_DEVICE void of_step(int step, uint32_t (&to)[4]) const {
      const FourWords words = bit_cast<FourWords>(place().get(step * kThreads + thread_index()));
#pragma unroll
      for (int w = 0; w < 4; ++w) to[w] = words.word[w];
    }

   private:
    PETX_DEVICE static Shared<Pack<T>> place() { return Shared<Pack<T>>(kStages * kImagePacks * 16); }
  };
  static_assert(fits(kStripLaunch, kSharedBytes + KeptRows::kSharedBytes));

  // A lane's results in half a tile.
  struct Sums {
    float of[4][4] = {};
    // Of its row `n`, the column that is number `j` of its eight.
    PETX_DEVICE float value(int n, int j) const { return of[j / 2][2 * n + j % 2]; }
    PETX_DEVICE void add(int n, int j, float value) { of[j / 2][2 * n + j % 2] += value; }
  };
  // Adds the product of `rows` and half a tile, or the products of several.
  template <class... AllRows>
  PETX_DEVICE static void multiply(Sums& sums, const Shared<Pack<T>>& in, int half, const AllRows&... rows) {
    const int lane = thread_index() % 32;
    const int at = place(lane % 8 / 2 * 16 + lane / 8 % 2 * 2 + lane % 2, lane / 16);
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t columns[2][4];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair)
        load_matrices<true>(columns[pair], in, at, half * 4 + pair * 2, step * 4 * kLinePacks);
      (multiply_step(sums, rows, step, columns), ...);
    }
  }

  // A lane's results along the columns: of its row `n`, depths 16 t to 16 t + 15 of the tile's.
  struct DepthSums {
    float of[8][4] = {};
    PETX_DEVICE float value(int n, int j) const { return of[j / 2][2 * n + j % 2]; }
  };
  // Adds the product of half a tile's values, of which `values` are this lane's, and the tile turned.
  PETX_DEVICE static void multiply_turned(DepthSums& sums, const Pack<T> (&values)[2], Shared<Pack<T>> in, int half) {
    const int lane = thread_index() % 32;
    const int at = place(lane % 8 / 2 * 16 + lane / 16 * 2 + lane % 2, lane / 8 % 2);
    const FourWords first = bit_cast<FourWords>(values[0]), second = bit_cast<FourWords>(values[1]);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint32_t rows[4] = {first.word[2 * step], second.word[2 * step], first.word[2 * step + 1],
                                second.word[2 * step + 1]};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        uint32_t columns[4];
        load_matrices<false>(columns, in, at, half * 4 + step * 2, pair * 4 * kLinePacks);
        multiply_matrices(sums.of[2 * pair], rows, columns[0], columns[1], T{});
        multiply_matrices(sums.of[2 * pair + 1], rows, columns[2], columns[3], T{});
      }
    }
  }

  // Brings `tiles` of the images, from `first` on, and calls visit(column, stage, half) for each half of each: this
  // lane's first column among all.
  template <class Visit>
  PETX_DEVICE static void each_half(const T* images, int64_t first, int64_t tiles, const Visit& visit) {
    const int count = static_cast<int>(tiles);
    images += first * kImage;
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < count) bring(images, stage, stage);
      commit_copies();
    }
    int now = 0;
#pragma unroll 1
    for (int tile = 0; tile < count; ++tile) {
      wait_copies<kStages - 2>();
      sync_block();
      // Into the stage that was multiplied last.
      if (tile + kStages - 1 < count) bring(images, tile + kStages - 1, now ? now - 1 : kStages - 1);
      commit_copies();
      const Shared<Pack<T>> in(now * kImagePacks * 16);
#pragma unroll 1
      for (int half = 0; half < 2; ++half)
        visit((first + tile) * kColumns + half * (kColumns / 2) + thread_index() % 4 * kPack, in, half);
      now = now == kStages - 1 ? 0 : now + 1;
    }
  }

 private:
  template <class AnyRows>
  PETX_DEVICE static void multiply_step(Sums& sums, const AnyRows& rows, int step, const uint32_t (&columns)[2][4]) {
    uint32_t of_rows[4];
    rows.of_step(step, of_rows);
#pragma unroll
    for (int f = 0; f < 4; ++f)
      multiply_matrices(sums.of[f], of_rows, columns[f / 2][f % 2 * 2], columns[f / 2][f % 2 * 2 + 1], T{});
  }

  PETX_DEVICE static int exchanged(int line) { return line / 16 + line % 2 * 4; }
  PETX_DEVICE static int place(int line, int pack) { return line * kLinePacks + (pack ^ exchanged(line)); }
  PETX_DEVICE static void bring(const T* images, int tile, int stage) {
    const Shared<Pack<T>> to(stage * kImagePacks * 16);
    const T* from = images + int64_t(tile) * kImage + thread_index() * kPack;
#pragma unroll
    for (int n = 0; n < kImagePacks / kThreads; ++n)
      copy_async(to, thread_index() + n * kThreads, from + n * kThreads * kPack, true);
  }
};

}  // namespace petx::cuda
