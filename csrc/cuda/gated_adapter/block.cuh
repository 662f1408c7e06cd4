// The VL-PET site as its kernels see it: what forward and backward compute alike.
//
// `Site` is a block of rows: products are made by the whole block, a tile of columns at a time; everything else is done
// in runs of sixteen bytes, by the threads that have the products' results. `SiteRow` is a row without a product, for
// what needs all of its columns: sixteen lanes, whose sums are four shuffles away, and four rows a block, so that 1,000
// rows fill a card.
#pragma once

#include "cuda/common/dropout.cuh"
#include "cuda/common/run_tile.cuh"
#include "cuda/gated_adapter/plan.h"
#include "kernels/gated_adapter.h"

namespace petx::cuda {

// gelu(z) of adapter and gate, [N, r] and [N, r_g]: made once per call, then an operand like any other.
template <class T>
struct Hidden {
  T* a;
  T* gate_a;
};

// The parameters' doubles in the type that the kernels compute in.
template <class T>
struct SiteConstants {
  using C = Compute<T>;
  C scale, eps;
  Dropout<C> dropout;  // keeps by scale / (1 - p)
  bool whole;          // every run of what is as wide as h or x may be moved at once

  // `results` are what the kernels write or read of that width beside the parameters.
  SiteConstants(const GatedAdapterParams& p, std::initializer_list<const void*> results)
      : scale(C(p.scale)), eps(C(p.eps)), dropout(p.dropout, p.seed) {
    dropout.keep *= scale;
    constexpr int kRun = RowBlock<T>::kRun;
    uintptr_t bits = p.d / p.heads % kRun || p.d_x % kRun;
    for (const void* one : {p.h, p.x, p.up_bias, p.gate_weight, p.gate_bias, p.norm_weight, p.norm_bias, p.skip})
      bits |= reinterpret_cast<uintptr_t>(one);
    for (const void* one : results) bits |= reinterpret_cast<uintptr_t>(one);
    whole = bits % 16 == 0;
  }
};

// What both know of the call.
template <class S>
class SiteView {
 public:
  using T = S;
  using C = Compute<T>;
  using Run = typename RowBlock<T>::Run;
  static constexpr int kRun = RowBlock<T>::kRun;
  static constexpr bool kRough = sizeof(T) == 2;  // of functions whose results are rounded to 16 bits

  PETX_DEVICE SiteView(const GatedAdapterParams& params, const SiteConstants<T>& constants)
      : p(params), constants(constants) {}

  PETX_DEVICE bool large() const { return p.granularity == Granularity::large; }
  PETX_DEVICE bool has_token_gate() const { return petx::cuda::has_token_gate(p); }
  // The gate's weights of S (or h): middle_x has one vector for x + S, small one for each.
  PETX_DEVICE const void* gate_of_s() const {
    return static_cast<const T*>(p.gate_weight) + (p.granularity == Granularity::small ? p.d : 0);
  }
  PETX_DEVICE bool counts(int64_t t) const { return !p.mask || read(p.mask + t); }

  // Of the residual stream: out, dout and the norm's parameters, in the compute type with `skip`.
  template <class Left>
  PETX_DEVICE Run load_stream(const void* data, int64_t i, Left left) const {
    return p.skip ? RowBlock<T>::load_wide_run(data, i, left) : RowBlock<T>::load_run(data, i, left);
  }
  template <class Left>
  PETX_DEVICE void store_stream(void* data, int64_t i, Left left, const Run& run) const {
    p.skip ? RowBlock<T>::store_wide_run(data, i, left, run) : RowBlock<T>::store_run(data, i, left, run);
  }
  // What dropout(Y) is added to.
  template <class Left>
  PETX_DEVICE Run residual(int64_t i, Left left) const {
    if (p.skip) return RowBlock<T>::load_wide_run(p.skip, i, left);
    return p.residual ? RowBlock<T>::load_run(p.x, i, left) : Run{};
  }

  // Which of the run at `i` dropout keeps; the others' G is to be zero, and these' G S be multiplied by its `keep`.
  PETX_DEVICE KeptRun<kRun> kept(int64_t i, uint64_t seed, int64_t) const {
    return constants.dropout.template kept<kRun, false>(i, seed);
  }
  PETX_DEVICE KeptRun<kRun> kept(int64_t i, uint64_t seed, typename RowBlock<T>::Whole) const {
    return constants.dropout.template kept<kRun, true>(i, seed);
  }
  template <class Left>
  PETX_DEVICE void drop(Run& gate, int64_t i, uint64_t seed, Left left) const {
    const KeptRun<kRun> kept = this->kept(i, seed, left);
#pragma unroll
    for (int j = 0; j < kRun; ++j) gate.value[j] = kept.keeps(j) ? gate.value[j] : C(0);
  }

