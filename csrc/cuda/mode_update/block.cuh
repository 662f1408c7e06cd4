// mode_update as a block of rows sees it: what forward and backward compute alike.
//
// Products are made by the whole block, a tile of columns at a time. Everything else is done by the four threads that
// own a row, each in runs of sixteen bytes: eight columns of a 16-bit type, whose masks come from two of Philox's
// counters.
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

template <class S, class TileType = TileOf<S>>
class ModeBlock : public RowBlock<S, TileType> {
  using Base = RowBlock<S, TileType>;

 public:
  using Base::each_run, Base::kRun, Base::load_run, Base::multiply_by, Base::result, Base::store_run,
      Base::weight_columns, Base::weight_rows;
  using Base::first, Base::rows, Base::row, Base::sharer, Base::token, Base::valid, Base::row_sum, Base::block_rows;
  using typename Base::C, typename Base::Run, typename Base::T, typename Base::Tile;

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

  // Parts of a sum lie in C, one [N, R] behind the other. The tile's result from column `begin` on becomes one of them.
  PETX_DEVICE void put_part(int64_t begin, C* part) const {
    using Part = RowBlock<C>;  // whose runs are of as many bytes: neighbours fill a sector
    if (!valid()) return;
#pragma unroll 1
    for (int c = Part::kRun * sharer; c < Tile::kN && begin + c < p.rank; c += Part::kRun * Base::kSharers) {
      typename Part::Run run;
#pragma unroll
      for (int j = 0; j < Part::kRun; ++j) run.value[j] = Tile::result(0, row, c + j);
      Part::store_run(part, token * p.rank + begin + c, p.rank - begin - c, run);
    }
  }
  // The sum of `count` parts, in their order, four of which are asked for together (token_sums.cuh says why).
  PETX_DEVICE Run sum_of_parts(const C* parts, int64_t count, int64_t column, int64_t left) const {
    constexpr int kAhead = 4;
    Run sum = {};
#pragma unroll 1
    for (int64_t n = 0; n < count; n += kAhead) {
      Run part[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (n + k >= count) break;
        part[k] = load_part(parts, ((n + k) * p.rows + token) * p.rank + column, left);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (n + k >= count) break;
        Base::add_to(sum, part[k]);
      }
    }
    return sum;
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
  // As many values of a part as a run has.
  PETX_DEVICE static Run load_part(const C* part, int64_t i, int64_t left) {
    using Part = RowBlock<C>;
    Run run;
#pragma unroll
    for (int j = 0; j < Base::kRun; j += Part::kRun) {
      const auto piece = Part::load_run(part, i + j, left - j);
#pragma unroll
      for (int e = 0; e < Part::kRun; ++e) run.value[j + e] = piece.value[e];
    }
    return run;
  }

  uint64_t seed_;
};

}  // namespace petx::cuda
