// What the launches of the VL-PET site's backward do; backward.cu says in which order.
#pragma once

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {

// Of the launches that make dS: both S and dS of each value; or S, left until sums over the row are known, and later
// dS.
enum class SiteStage { direct, look, pass };
enum class GateStage { gate, dot, dlogit };
// Sums of columns: gradients of middle_y's vector, of what multiplies S in a token gate, or of the large gate's bias;
// of the up bias; of the norm's weight and bias.
enum VectorGrad { kGate, kUpBias, kNormWeight, kNormBias, kVectorGrads };

// What the launches leave for each other.
template <class T>
struct SiteIntermediate {
  using C = Compute<T>;
  Hidden<T> hidden;
  T* ds;                     // [N, d] gradient of S; where that waits for sums, S or of a large gate dropout(G S)
  T* dgate;                  // [N, d] of the large gate's logits, or likewise dropout(G)
  T* dz;                     // [N, r]
  T* dgate_z;                // [N, r_g]
  int64_t parts;             // of a row's sums
  C* along;                  // [parts, N] of a norm: dout w . hat
  C* mean_part;              // [parts, N] dout w
  C* dots;                   // [parts, N] middle_x, small: dY . S; with a norm three of these, see SiteGateRow
  const C* gate;             // [N] middle_x, small
  C* sample_gate;            // [N] small: where `gate` is made
  C* dot;                    // [N] small: dots, added up
  C* dlogit;                 // [N] middle_x, small
  C* columns[kVectorGrads];  // [row blocks, d] each or null: sums over a block's rows, see VectorGrad
};

// A tile of `columns` of dz = (dS up) gelu'(z): of a head's or, behind these, the gate's from the gradient of its
// logits.
template <class T>
struct HiddenGrad {
  const T *d, *up;
  const void* z;
  T* dz;
  int64_t width, rank, all, first, begin;  // of the head; ranks of all heads, and before this head's; the tile

  PETX_DEVICE HiddenGrad(const GatedAdapterParams& p, const SiteIntermediate<T>& to, int64_t head_tiles, int columns) {
    const bool gate = block_y() >= p.heads * head_tiles;
    const int64_t tile = gate ? block_y() - p.heads * head_tiles : block_y() % head_tiles;
    const int64_t head = gate ? 0 : block_y() / head_tiles, heads = gate ? 1 : p.heads;
    begin = tile * columns, width = p.d / heads, all = gate ? p.r_g : p.r, rank = all / heads, first = head * rank;
    d = (gate ? to.dgate : to.ds) + head * width;
    up = static_cast<const T*>(gate ? p.gate_weight : p.up_weight) + head * width * rank;
    z = gate ? p.gate_z : p.z, dz = gate ? to.dgate_z : to.dz;
  }
  PETX_DEVICE Columns<T> columns() const { return RowBlock<T>::weight_columns(up, begin, rank, rank); }
};

// A block's rows and its share of the columns behind dS.
template <class T, class TileType = TileOf<T>>
class SiteBackward : Site<T, TileType> {
  using Base = Site<T, TileType>;
  using Base::constants, Base::kRun, Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE SiteBackward(const GatedAdapterParams& params, const SiteConstants<T>& constants,
                           const GatedAdapterGrads& grads, const SiteIntermediate<T>& to, int64_t block = block_x())
      : Base(params, constants, block), g(grads), to_(to) {}

  PETX_DEVICE void hidden_grad(const HiddenGrad<T>& of) const {
    Tile::multiply(0, this->block_rows(of.d, p.d), of.columns(), of.width);
    put_hidden_grad(of, Tile::kN, [&](int c) { return this->result(0, c); });
  }
  // Of a wide tile's rows those of its `half`.
  template <class Wide>
  PETX_DEVICE void wide_hidden_grad(const HiddenGrad<T>& of, int half) const {
    put_hidden_grad(of, Wide::kN, [&](int c) { return this->template wide_result<Wide>(half, c); });
  }

  // dh = dS + dz down in `h_tiles` tiles; behind these dx, or what is added to it: dz down where down reads x, and the
  // large gate's part.
  PETX_DEVICE void input_grads(const ColumnShares& shares, int64_t h_tiles) const {
    const bool parallel = p.reads_x_in_down();
    const bool through_gate = this->has_token_gate() && p.gate_input == GateInput::original;
    RowBlock<T, Tile>::each_tile(shares, [&](int64_t tile) {
      const bool of_h = tile < h_tiles, adapter = of_h != parallel, gate = !of_h && this->large();
      const int64_t begin = (of_h ? tile : tile - h_tiles) * Tile::kN, width = of_h ? p.d : p.d_x;
      if (adapter)
        Tile::multiply(0, this->block_rows(to_.dz, p.r), this->weight_columns(p.down_weight, begin, width, width), p.r);
      if (gate)
        Tile::multiply(1, this->block_rows(to_.dgate_z, p.r_g),
                       this->weight_columns(p.gate_down_weight, begin, width, width), p.r_g);
      this->each_wide_run(begin, width, [&](int64_t column, int c, auto left) {
        const int64_t i = token * width + column;
        Run sum = adapter ? this->result(0, c) : Run{};
        if (gate) Base::add_to(sum, this->result(1, c));
        if (of_h) {
          Base::add_to(sum, Base::load_run(to_.ds, i, left));
          if (through_gate) add_times(sum, read(to_.dlogit + token), Base::load_run(this->gate_of_s(), column, left));
        } else if (begins_dx(p)) {
          Base::add_to(sum, Base::load_run(g.dx, i, left));
        }
        Base::store_run(of_h ? g.dh : g.dx, i, left, sum);
      });
    });
  }

 private:
  template <class Result>
  PETX_DEVICE void put_hidden_grad(const HiddenGrad<T>& of, int columns, const Result& result) const {
    auto put = [&](int64_t column, int c, int64_t left) {
      int64_t i = token * of.all + of.first + column;
      Run slope = Base::load_run(of.z, i, left);
      if (p.activation == Activation::gelu) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) slope.value[j] = gelu_derivative<Activation::gelu, Base::kRough>(slope.value[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j)
          slope.value[j] = gelu_derivative<Activation::gelu_tanh, Base::kRough>(slope.value[j]);
      }
      Base::multiply_by(slope, result(c));
      Base::store_run(of.dz, i, left, slope);
    };
    this->each_run(of.begin, of.rank, put, columns);
  }
  PETX_DEVICE static void add_times(Run& run, C factor, const Run& other) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] += factor * other.value[j];
  }

  const GatedAdapterGrads& g;
  const SiteIntermediate<T>& to_;
};