  // gelu(z), of z as it is stored.
  PETX_DEVICE void activate(Run& z) const {
    if (p.activation == Activation::gelu) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) z.value[j] = gelu<Activation::gelu, kRough>(z.value[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) z.value[j] = gelu<Activation::gelu_tanh, kRough>(z.value[j]);
    }
  }

  const GatedAdapterParams& p;
  const SiteConstants<T>& constants;
};

template <class S, class TileType = TileOf<S>>
class Site : public RowBlock<S, TileType>, public SiteView<S> {
  using Base = RowBlock<S, TileType>;
  using View = SiteView<S>;

 public:
  using Base::add_to, Base::block_rows, Base::each_run, Base::first, Base::load_run, Base::multiply_by, Base::result,
      Base::row, Base::row_sum, Base::rows, Base::sharer, Base::store_run, Base::token, Base::valid,
      Base::weight_columns, Base::weight_rows;
  using typename Base::C, typename Base::Run, typename Base::T, typename Base::Tile;
  using View::constants, View::kRough, View::large, View::p;
  static constexpr int kRun = Base::kRun;

  PETX_DEVICE Site(const GatedAdapterParams& params, const SiteConstants<T>& constants, int64_t block = block_x())
      : Base(params.rows, block), View(params, constants) {}

  // Of a tile as wide as h or x: visit takes either kind of what is left.
  template <class Visit>
  PETX_DEVICE void each_wide_run(int64_t begin, int64_t end, const Visit& visit) const {
    if (constants.whole)
      Base::each_whole_run(begin, end, visit);
    else
      Base::each_run(begin, end, visit);
  }

  // Calls visit(tile, head, begin, end) for the tiles of h's columns that are this block's share. A tile ends with its
  // head; `end` is the head's.
  template <class Visit>
  PETX_DEVICE void each_tile(const ColumnShares& shares, const Visit& visit) const {
    const int width = static_cast<int>(p.d / p.heads), tiles = (width + Tile::kN - 1) / Tile::kN;
    Base::each_tile(shares, [&](int64_t tile) {
      const int head = static_cast<int>(tile) / tiles, number = static_cast<int>(tile) % tiles;
      visit(tile, head, head * width + number * Tile::kN, (head + 1) * width);
    });
  }

  // What a tile's up products make of S and of a large gate, G after dropout but for its factor. Where sums stay in
  // registers that is made first and kept as it would be stored, since there is no room for the sums of both.
  struct Products {
    typename Tile::Sums s = {};
    typename Tile::Gates gates = {};
  };
  template <bool large>
  PETX_DEVICE void multiply_up(Products& made, const Hidden<T>& hidden, int head, int begin, int end,
                               uint64_t seed) const {
    if constexpr (large) {
      typename Tile::Sums logits = {};
      begin_with(logits, p.gate_bias, begin, end);
      Tile::multiply(logits, 1, block_rows(hidden.gate_a, p.r_g), weight_rows(p.gate_weight, begin, end, p.r_g), p.r_g);
      if constexpr (Tile::kOneRun)
        each_place(begin, end, [&](int64_t column, int c, auto left) {
          Tile::each_row([&](int number, int row) {
            made.gates.set(number, pack<T>(gate_of(logits.run(number, row, c), row, column, seed, left).value));
          });
        });
      else
        made.gates = logits;
    }
    const int rank = static_cast<int>(p.r / p.heads);
    begin_with(made.s, p.up_bias, begin, end);
    Tile::multiply(made.s, 0, block_rows(hidden.a, p.r, head * rank), weight_rows(p.up_weight, begin, end, rank), rank);
  }

  // Calls visit(column, column in the tile, columns left or Whole) for this thread's places in a tile; Tile::each_row
  // has the rows.
  template <class Visit>
  PETX_DEVICE void each_place(int begin, int end, const Visit& visit) const {
    Tile::each_place([&](int c) { of_place(begin, end, c, visit); });
  }
  template <class Visit>
  PETX_DEVICE void of_place(int begin, int end, int c, const Visit& visit) const {
    const int64_t column = begin + c;
    if (column >= end) return;
    if (constants.whole)
      visit(column, c, typename Base::Whole{});
    else
      visit(column, c, end - column);
  }

