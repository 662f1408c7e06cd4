// mode_update as a block of rows sees it: what forward and backward compute alike.
//
// Products are made by the whole block, a tile of columns at a time. Everything else is done by the four threads that
// own a row, each in runs of sixteen bytes: eight columns of a 16-bit type, whose masks come from two of Philox's
// counters.
//
// A sum over a depth that is split among blocks lies in parts of C. A run of eight columns is two accesses of a part;
// its halves lie in two planes, so that the runs of a row's threads lie side by side in either access.
#pragma once

#include "cuda/common/dropout.cuh"
#include "cuda/common/row_block.cuh"
#include "cuda/mode_update/plan.h"
#include "kernels/mode_update.h"

namespace petx::cuda {

// The call as kernels see it: constants in the type that they are used in, so that no kernel computes in double.
template <class C>
struct ModeCall : ModeUpdateParams {
  Dropout<C> mask;

  explicit ModeCall(const ModeUpdateParams& p) : ModeUpdateParams(p), mask(p.dropout, p.seed) {}
};

// Projection k's pointer, chosen and not indexed, for which the table would be copied into local memory.
template <class P>
PETX_DEVICE P of_mode(const P (&each)[kMostModes], int64_t k) {
  static_assert(kMostModes == 4);
  P low = k & 1 ? each[1] : each[0], high = k & 1 ? each[3] : each[2];
  return k & 2 ? high : low;
}

// Parts of a sum, [N, R] each, in planes of which a run of T has a piece each. A row is whole runs long.
template <class T>
struct SumParts {
  using Block = RowBlock<Compute<T>>;
  static constexpr int kRun = 16 / sizeof(T), kPlanes = kRun / Block::kRun;

  PETX_HD static int64_t width(int64_t rank) { return (rank + kRun - 1) / kRun * kRun; }
  PETX_HD static int64_t plane(const ModeUpdateParams& p) { return p.rows * (width(p.rank) / kPlanes); }
  PETX_HD static int64_t size(const ModeUpdateParams& p) { return kPlanes * plane(p); }
  // Of a column that begins a piece.
  PETX_DEVICE static int64_t place(const ModeUpdateParams& p, int64_t token, int64_t column) {
    const int piece = static_cast<int>(column) / Block::kRun;
    return piece % kPlanes * plane(p) + token * (width(p.rank) / kPlanes) + piece / kPlanes * Block::kRun;
  }
};

template <class S, class TileType = TileOf<S>>
class ModeBlock : public RowBlock<S, TileType> {
  using Base = RowBlock<S, TileType>;

 public:
  using Base::each_run, Base::kRun, Base::load_run, Base::multiply_by, Base::result, Base::store_run,
      Base::weight_columns, Base::weight_rows;
  using Base::first, Base::rows, Base::row, Base::sharer, Base::token, Base::valid, Base::row_sum, Base::block_rows;
  using typename Base::C, typename Base::Run, typename Base::T, typename Base::Tile;
  using Parts = SumParts<T>;
  static constexpr bool kStages = std::is_same_v<Tile, MmaTile<T>>;

  PETX_DEVICE ModeBlock(const ModeCall<C>& call, int64_t block)
      : Base(call.rows, block), p(call), seed_(call.mask.seed_value()) {}

  PETX_DEVICE const T* core(int64_t k) const { return static_cast<const T*>(p.cores) + k * p.core_size(); }

  // Times projection k's mask at this row and the run of columns from `column` on.
  PETX_DEVICE void drop(Run& run, int64_t k, int64_t column) const {
    if (!p.mask.drops()) return;
    Run factor;
    p.mask.factors(factor.value, p.mask_begin(k) + static_cast<uint64_t>(token) * p.rank + column, seed_);
    multiply_by(run, factor);
  }

