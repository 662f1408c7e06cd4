// What the launches of the VL-PET site's backward do; backward.cu says in which order.
#pragma once

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {

enum class SitePass { statistics, dots, result };
enum class GateStage { gate, dot, dlogit };

// What the launches leave for each other.
template <class T>
struct SiteIntermediate {
  using C = Compute<T>;
  Hidden<T> hidden;
  T* ds;           // [N, d] gradient of S
  T* dgate;        // [N, d] of the large gate's logits
  T* dz;           // [N, r]
  T* dgate_z;      // [N, r_g]
  C* along;        // [tiles, N] of a norm: dout w . hat
  C* mean_part;    // [tiles, N] dout w
  C* dots;         // [tiles, N] middle_x, small: dY . S; with a norm three of these, see SiteGateRow
  const C* gate;   // [N] middle_x, small
  C* sample_gate;  // [N] small: where `gate` is made
  C* dot;          // [N] small: dots, added up
  C* dlogit;       // [N] middle_x, small
  C* norm_weight;  // [row blocks, d] or null
  C* gate_weight;  // [row blocks, d] or null: of middle_y's vector, or what multiplies S in a token gate
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

// A block's rows and its share of the columns.
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

  // S and G by products, or as the first pass has left them.
  template <bool products>
  PETX_DEVICE void run(SitePass which, const ColumnShares& shares) {
    find_row(which, shares.tiles);
    const bool sums = which == SitePass::result && (to_.norm_weight || to_.gate_weight);
    this->each_tile(shares, [&](int64_t tile, int head, int begin, int end) {
      if constexpr (products) this->multiply_up(to_.hidden, head, begin, end);
      first_sum_ = second_sum_ = 0;
      for (C& sum : dot_sums_) sum = 0;
      this->each_wide_run(begin, end, [&](int64_t column, int c, auto left) {
        const int64_t i = token * p.d + column;
        Run s, channel;
        uint32_t kept = 0;
        if constexpr (products) {
          s = this->modified(column, c, left), channel = this->channel_gate(column, c, left);
          kept = constants.dropout.template kept<kRun>(i);
          if (which != SitePass::result) Base::store_run(to_.ds, i, left, s);
          if (which != SitePass::result && this->large()) Base::store_run(to_.dgate, i, left, marked(channel, kept));
        } else {
          s = Base::load_run(to_.ds, i, left);
          if (this->large()) {
            channel = Base::load_run(to_.dgate, i, left);
            kept = unmarked(channel);
          } else {
            channel = this->channel_gate(column, c, left);
            kept = constants.dropout.template kept<kRun>(i);
          }
        }
        values(which, column, c, left, s, channel, kept);
      });
      if (which != SitePass::result) leave_sums(which, tile, shares.tiles);
      if (sums) column_sums(begin, end);
    });
  }

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
  // What the launches before have found for this row.
  PETX_DEVICE void find_row(SitePass which, int64_t tiles) {
    if (this->valid() && to_.gate) gate_ = read(to_.gate + token);
    if (this->valid() && to_.dlogit && which == SitePass::result) dlogit_ = read(to_.dlogit + token);
    if (p.norm == Norm::none) return;
    if (this->valid()) {
      const C* stats = static_cast<const C*>(p.norm_stats) + 2 * token;
      mean_ = read(stats), rstd_ = read(stats + 1);
    }
    if (which == SitePass::statistics) return;
    along_ = sum_of_tiles(to_.along, tiles) / C(p.d);
    if (p.norm == Norm::layer) mean_part_ = sum_of_tiles(to_.mean_part, tiles) / C(p.d);
  }
  // A large gate, which is never negative, with a sign where dropout drops its value, and back, without drawing again.
  PETX_DEVICE static Run marked(Run channel, uint32_t kept) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) channel.value[j] = kept >> j & 1 ? channel.value[j] : -channel.value[j];
    return channel;
  }
  PETX_DEVICE static uint32_t unmarked(Run& channel) {
    uint32_t kept = 0;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      kept |= channel.value[j] < C(0) ? 0u : 1u << j;
      channel.value[j] = channel.value[j] < C(0) ? -channel.value[j] : channel.value[j];
    }
    return kept;
  }
  PETX_DEVICE C sum_of_tiles(const C* parts, int64_t tiles) const {
    C sum = 0;
    if (this->valid())
      for (int64_t tile = sharer; tile < tiles; tile += Base::kSharers) sum += read(parts + tile * p.rows + token);
    return Base::row_sum(sum);
  }
  PETX_DEVICE void leave_sums(SitePass which, int64_t tile, int64_t tiles) const {
    const C first = Base::row_sum(first_sum_), second = Base::row_sum(second_sum_);
    const int64_t i = tile * p.rows + token;
    const bool writes = sharer == 0 && this->valid(), statistics = which == SitePass::statistics;
    if (writes) write((statistics ? to_.along : to_.dots) + i, first);
    if (writes && statistics) write(to_.mean_part + i, second);
    if (!statistics || !this->has_token_gate()) return;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const C sum = Base::row_sum(dot_sums_[k]);
      if (writes) write(to_.dots + k * tiles * p.rows + i, sum);
    }
  }

  template <class Left>
  PETX_DEVICE void values(SitePass which, int64_t column, int c, Left left, const Run& s, const Run& channel,
                          uint32_t kept) {
    const int64_t i = token * p.d + column;
    Run dy = this->load_stream(g.dout, i, left);
    if (p.norm != Norm::none) {
      Run hat = {};
      this->add_residual(hat, i, left);
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        hat.value[j] = (s.value[j] * channel.value[j] * this->factor(kept, j) * gate_ + hat.value[j] - mean_) * rstd_;
      if (which == SitePass::result && to_.norm_weight) leave(0, c, dy, hat);
      Base::multiply_by(dy, this->load_stream(p.norm_weight, column, left));
      if (which == SitePass::statistics) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) first_sum_ += dy.value[j] * hat.value[j], second_sum_ += dy.value[j];
        if (!this->has_token_gate()) return;
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const C kept_s = this->factor(kept, j) * s.value[j];
          dot_sums_[0] += dy.value[j] * kept_s, dot_sums_[1] += kept_s, dot_sums_[2] += hat.value[j] * kept_s;
        }
        return;
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) dy.value[j] = rstd_ * (dy.value[j] - mean_part_ - hat.value[j] * along_);
    }
    if (which == SitePass::dots) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) first_sum_ += dy.value[j] * this->factor(kept, j) * s.value[j];
      return;
    }
    if (g.skip) Base::store_wide_run(g.skip, i, left, dy);
    const bool token_gate = this->has_token_gate();
    if (g.dx && begins_dx(p)) {
      Run dx = p.residual ? dy : Run{};
      if (token_gate) add_times(dx, dlogit_, Base::load_run(p.gate_weight, column, left));
      Base::store_run(g.dx, i, left, dx);
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) dy.value[j] *= this->factor(kept, j);  // of G S
    if (this->large()) {
      Run dgate;
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        dgate.value[j] = dy.value[j] * s.value[j] * channel.value[j] * (C(1) - channel.value[j]);
      Base::store_run(to_.dgate, i, left, dgate);
    } else if (to_.gate_weight) {
      if (token_gate) {  // what the gate reads times its gradient
        Run read = p.gate_input == GateInput::modified ? s : Base::load_run(p.h, i, left);
        if (p.granularity == Granularity::middle_x) Base::add_to(read, Base::load_run(p.x, i, left));
        leave(1, c, read, dlogit_);
      } else {
        leave(1, c, dy, s);
      }
    }
    Base::multiply_by(dy, channel);
