// What the launches of mode_update's backward do; backward.cu has their order.
#pragma once

#include "cuda/mode_update/block.cuh"

namespace petx::cuda {

// What the launches leave for each other and for the sums over tokens, [N, R] each, null where not needed. Without
// dropout the kept h is h.
template <class T>
struct ModeIntermediate {
  Compute<T>* parts[kMostModes];  // of dg_k: [splits, N, R]
  T* kept[kMostModes];
  T* mixed[kMostModes];  // g_k
  T* dg[kMostModes];
  T* by_core[kMostModes];  // dg_k times the kept h, for diagonal cores
  T* of_dh[kMostModes];    // what each adds to dh; dh itself where there is but one
  T* dh;
  T* more_dh;  // of all shares but the first
};

// A run of dh, what the projections add to it.
template <class T>
PETX_DEVICE RunOf<T> sum_of_dh(const ModeUpdateParams& p, const ModeUpdateGrads& g, const ModeIntermediate<T>& to,
                               int64_t i, int64_t left) {
  RunOf<T> sum = {};
#pragma unroll 1
  for (int64_t k = 0; k < p.count; ++k)
    if (of_mode(g.dy, k)) RowBlock<T>::add_to(sum, RowBlock<T>::load_run(of_mode(to.of_dh, k), i, left));
  return sum;
}

template <class T, class TileType = TileOf<T>>
class ModeBackward : ModeBlock<T, TileType> {
  using Base = ModeBlock<T, TileType>;
  using Base::p, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE ModeBackward(const ModeCall<C>& call, const ModeUpdateGrads& grads, const ModeIntermediate<T>& to,
                           int64_t block = block_x())
      : Base(call, block), g(grads), to_(to) {}