  // The tile's results from column `begin` on become a part of a sum; value(c) is that of column c.
  template <class Value>
  PETX_DEVICE void put_part(int64_t begin, C* part, const Value& value) const {
    using Part = typename Parts::Block;
    if (!valid()) return;
    const int64_t end = Parts::width(p.rank);  // past the ranks the results are zeros
#pragma unroll 1
    for (int c = Part::kRun * sharer; c < Tile::kN && begin + c < end; c += Part::kRun * Base::kSharers) {
      typename Part::Run run;
#pragma unroll
      for (int j = 0; j < Part::kRun; ++j) run.value[j] = value(c, j);
      Part::store_run(part, Parts::place(p, token, begin + c), WholeRuns{}, run);
    }
  }
  PETX_DEVICE void put_part(int64_t begin, C* part) const {
    put_part(begin, part, [&](int c, int j) { return Tile::result(0, row, c, j); });
  }
  // The same of a wide tile, whose `half` this block is.
  template <class Wide>
  PETX_DEVICE void put_wide_part(int half, int64_t begin, C* part) const {
    put_part(begin, part, [&](int c, int j) { return Wide::result(half * Tile::kM + row, c, j); });
  }
  // The sum of `count` parts, in their order, four of which are asked for together (token_sums.cuh says why).
  PETX_DEVICE Run sum_of_parts(const C* parts, int64_t count, int64_t column) const {
    constexpr int kAhead = 4;
    const int64_t size = Parts::size(p);
    const C* from = parts + Parts::place(p, token, column);
    Run sum = {};
#pragma unroll 1
    for (int more = static_cast<int>(count); more > 0; more -= kAhead) {
      Run part[kAhead];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (n >= more) break;
        part[n] = load_part(from);
        from += size;
      }
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (n >= more) break;
        Base::add_to(sum, part[n]);
      }
    }
    return sum;
  }

  // Whether a product's rows, R deep, are one chunk that can be left where the product looks for it.
  PETX_HD static bool stages(const ModeUpdateParams& p) { return kStages && p.rank <= kTile; }
  // Leaves value(column, columns left) of the block's rows there. Of two neighbouring rows one begins with the packs
  // that the other ends with: packs of one number would meet in a bank.
  template <class Value>
  PETX_DEVICE void stage(const Value& value) const {
    static_assert(Tile::kM == 2 * Base::kSharers * Base::kRun, "two packs a thread");
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int pack_number = sharer + (half ^ row % 2) * Base::kSharers, c = Base::kRun * pack_number;
      Run run = {};
      if (valid() && c < p.rank) run = value(c, p.rank - c);
      Tile::StagedRows::set(row, pack_number, pack<T>(run.value));
    }
  }

  // drop_k(h), and for diagonal cores times the core, of the block's rows.
  PETX_DEVICE void keep(const T* h, int64_t k, bool scaled, T* to) const {
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN)
      each_run(begin, p.rank, [&](int64_t column, int, int64_t left) {
        Run run = load_run(h, token * p.rank + column, left);
        drop(run, k, column);
        if (scaled) multiply_by(run, load_run(core(k), column, left));
        store_run(to, token * p.rank + column, left, run);
      });
    sync_block();  // other columns come from other threads
  }

  // to = kept M_k.
  PETX_DEVICE void mix(const T* kept, int64_t k, T* to) const {
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      Tile::multiply(0, block_rows(kept, p.rank), weight_columns(core(k), begin, p.rank, p.rank), p.rank);
      each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
        store_run(to, token * p.rank + column, left, result(0, c));
      });
    }
    sync_block();
  }

  const ModeCall<C>& p;

 private:
  // A run of the part that has its first columns at `from`.
  PETX_DEVICE Run load_part(const C* from) const {
    using Part = typename Parts::Block;
    Run run;
#pragma unroll
    for (int j = 0; j < Base::kRun; j += Part::kRun) {
      const auto piece = Part::load_run(from, 0, WholeRuns{});
#pragma unroll
      for (int e = 0; e < Part::kRun; ++e) run.value[j + e] = piece.value[e];
      from += Parts::plane(p);
    }
    return run;
  }

  uint64_t seed_;
};

}  // namespace petx::cuda
