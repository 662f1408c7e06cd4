// What forward and backward of cp_reconstruct compute alike: A_k = V M_k^T of 64 rows, the update A_k U of a tile, the
// walk over a tile of a weight in packs of 16 bytes, and sums of tiles.
//
// As operand of a 16-bit product A is two values, itself rounded and what the rounding left: an update that had lost
// A's last bits would fall on the other side of a gate's threshold now and then, and be rounded twice in the sum.
#pragma once

#include "cuda/common/kernel.cuh"
#include "cuda/cp_reconstruct/plan.h"
#include "kernels/cp_reconstruct.h"

namespace petx::cuda {

// The call as kernels see it: constants in the type that they are used in, so that no kernel computes in double.
template <class C>
struct ReconstructCall : CpReconstructParams {
  C scale, inverse_temperature;

  explicit ReconstructCall(const CpReconstructParams& p)
      : CpReconstructParams(p), scale(C(p.scale)), inverse_temperature(C(1 / p.temperature)) {}
};

// A [.., R] where it is an operand.
template <class T>
struct Mixed {
  static constexpr int kParts = sizeof(T) == 2 ? 2 : 1;
  T* high;
  T* low;  // null where kParts is 1
  PETX_DEVICE Mixed from(int64_t value) const { return {high ? high + value : nullptr, low ? low + value : nullptr}; }
  // A pack of values, or the first `count` of them.
  PETX_DEVICE void put(int64_t i, Compute<T> (&values)[16 / sizeof(T)], int64_t count) const {
    const Pack<T> rounded = pack<T>(values);
    write_pack(high + i, rounded, count);
    if constexpr (kParts == 2) {
#pragma unroll
      for (int j = 0; j < static_cast<int>(16 / sizeof(T)); ++j) values[j] -= load(rounded.value[j]);
      write_pack(low + i, pack<T>(values), count);
    }
  }
  static Mixed take(Workspace& workspace, int64_t values) {
    T* high = workspace.take<T>(values);
    return {high, kParts == 2 ? workspace.take<T>(values) : nullptr};
  }
};

PETX_HD inline int64_t tiles_of(int64_t extent) { return (extent + 63) / 64; }

template <class T>
class ReconstructTile {
 public:
  using Tile = TileOf<T>;
  using C = Compute<T>;
  static_assert(Tile::kM == 64 && Tile::kN == 64);
  static constexpr int kPack = 16 / sizeof(T), kRowPacks = Tile::kN / kPack;
  static constexpr int kSharers = Tile::kThreads / Tile::kM, kThreadPacks = kRowPacks / kSharers;

  PETX_DEVICE ReconstructTile(const ReconstructCall<C>& call, int64_t module, int64_t row_tile)
      : p(call),
        module_(module),
        first(row_tile * Tile::kM),
        rows(p.d_out - first < Tile::kM ? p.d_out - first : Tile::kM) {
    if (p.threshold) threshold_ = at<T>(p.threshold, p.threshold_of(module));
  }

  // `mixed` [rows, R] = V M^T of these rows; ready for the block after its next barrier.
  PETX_DEVICE void mix(const Mixed<T>& mixed) const {
    const T* v = static_cast<const T*>(p.v) + first * p.rank;
    if (p.diagonal) {
      const T* diagonal = static_cast<const T*>(p.cores) + module_ * p.rank;
      mix_tile(mixed, 0, p.rank, [&](C(&to)[kPack], int64_t i, int64_t j, int64_t left) {
        C by[kPack];
        unpack(to, read_pack(v + i * p.rank + j, left)), unpack(by, read_pack(diagonal + j, left));
#pragma unroll
        for (int u = 0; u < kPack; ++u) to[u] *= by[u];
      });
      return;
    }
    const T* core = static_cast<const T*>(p.cores) + module_ * p.rank * p.rank;
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      Tile::multiply(0, Rows<T>{v, p.rank, rows}, Rows<T>{core + begin * p.rank, p.rank, p.rank - begin}, p.rank);
      mix_tile(mixed, begin, begin + Tile::kN, [&](C(&to)[kPack], int64_t i, int64_t j, int64_t) {
#pragma unroll
        for (int u = 0; u < kPack; ++u) to[u] = Tile::result(0, static_cast<int>(i), static_cast<int>(j - begin), u);
      });
    }
  }

