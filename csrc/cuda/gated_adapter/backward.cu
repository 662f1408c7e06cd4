// Backward of the VL-PET site on the GPU.
//
//   dY = s dropout(norm'(dout));  dS = G dY + the gate's own;  dz = (dS up) gelu'(z);  dh = dS + dz down
//
// Launches: one over blocks of rows for all that a row needs alone (two for `small`, whose gate's gradient is a sum
// over a sample), then the sums over tokens (token_sums.cuh): weights, vectors, and their splits added up.
// Bytes: h, x, dout, dh and dx once from memory, dS (and the gate's gradient) written once and read twice more, all
// but the first time from the cache. S and G are recomputed from z, as in the forward, whose tiling this is. A norm and
// a token's gate take sums over the row before anything can be stored: then S and G wait, as they would be stored, in
// the places of dS and the gate's gradient, and the next look finds them there.

#include "cuda/common/token_sums.cuh"
#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {
namespace {

enum class Stage { whole, dots, rest };
enum class Pass { statistics, dots, result };

// What the row blocks leave for the sums over tokens.
template <class T>
struct Intermediate {
  using C = Compute<T>;
  Hidden<T> hidden;
  T* ds;           // [N, d] gradient of S
  T* dgate;        // [N, d] of the large gate's logits
  T* dz;           // [N, r]
  T* dgate_z;      // [N, r_g]
  C* dot;          // [N] small: dY . S
  C* dlogit;       // [N] middle_x, small
  C* norm_weight;  // [row blocks, d] or null
  C* gate_weight;  // [row blocks, d] or null: of middle_y's vector, or what multiplies S in a token gate
};

template <class T>
class Backward : Site<T> {
  using Base = Site<T>;
  using Base::constants, Base::kRun, Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE Backward(const GatedAdapterParams& params, const SiteConstants<T>& constants,
                       const GatedAdapterGrads& grads, const Intermediate<T>& to)
      : Base(params, constants, to.hidden, block_x()), g(grads), to_(to) {}

  PETX_DEVICE void run(Stage stage) {
    const bool small = p.granularity == Granularity::small, middle_x = p.granularity == Granularity::middle_x;
    if (stage != Stage::rest) {
      activate_rows(p.z, p.r, to_.hidden.a);
      if (this->large()) activate_rows(p.gate_z, p.r_g, to_.hidden.gate_a);
      sync_block();  // every thread has made some of it
      look();
    }
    if (small) gate_ = this->sample_mean(p.token_gate, true);
    if (middle_x && this->valid()) gate_ = read(static_cast<const C*>(p.token_gate) + token);
    const bool dots = middle_x || stage == Stage::dots;
#pragma unroll 1
    for (int number = 0; number < 3; ++number) {
      Pass which = static_cast<Pass>(number);
      if (which == Pass::statistics && p.norm == Norm::none) continue;
      if (which == Pass::dots && !dots) continue;
      if (which == Pass::result && stage == Stage::dots) return;
      if (which == Pass::result && (small || middle_x)) finish_dlogit();
      pass(which);
      if (which == Pass::statistics) {
        along_ = this->row_sum(along_) / C(p.d);
        mean_part_ = p.norm == Norm::layer ? this->row_sum(mean_part_) / C(p.d) : C(0);
      }
      if (which == Pass::dots) {
        dlogit_ = this->row_sum(dlogit_);
        if (stage == Stage::dots && sharer == 0 && this->valid()) write(to_.dot + token, dlogit_);
      }
    }
    adapter();
    if (this->large()) gate();
  }

 private:
  PETX_DEVICE void activate_rows(const void* z, int64_t rank, T* a) const {
    const int64_t begin = this->first * rank, end = begin + this->rows * rank;
#pragma unroll 1
    for (int64_t i = begin + kRun * thread_index(); i < end; i += kRun * Tile::kThreads) {
      Run run = Base::load_run(z, i, end - i);
      this->activate(run);
      Base::store_run(a, i, end - i, run);
    }
  }