#pragma unroll
    for (int j = 0; j < kRun; ++j) dy.value[j] *= gate_;
    if (token_gate && p.gate_input == GateInput::modified)
      add_times(dy, dlogit_, Base::load_run(this->gate_of_s(), column, left));
    Base::store_run(to_.ds, i, left, dy);
  }

  PETX_DEVICE static void add_times(Run& run, C factor, const Run& other) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] += factor * other.value[j];
  }

  // Terms of a column's sum over the block, in the products' place.
  PETX_DEVICE void leave(int slot, int c, const Run& of, const Run& times) const {
#pragma unroll
    for (int j = 0; j < kRun; ++j) Tile::set_result(slot, row, c + j, of.value[j] * times.value[j]);
  }
  PETX_DEVICE void leave(int slot, int c, const Run& of, C times) const {
#pragma unroll
    for (int j = 0; j < kRun; ++j) Tile::set_result(slot, row, c + j, of.value[j] * times);
  }

  // Adds up the block's rows of what the threads left. Four threads have a column; thread q of them takes rows 2q and
  // 2q + 1 of every eight, which lie in banks of their own.
  PETX_DEVICE void column_sums(int64_t begin, int64_t end) const {
    const int thread = opaque(thread_index()), q = thread % 4;
    sync_block();
#pragma unroll 1
    for (int slot = 0; slot < 2; ++slot) {
      C* to = slot == 0 ? to_.norm_weight : to_.gate_weight;
      if (!to) continue;
#pragma unroll 1
      for (int c = thread / 4; c < Tile::kN; c += Tile::kThreads / 4) {
        C sum = 0;
#pragma unroll
        for (int i = 0; i < Tile::kM / 4; ++i) {
          int of = i / 2 * 8 + 2 * q + i % 2;
          if (of < this->rows && begin + c < end) sum += Tile::result(slot, of, c);
        }
        sum = this->row_sum(sum);
        if (q == 0 && begin + c < end) write(to + block_x() * p.d + begin + c, sum);
      }
    }
    sync_block();  // others write the next tile's there
  }

  const GatedAdapterGrads& g;
  const SiteIntermediate<T>& to_;
  C gate_ = 1, dlogit_ = 0, mean_ = 0, rstd_ = 0, along_ = 0, mean_part_ = 0;  // of the row
  C first_sum_ = 0, second_sum_ = 0, dot_sums_[3] = {};                        // of its values in a tile
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

  PETX_DEVICE void run(GateStage stage, int64_t tiles) const {
    const bool small = p.granularity == Granularity::small;
    C value = 0;
    if (stage == GateStage::gate) value = this->sample_mean(p.token_gate, true);
    if (stage == GateStage::dot) {
      value = sum_of_tiles(to_.dots, tiles);
      if (p.norm != Norm::none) {
        const int64_t parts = tiles * p.rows;
        const C one = sum_of_tiles(to_.dots + parts, tiles), hat = sum_of_tiles(to_.dots + 2 * parts, tiles);
        value -= sum_of_tiles(to_.along, tiles) / C(p.d) * hat;
        if (p.norm == Norm::layer) value -= sum_of_tiles(to_.mean_part, tiles) / C(p.d) * one;
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
  PETX_DEVICE C sum_of_tiles(const C* parts, int64_t tiles) const {
    C sum = 0;
    for (int64_t tile = lane; valid && tile < tiles; tile += Base::kLanes) sum += read(parts + tile * p.rows + token);
    return Base::row_sum(sum);
  }

  const SiteIntermediate<T>& to_;
};

}  // namespace petx::cuda