  // Of projection k: dg_k from its `splits` parts or from dy_k, and what it adds to dh.
  PETX_DEVICE void output_grad(int64_t k, int64_t splits) const {
    if (!of_mode(g.dy, k) || !of_mode(to_.dg, k)) return;
    if constexpr (Base::kStages)
      if (Base::stages(p) && !p.diagonal) return staged_output_grad(k, splits);
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      if (splits == 1)
        Tile::multiply(0, this->block_rows(of_mode(g.dy, k), p.d_out), Base::weight_columns(p.v, begin, p.rank, p.rank),
                       p.d_out);
      put_output_grad(begin, k, [&](int64_t column, int c) {
        return splits == 1 ? this->result(0, c) : this->sum_of_parts(of_mode(to_.parts, k), splits, column);
      });
    }
    if (!of_mode(to_.of_dh, k)) return;
    sync_block();  // dg_k's other columns come from other threads
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      if (!p.diagonal)
        Tile::multiply(0, this->block_rows(of_mode(to_.dg, k), p.rank),
                       Base::weight_rows(this->core(k), begin, p.rank, p.rank), p.rank);
      put_hidden_grad(begin, k, [&](int c) { return this->result(0, c); });
    }
  }
  // The same of dy_k, by tiles of 128 x 64.
  PETX_DEVICE static void wide_output_grad(const ModeCall<C>& p, const ModeUpdateGrads& g,
                                           const ModeIntermediate<T>& to, int64_t k) {
    using Wide = WideTile<T, 2>;
    if (!of_mode(g.dy, k) || !of_mode(to.dg, k)) return;
    for (int64_t begin = 0; begin < p.rank; begin += Wide::kN) {
      Wide::multiply_rows(of_mode(g.dy, k), p.d_out, p.rows, Base::weight_columns(p.v, begin, p.rank, p.rank), p.d_out);
      for (int half = 0; half < 2; ++half) {
        const ModeBackward of(p, g, to, 2 * block_x() + half);
        of.put_output_grad(begin, k, [&](int64_t, int c) { return of.template wide_result<Wide>(half, c); });
      }
      sync_block();  // the stages are where results were, and dg_k's other columns come from other threads
    }
    if (!of_mode(to.of_dh, k)) return;
    for (int64_t begin = 0; begin < p.rank; begin += Wide::kN) {
      const T* core = static_cast<const T*>(p.cores) + k * p.core_size();
      if (!p.diagonal)
        Wide::multiply_rows(of_mode(to.dg, k), p.rank, p.rows, Base::weight_rows(core, begin, p.rank, p.rank), p.rank);
      for (int half = 0; half < 2; ++half) {
        const ModeBackward of(p, g, to, 2 * block_x() + half);
        of.put_hidden_grad(begin, k, [&](int c) { return of.template wide_result<Wide>(half, c); });
      }
      sync_block();
    }
  }

  // Of projection k: the kept h, g_k.
  PETX_DEVICE void output(int64_t k) const {
    if (!of_mode(g.dy, k)) return;
    const T* h = static_cast<const T*>(p.h);
    if constexpr (Base::kStages)
      if (Base::stages(p) && !p.diagonal) return staged_output(k);
    if (of_mode(to_.kept, k)) this->keep(h, k, false, of_mode(to_.kept, k));
    if (!of_mode(to_.mixed, k)) return;
    if (p.diagonal) {
      this->keep(h, k, true, of_mode(to_.mixed, k));
    } else {
      this->mix(p.mask.drops() ? of_mode(to_.kept, k) : h, k, of_mode(to_.mixed, k));
    }
  }

  // dh from what several projections add, and this share of dx's columns.
  PETX_DEVICE void input(const ColumnShares& shares, bool several) const {
    T* dh = several && block_y() ? to_.more_dh + (block_y() - 1) * p.rows * p.rank : to_.dh;
    for (int64_t begin = 0; several && begin < p.rank; begin += Tile::kN)
      this->each_run(begin, p.rank, [&](int64_t column, int, int64_t left) {
        const int64_t i = token * p.rank + column;
        Base::store_run(dh, i, left, sum_of_dh(p, g, to_, i, left));
      });
    sync_block();  // dh's other columns come from other threads
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = tile * Tile::kN;
      Tile::multiply(0, this->block_rows(dh, p.rank), Base::weight_columns(p.u, begin, p.d_in, p.d_in), p.rank);
      this->each_run(begin, p.d_in, [&](int64_t column, int c, int64_t left) {
        Base::store_run(g.dx, token * p.d_in + column, left, this->result(0, c));
      });
    });
  }

 private:
  // Of a rank that one chunk of a product holds: what the core multiplies never comes back from memory.
  PETX_DEVICE void staged_output_grad(int64_t k, int64_t splits) const {
    if (splits == 1)
      Tile::multiply(0, this->block_rows(of_mode(g.dy, k), p.d_out), Base::weight_columns(p.v, 0, p.rank, p.rank),
                     p.d_out);
    this->stage([&](int64_t column, int64_t left) {
      const Run dg = splits == 1 ? this->result(0, column) : this->sum_of_parts(of_mode(to_.parts, k), splits, column);
      Base::store_run(of_mode(to_.dg, k), token * p.rank + column, left, dg);
      return dg;
    });
    if (!of_mode(to_.of_dh, k)) return;
    Tile::multiply(0, typename Tile::StagedRows{}, Base::weight_rows(this->core(k), 0, p.rank, p.rank), p.rank);
    put_hidden_grad(0, k, [&](int c) { return this->result(0, c); });
  }
  PETX_DEVICE void staged_output(int64_t k) const {
    this->stage([&](int64_t column, int64_t left) {
      const int64_t i = token * p.rank + column;
      Run kept = Base::load_run(p.h, i, left);
      this->drop(kept, k, column);
      if (of_mode(to_.kept, k)) Base::store_run(of_mode(to_.kept, k), i, left, kept);
      return kept;
    });
    if (!of_mode(to_.mixed, k)) return;
    Tile::multiply(0, typename Tile::StagedRows{}, Base::weight_columns(this->core(k), 0, p.rank, p.rank), p.rank);
    this->each_run(0, p.rank, [&](int64_t column, int c, int64_t left) {
      Base::store_run(of_mode(to_.mixed, k), token * p.rank + column, left, this->result(0, c));
    });
  }

  // dg_k from column `begin` on, whose runs value(column, column in the tile) has.
  template <class Value>
  PETX_DEVICE void put_output_grad(int64_t begin, int64_t k, const Value& value) const {
    this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
      const int64_t i = token * p.rank + column;
      const Run dg = value(column, c);
      Base::store_run(of_mode(to_.dg, k), i, left, dg);
      if (!of_mode(to_.by_core, k)) return;
      Run kept = Base::load_run(p.h, i, left);
      this->drop(kept, k, column);
      Base::multiply_by(kept, dg);
      Base::store_run(of_mode(to_.by_core, k), i, left, kept);
    });
  }
  // What dg_k adds to dh, of which the product with a full core has the runs.
  template <class Result>
  PETX_DEVICE void put_hidden_grad(int64_t begin, int64_t k, const Result& result) const {
    this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
      Run part;
      if (p.diagonal) {
        part = Base::load_run(of_mode(to_.dg, k), token * p.rank + column, left);
        Base::multiply_by(part, Base::load_run(this->core(k), column, left));
      } else {
        part = result(c);
      }
      this->drop(part, k, column);
      Base::store_run(of_mode(to_.of_dh, k), token * p.rank + column, left, part);
    });
  }

  const ModeUpdateGrads& g;
  const ModeIntermediate<T>& to_;
};

}  // namespace petx::cuda