  // S of a row from its product.
  template <class Left>
  PETX_DEVICE Run modified(const Products& made, int number, int row, int64_t column, int c, Left left) const {
    Run s = made.s.run(number, row, c);
    add_to(s, load_run(p.h, (first + row) * p.d + column, left));
    if constexpr (!Tile::kOneRun)
      if (p.up_bias) add_to(s, load_run(p.up_bias, column, left));
    return s;
  }
  // The large gate after dropout.
  template <class Left>
  PETX_DEVICE Run gate(const Products& made, int number, int row, int64_t column, int c, uint64_t seed,
                       Left left) const {
    if constexpr (Tile::kOneRun) {
      Run gate;
      unpack(gate.value, made.gates.get(number));
      return gate;
    } else {
      Run logits = made.gates.run(number, row, c);
      if (p.gate_bias) add_to(logits, load_run(p.gate_bias, column, left));
      return gate_of(logits, row, column, seed, left);
    }
  }
  // Of the other channel-wise level, all rows' at these columns; 1 for those whose gate belongs to the row.
  template <class Left>
  PETX_DEVICE Run column_gate(int64_t column, Left left) const {
    Run gate;
    if (p.granularity == Granularity::middle_y) {
      gate = load_run(p.gate_weight, column, left);
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        gate.value[j] = C(1) + (p.middle_y == MiddleY::linear ? gate.value[j] : sigmoid<kRough>(gate.value[j]));
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) gate.value[j] = C(1);
    }
    return gate;
  }

 private:
  // A product begins with its bias where a thread has one run of columns, and is added to it otherwise.
  template <class Sums>
  PETX_DEVICE void begin_with(Sums& sums, const void* bias, int begin, int end) const {
    if constexpr (Tile::kOneRun) {
      Run run = {};
      if (bias) each_place(begin, end, [&](int64_t column, int, auto left) { run = load_run(bias, column, left); });
      sums.begin(run);
    }
  }
  template <class Left>
  PETX_DEVICE Run gate_of(Run logits, int row, int64_t column, uint64_t seed, Left left) const {
#pragma unroll
    for (int j = 0; j < kRun; ++j) logits.value[j] = sigmoid<kRough>(logits.value[j]);
    this->drop(logits, (first + row) * p.d + column, seed, left);
    return logits;
  }
};

template <class S>
class SiteRow : public SiteView<S> {
  using View = SiteView<S>;

 public:
  using typename View::C, typename View::Run, typename View::T;
  using View::counts, View::p;
  static constexpr int kRun = View::kRun, kLanes = 16, kRows = kRowLaunch.threads / kLanes;
  static int64_t blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }

  PETX_DEVICE SiteRow(const GatedAdapterParams& params, const SiteConstants<T>& constants)
      : View(params, constants),
        lane(thread_index() % kLanes),
        token(block_x() * kRows + thread_index() / kLanes),
        valid(token < params.rows) {}

  // Calls visit(column, columns left or Whole) for this lane's runs.
  template <class Visit>
  PETX_DEVICE void each_run(const Visit& visit) const {
    if (View::constants.whole)
      each_place([&](int64_t column) { visit(column, typename RowBlock<T>::Whole{}); });
    else
      each_place([&](int64_t column) { visit(column, p.d - column); });
  }

  // The sum of a row's lanes, in all of them.
  PETX_DEVICE static C row_sum(C value) {
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) value += shuffle_xor(value, mask);
    return value;
  }

  // A sum over the row's sample, divided by the number of tokens that count: small's gate, to which only these
  // contribute, and the gate's gradient, to which all do.
  PETX_DEVICE C sample_mean(const void* per_token, bool only_counting) const {
    C sum = 0, count = 0;
    if (valid) {
      int64_t begin = token / p.length * p.length;
      for (int64_t t = begin + lane; t < begin + p.length; t += kLanes) {
        if (!only_counting || counts(t)) sum += read(static_cast<const C*>(per_token) + t);
        if (counts(t)) count += C(1);
      }
    }
    sum = row_sum(sum), count = row_sum(count);
    return sum / (count > C(1) ? count : C(1));
  }

  const int lane;
  const int64_t token;
  const bool valid;

 private:
  template <class Visit>
  PETX_DEVICE void each_place(const Visit& visit) const {
    if (!valid) return;
#pragma unroll 1
    for (int64_t column = kRun * lane; column < p.d; column += kRun * kLanes) visit(column);
  }
};

}  // namespace petx::cuda