// A token's gate and the gradient of its logit, a number a row.
//
// That is dY . S, whose dY = rstd (dout w - mean(dout w) - hat mean(dout w . hat)) is known behind a norm's sums alone.
// So the pass that makes these sums leaves dout w . S, 1 . S and hat . S beside them, and no other pass is needed.
template <class T>
class SiteGateRow : SiteRow<T> {
  using Base = SiteRow<T>;
  using Base::lane, Base::p, Base::token, Base::valid;
  using typename Base::C;

 public:
  PETX_DEVICE SiteGateRow(const GatedAdapterParams& params, const SiteConstants<T>& constants,
                          const SiteIntermediate<T>& to)
      : Base(params, constants), to_(to) {}

  PETX_DEVICE void run(GateStage stage) const {
    const bool small = p.granularity == Granularity::small;
    C value = 0;
    if (stage == GateStage::gate) value = this->sample_mean(p.token_gate, true);
    if (stage == GateStage::dot) {
      value = sum_of_parts(to_.dots);
      if (p.norm != Norm::none) {
        const int64_t all = to_.parts * p.rows;
        const C one = sum_of_parts(to_.dots + all), hat = sum_of_parts(to_.dots + 2 * all);
        value -= sum_of_parts(to_.along) / C(p.d) * hat;
        if (p.norm == Norm::layer) value -= sum_of_parts(to_.mean_part) / C(p.d) * one;
        if (valid) value *= read(static_cast<const C*>(p.norm_stats) + 2 * token + 1);
      }
    }
    // Small's comes from all tokens of the sample, each through its own sigma.
    if (stage == GateStage::dlogit) value = this->sample_mean(to_.dot, false);
    if (lane != 0 || !valid) return;
    if (stage == GateStage::dlogit || (stage == GateStage::dot && !small)) {
      const C sigma = read(static_cast<const C*>(p.token_gate) + token);
      if (small && !this->counts(token)) value = C(0);
      value *= sigma * (C(1) - sigma);
    }
    C* to = stage == GateStage::gate ? to_.sample_gate : stage == GateStage::dot && small ? to_.dot : to_.dlogit;
    write(to + token, value);
  }

 private:
  // In all of the row's lanes.
  PETX_DEVICE C sum_of_parts(const C* parts) const {
    C sum = 0;
    for (int64_t part = lane; valid && part < to_.parts; part += Base::kLanes)
      sum += read(parts + part * p.rows + token);
    return Base::row_sum(sum);
  }

  const SiteIntermediate<T>& to_;
};

}  // namespace petx::cuda