  // S and the large gate, as they would be stored, in the places where their gradients will be: what follows finds them
  // there, in as many passes as it takes, and holds nothing while there are products to make.
  PETX_DEVICE void look() const {
    this->each_tile(true, [&](int64_t begin, int64_t end) {
      this->each_run(begin, end, [&](int64_t column, int c, int64_t left) {
        const int64_t i = token * p.d + column;
        Base::store_run(to_.ds, i, left, this->modified(column, c, left));
        if (this->large()) Base::store_run(to_.dgate, i, left, this->channel_gate(column, c, left));
      });
    });
  }

  PETX_DEVICE void pass(Pass which) {
    const bool sums = which == Pass::result && (to_.norm_weight || to_.gate_weight);
    this->each_tile(false, [&](int64_t begin, int64_t end) {
      this->each_run(begin, end, [&](int64_t column, int c, int64_t left) { values(which, column, c, left); });
      if (sums) column_sums(begin, end);
    });
  }

  PETX_DEVICE void values(Pass which, int64_t column, int c, int64_t left) {
    // Nothing that follows from the row is kept from one run to the next: registers are short.
    const int64_t token = this->first + opaque(row), i = token * p.d + column;
    const Run s = Base::load_run(to_.ds, i, left);
    const Run channel = this->large() ? Base::load_run(to_.dgate, i, left) : this->channel_gate(column, c, left);
    const uint32_t kept = constants.dropout.template kept<kRun>(i);
    Run dy = Base::load_run(g.dout, i, left);
    if (p.norm != Norm::none) {
      // Not kept from one product to the next, for which registers are short.
      const C* stats = static_cast<const C*>(p.norm_stats) + 2 * token;
      const C mean = read(stats), rstd = read(stats + 1);
      Run hat = p.residual ? Base::load_run(p.x, i, left) : Run{};
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        hat.value[j] = (s.value[j] * channel.value[j] * this->factor(kept, j) * gate_ + hat.value[j] - mean) * rstd;
      if (which == Pass::result && to_.norm_weight) leave(0, c, dy, hat);
      Base::multiply_by(dy, Base::load_run(p.norm_weight, column, left));
      if (which == Pass::statistics) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) along_ += dy.value[j] * hat.value[j], mean_part_ += dy.value[j];
        return;
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) dy.value[j] = rstd * (dy.value[j] - mean_part_ - hat.value[j] * along_);
    }
    if (which == Pass::dots) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) dlogit_ += dy.value[j] * this->factor(kept, j) * s.value[j];
      return;
    }
    const bool token_gate = this->has_token_gate();
    if (g.dx && begins_dx()) {
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

  // Whether the pass over the results writes dx, which `adapter` and `gate` then add to.
  PETX_DEVICE bool begins_dx() const { return p.d_x == p.d && (p.residual || this->has_token_gate()); }

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
    const int thread = opaque(thread_index()), c = thread / 4, q = thread % 4;
    sync_block();
#pragma unroll 1
    for (int slot = 0; slot < 2; ++slot) {
      C* to = slot == 0 ? to_.norm_weight : to_.gate_weight;
      if (!to) continue;
      C sum = 0;
#pragma unroll
      for (int i = 0; i < Tile::kM / 4; ++i) {
        int of = i / 2 * 8 + 2 * q + i % 2;
        if (of < this->rows && begin + c < end) sum += Tile::result(slot, of, c);
      }
      sum = this->row_sum(sum);
      if (q == 0 && begin + c < end) write(to + block_x() * p.d + begin + c, sum);
    }
    sync_block();  // others write the next tile's there
  }

  // The gradient of the token's logit from that of its gate, dY . S; small's comes from all tokens of the sample, each
  // through its own sigma.
  PETX_DEVICE void finish_dlogit() {
    C sigma = gate_, dgate = dlogit_;
    if (p.granularity == Granularity::small) {
      dgate = this->sample_mean(to_.dot, false);
      if (this->valid()) {
        sigma = read(static_cast<const C*>(p.token_gate) + token);
        if (!this->counts(token)) dgate = C(0);
      }
    }
    dlogit_ = dgate * sigma * (C(1) - sigma);
    if (sharer == 0 && this->valid()) write(to_.dlogit + token, dlogit_);
  }

  // dz = (d up) gelu'(z), where d [N, width of all heads] and up [that, rank of a head].
  PETX_DEVICE void hidden_grad(const T* d, int64_t heads, const void* up, int64_t rank, const void* z, T* dz) const {
    const int width = static_cast<int>(p.d / heads);
#pragma unroll 1
    for (int head = 0; head < heads; ++head)
#pragma unroll 1
      for (int begin = 0; begin < rank; begin += Tile::kN) {
        Columns<T> columns{static_cast<const T*>(up) + head * width * rank + begin, rank, rank - begin};
        Tile::multiply(0, this->block_rows(d, p.d, head * width), columns, width);
        this->each_run(begin, rank, [&](int64_t column, int c, int64_t left) {
          int64_t i = token * heads * rank + head * rank + column;
          Run slope = Base::load_run(z, i, left);
          if (p.activation == Activation::gelu) {
#pragma unroll
            for (int j = 0; j < kRun; ++j)
              slope.value[j] = gelu_derivative<Activation::gelu, Base::kRough>(slope.value[j]);
          } else {
#pragma unroll
            for (int j = 0; j < kRun; ++j)
              slope.value[j] = gelu_derivative<Activation::gelu_tanh, Base::kRough>(slope.value[j]);
          }
          Base::multiply_by(slope, this->result(0, c));
          Base::store_run(dz, i, left, slope);
        });
      }
    sync_block();  // dz's other columns come from other threads
  }

  // Calls visit(column, left, run) over dz down, `down` being [rank, width].
  template <class Visit>
  PETX_DEVICE void input_grad(const T* dz, int64_t rank, const void* down, int64_t width, const Visit& visit) const {
#pragma unroll 1
    for (int begin = 0; begin < width; begin += Tile::kN) {
      Columns<T> columns{static_cast<const T*>(down) + begin, width, width - begin};
      Tile::multiply(0, this->block_rows(dz, rank), columns, rank);
      this->each_run(begin, width,
                     [&](int64_t column, int c, int64_t left) { visit(column, left, this->result(0, c)); });
    }
  }

  // The same with zeros for the product.
  template <class Visit>
  PETX_DEVICE void without_product(int64_t width, const Visit& visit) const {
    for (int64_t begin = 0; begin < width; begin += Tile::kN)
      this->each_run(begin, width, [&](int64_t column, int, int64_t left) { visit(column, left, Run{}); });
  }

  PETX_DEVICE void adapter() const {
    sync_block();  // dS's other columns come from other threads
    hidden_grad(to_.ds, p.heads, p.up_weight, p.r / p.heads, p.z, to_.dz);
    const bool parallel = p.reads_x_in_down(),
               through_gate = this->has_token_gate() && p.gate_input == GateInput::original;
    auto finish_dh = [&](int64_t column, int64_t left, Run dh) {
      const int64_t i = token * p.d + column;
      Base::add_to(dh, Base::load_run(to_.ds, i, left));
      if (through_gate) add_times(dh, dlogit_, Base::load_run(this->gate_of_s(), column, left));
      Base::store_run(g.dh, i, left, dh);
    };
    if (g.dh && !parallel) input_grad(to_.dz, p.r, p.down_weight, p.d, finish_dh);
    if (g.dh && parallel) without_product(p.d, finish_dh);
    if (!g.dx) return;
    if (parallel) input_grad(to_.dz, p.r, p.down_weight, p.d_x, dx_visitor(begins_dx()));
    if (!parallel && !begins_dx() && !this->large()) without_product(p.d_x, dx_visitor(false));
  }

  PETX_DEVICE void gate() const {
    hidden_grad(to_.dgate, 1, p.gate_weight, p.r_g, p.gate_z, to_.dgate_z);
    if (g.dx) input_grad(to_.dgate_z, p.r_g, p.gate_down_weight, p.d_x, dx_visitor(begins_dx() || p.reads_x_in_down()));
  }

  // Adds to dx, or begins it.
  PETX_DEVICE auto dx_visitor(bool begun) const {
    return [this, begun](int64_t column, int64_t left, Run dx) {
      const int64_t i = token * p.d_x + column;
      if (begun) Base::add_to(dx, Base::load_run(g.dx, i, left));
      Base::store_run(g.dx, i, left, dx);
    };
  }

  const GatedAdapterGrads& g;
  const Intermediate<T>& to_;
  C gate_ = 1, along_ = 0, mean_part_ = 0, dlogit_ = 0;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_backward(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, Intermediate<T> to,
                  Stage stage) {
  Backward<T>(p, constants, g, to).run(stage);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  BackwardCall(Workspace& workspace, const GatedAdapterParams& params, const GatedAdapterGrads& grads)
      : p(params), g(grads), plan_(p), sums_(p.rows) {
    bool large = p.granularity == Granularity::large, middle_y = p.granularity == Granularity::middle_y;
    bool small = p.granularity == Granularity::small, token_gate = small || p.granularity == Granularity::middle_x;
    to_.hidden = {workspace.take<T>(p.rows * p.r), workspace.take<T>(p.rows * p.r_g)};
    to_.ds = workspace.take<T>(p.rows * p.d);
    to_.dgate = workspace.take<T>(large ? p.rows * p.d : 0);
    to_.dz = workspace.take<T>(p.rows * p.r);
    to_.dgate_z = workspace.take<T>(p.rows * p.r_g);
    to_.dot = workspace.take<C>(small ? p.rows : 0);
    to_.dlogit = workspace.take<C>(token_gate ? p.rows : 0);
    bool gate_vector = g.gate_weight && !large && p.granularity != Granularity::none;
    to_.norm_weight = workspace.take<C>(g.norm_weight ? plan_.blocks * p.d : 0);
    to_.gate_weight = workspace.take<C>(gate_vector ? plan_.blocks * p.d : 0);

    int64_t rank = p.r / p.heads;
    const void* in = p.reads_x_in_down() ? p.x : p.h;
    sums_.product(g.up_weight, to_.ds, to_.hidden.a, p.d / p.heads, rank, p.heads);
    sums_.product(g.down_weight, to_.dz, in, p.r, p.down_width(), 1);
    if (large) sums_.product(g.gate_weight, to_.dgate, to_.hidden.gate_a, p.d, p.r_g, 1);
    sums_.product(g.gate_down_weight, to_.dgate_z, p.x, p.r_g, p.d_x, 1);
    sums_.column(g.up_bias, to_.ds, nullptr, p.d);
    sums_.column(g.down_bias, to_.dz, nullptr, p.r);
    sums_.column(g.gate_down_bias, to_.dgate_z, nullptr, p.r_g);
    sums_.column(g.norm_bias, g.dout, nullptr, p.d);
    if (large) sums_.column(g.gate_bias, to_.dgate, nullptr, p.d);
    if (token_gate) sums_.column(g.gate_bias, nullptr, to_.dlogit, 1);
    if (small) sums_.column(g.gate_weight, p.x, to_.dlogit, p.d);
    sums_.finish(g.norm_weight, to_.norm_weight, plan_.blocks, p.d, p.d);
    bool sigmoid = middle_y && p.middle_y == MiddleY::sigmoid;
    C* gate_weight = g.gate_weight ? static_cast<C*>(g.gate_weight) + (small ? p.d : 0) : nullptr;
    if (gate_vector)
      sums_.finish(gate_weight, to_.gate_weight, plan_.blocks, p.d, p.d, sigmoid ? p.gate_weight : nullptr);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    auto rows = [&](Stage stage) {
      return launch(site_backward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(2), stream, p,
                    SiteConstants<T>(p), g, to_, stage);
    };
    if (plan_.two_steps)
      if (int error = rows(Stage::dots)) return error;
    if (int error = rows(plan_.two_steps ? Stage::rest : Stage::whole)) return error;
    return sums_.run(stream);
  }

 private:
  const GatedAdapterParams& p;
  const GatedAdapterGrads& g;
  GatedAdapterPlan plan_;
  Intermediate<T> to_ = {};
  TokenSums<T, 4, 6, 12> sums_;
};

}  // namespace

int64_t gated_adapter_bwd_workspace(const GatedAdapterParams& p, const GatedAdapterGrads& g) {
  return p.rows ? count_workspace<BackwardCall>(p.dtype, p, g) : 0;
}

// With no rows the caller's gradients are zeros already.
int gated_adapter_bwd(const GatedAdapterParams& p, const GatedAdapterGrads& g, void* workspace, void* stream) {
  return p.rows ? run_call<BackwardCall>(p.dtype, workspace, stream, p, g) : 0;
}

}  // namespace petx::cuda