  // Makes A U of the tile of columns from `column` on, not yet scaled.
  static constexpr int kResults = Mixed<T>::kParts;
  PETX_DEVICE void make_update(const Mixed<T>& mixed, int64_t column) const {
    Columns<T> u{static_cast<const T*>(p.u) + column, p.d_in, p.d_in - column};
    Tile::multiply(0, Rows<T>{mixed.high, p.rank, rows}, u, p.rank);
    if constexpr (kResults == 2) Tile::multiply(1, Rows<T>{mixed.low, p.rank, rows}, u, p.rank);
  }
  PETX_DEVICE static C update(int row, int column) {
    if constexpr (kResults == 2) return Tile::result(0, row, column) + Tile::result(1, row, column);
    return Tile::result(0, row, column);
  }

  template <Gate kind>
  PETX_DEVICE C gate(C update) const {
    return gated<kind>(p.scale * update, threshold_, p.inverse_temperature);
  }
  template <Gate kind>
  PETX_DEVICE GateSlopes<C> slopes(C update) const {
    return gate_slopes<kind>(p.scale * update, threshold_, p.inverse_temperature);
  }

  // This thread's pack number n of a tile: its row and first column there, and how many of its values are the matrix's.
  // A warp takes four packs of each of eight rows: of a row's whole width, packs 32 columns apart would meet in one
  // bank of the result's shared memory.
  struct Place {
    int row, column, count;
  };
  PETX_DEVICE Place place(int n, int64_t column) const {
    const int thread = opaque(thread_index());
    Place to{thread / kSharers, (n * kSharers + thread % kSharers) * kPack, 0};
    int64_t left = p.d_in - column - to.column;
    if (to.row < rows && left > 0) to.count = left < kPack ? static_cast<int>(left) : kPack;
    return to;
  }
  PETX_DEVICE int64_t index(const Place& place, int64_t column) const {
    return (first + place.row) * p.d_in + column + place.column;
  }

 private:
  // Ranks [begin, end) of `mixed`, whose packs make(values, row, rank, ranks left) makes, four threads a row.
  template <class Make>
  PETX_DEVICE void mix_tile(const Mixed<T>& mixed, int64_t begin, int64_t end, const Make& make) const {
    const int64_t row = thread_index() / kSharers;
    if (row >= rows) return;
#pragma unroll 1
    for (int64_t j = begin + thread_index() % kSharers * kPack; j < end; j += kSharers * kPack) {
      C values[kPack];
      make(values, row, j, p.rank - j);
      mixed.put(row * p.rank + j, values, p.rank - j);
    }
  }

  const ReconstructCall<C>& p;
  int64_t module_;
  C threshold_ = 0;

 public:
  const int64_t first, rows;
};

// Sums of a 64 x 64 tile in a result of its own, each value in the hands of one thread: in registers they would crowd
// out the products' fragments.
template <class T>
struct TileSum {
  using Tile = TileOf<T>;
  static constexpr int kSlot = ReconstructTile<T>::kResults, kValues = Tile::kM * Tile::kN / Tile::kThreads;
  static constexpr int kSharedBytes = Tile::shared_bytes(kSlot + 1);
  static_assert(fits(kTileLaunch, kSharedBytes));

  PETX_DEVICE TileSum() {
#pragma unroll 4
    for (int n = 0; n < kValues; ++n) Tile::set_result(kSlot, row(n), column(), Compute<T>(0));
  }
  PETX_DEVICE Compute<T> value(int n) const { return Tile::result(kSlot, row(n), column()); }
  // Adds result 0.
  PETX_DEVICE void add() const {
#pragma unroll 4
    for (int n = 0; n < kValues; ++n)
      Tile::set_result(kSlot, row(n), column(), value(n) + Tile::result(0, row(n), column()));
  }
  // A B^T over any depth, 512 at a time, so that no long sum is kept in one float.
  template <class A, class B>
  PETX_DEVICE void add_product(A a, B b, int64_t depth) const {
    constexpr int64_t kDepth = 512;
    for (; depth > 0; depth -= kDepth) {
      Tile::multiply(0, a, b, depth < kDepth ? depth : kDepth);
      add();
      a.data += kDepth * (A::kTransposed ? a.stride : 1);
      b.data += kDepth * (B::kTransposed ? b.stride : 1);
    }
  }
  PETX_DEVICE static int row(int n) { return (n * Tile::kThreads + static_cast<int>(thread_index())) / Tile::kN; }
  PETX_DEVICE static int column() { return thread_index() % Tile::kN; }
};

}  // namespace petx::cuda
