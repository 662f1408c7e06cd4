// Backward of the VL-PET site on the GPU.
//
//   dY = s dropout(norm'(dout));  dS = G dY + the gate's own;  dz = (dS up) gelu'(z);  dh = dS + dz down
//
// Launches: one over blocks of rows for all that a row needs alone (two for `small`, whose gate's gradient is a sum
// over a sample), then the sums over tokens (token_sums.cuh): weights, vectors, and their splits added up.
// Bytes: h, x, dout, dh and dx once from memory, dS (and the gate's gradient) written once and read twice more, all
// but the first time from the cache. S and G are made anew from z, as in the forward, whose tiling this is.

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
  using Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Tile;

 public:
  PETX_DEVICE Backward(const GatedAdapterParams& params, const GatedAdapterGrads& grads, const Intermediate<T>& to,
                       int64_t block)
      : Base(params, to.hidden, block), g(grads), to_(to), block_(block) {}

  PETX_DEVICE void run(Stage stage) {
    bool small = p.granularity == Granularity::small, middle_x = p.granularity == Granularity::middle_x;
    if (stage != Stage::rest) {
      activate_rows(p.z, p.r, to_.hidden.a);
      if (this->large()) activate_rows(p.gate_z, p.r_g, to_.hidden.gate_a);
      sync_block();  // every thread has made some of it
    }
    if (small) gate_ = this->sample_mean(p.token_gate, true);
    if (middle_x && this->valid()) gate_ = read(static_cast<const C*>(p.token_gate) + token);
    if (p.norm != Norm::none && this->valid()) {
      const C* stats = static_cast<const C*>(p.norm_stats) + 2 * token;
      mean_ = read(stats), rstd_ = read(stats + 1);
    }
#pragma unroll 1
    for (int number = 0; number < 3; ++number) {
      Pass which = static_cast<Pass>(number);
      if (which == Pass::statistics && p.norm == Norm::none) continue;
      if (which == Pass::dots && !(middle_x || stage == Stage::dots)) continue;
      if (which == Pass::result && stage == Stage::dots) return;
      if (which == Pass::result && (small || middle_x)) finish_dlogit();
      pass(which);
      if (which == Pass::statistics) {
        along_ = this->row_sum(along_) / C(p.d);
        mean_part_ = p.norm == Norm::layer ? this->row_sum(mean_part_) / C(p.d) : C(0);
      }
      if (which == Pass::dots) {
        dot_ = this->row_sum(dot_);
        if (stage == Stage::dots && sharer == 0 && this->valid()) write(to_.dot + token, dot_);
      }
    }
    adapter();
    if (this->large()) gate();
  }

 private:
  PETX_DEVICE void activate_rows(const void* z, int64_t rank, T* a) const {
    int64_t begin = this->first * rank, end = begin + this->rows * rank;
    for (int64_t i = begin + thread_index(); i < end; i += Tile::kThreads)
      put<T>(a, i, activate(p.activation, at<T>(z, i)));
  }

  PETX_DEVICE void pass(Pass which) {
    bool sums = which == Pass::result && (to_.norm_weight || to_.gate_weight);
    this->each_tile(true, [&](int64_t begin, int64_t end) {
      this->each_column(begin, end, [&](int64_t column, int c) {
        C s = this->modified(column, c), channel = this->channel_gate(column, this->logit(column, c));
        C dy = at<T>(g.dout, token * p.d + column), dropped = this->dropout(column), hat = 0, dnorm = dy;
        if (p.norm != Norm::none) {
          C y = this->tail(column, s, channel * gate_, dropped);
          hat = (y - mean_) * rstd_;
          dy *= at<T>(p.norm_weight, column);
          if (which == Pass::statistics) {
            along_ += dy * hat;
            mean_part_ += dy;
            return;
          }
          dy = rstd_ * (dy - mean_part_ - hat * along_);
        }
        C dresidual = p.residual ? dy : C(0);
        dy *= C(p.scale) * dropped;
        if (which == Pass::dots) {
          dot_ += dy * s;
          return;
        }
        C ds = dy * channel * gate_, dgate = dy * s;
        if (this->large()) {
          put<T>(to_.dgate, token * p.d + column, dgate * channel * (C(1) - channel));
        } else if (this->has_token_gate()) {
          dresidual += dlogit_ * at<T>(p.gate_weight, column);
          C read_by_gate = p.gate_input == GateInput::modified ? s : at<T>(p.h, token * p.d + column);
          if (p.gate_input == GateInput::modified) ds += dlogit_ * at<T>(this->gate_of_s(), column);
          if (p.granularity == Granularity::middle_x) read_by_gate += at<T>(p.x, token * p.d + column);
          dgate = dlogit_ * read_by_gate;
        }
        put<T>(to_.ds, token * p.d + column, ds);
        if (g.dx && p.d_x == p.d) put<T>(g.dx, token * p.d + column, dresidual);
        if (sums) Tile::set_result(0, row, c, dnorm * hat), Tile::set_result(1, row, c, dgate);
      });
      if (sums) column_sums(begin, end);
    });
  }

  // Adds up the block's rows of what the threads left in the products' place, where the next results come only after
  // a barrier.
  PETX_DEVICE void column_sums(int64_t begin, int64_t end) const {
    sync_block();
    int slot = thread_index() / Tile::kN, c = thread_index() % Tile::kN;
    C* to = slot == 0 ? to_.norm_weight : slot == 1 ? to_.gate_weight : nullptr;
    if (to && begin + c < end) {
      C sum = 0;
      for (int i = 0; i < this->rows; ++i) sum += Tile::result(slot, i, c);
      write(to + block_ * p.d + begin + c, sum);
    }
  }

  // The gradient of the token's logit; small's comes from all tokens of the sample, each through its own sigma.
  PETX_DEVICE void finish_dlogit() {
    C sigma = gate_, dgate = dot_;
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
    int64_t width = p.d / heads;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t begin = 0; begin < rank; begin += Tile::kN) {
        Columns<T> columns{static_cast<const T*>(up) + head * width * rank + begin, rank, rank - begin};
        Tile::multiply(0, this->block_rows(d, p.d, head * width), columns, width);
        this->each_column(begin, rank, [&](int64_t column, int c) {
          int64_t i = token * heads * rank + head * rank + column;
          C value = at<T>(z, i);
          C slope = p.activation == Activation::gelu ? gelu_derivative<Activation::gelu>(value)
                                                     : gelu_derivative<Activation::gelu_tanh>(value);
          put<T>(dz, i, Tile::result(0, row, c) * slope);
        });
      }
    sync_block();  // dz's other columns come from other threads
  }

  // Calls visit(column, product) over dz down, `down` being [rank, width].
  template <class Visit>
  PETX_DEVICE void input_grad(const T* dz, int64_t rank, const void* down, int64_t width, const Visit& visit) const {
    for (int64_t begin = 0; begin < width; begin += Tile::kN) {
      Columns<T> columns{static_cast<const T*>(down) + begin, width, width - begin};
      Tile::multiply(0, this->block_rows(dz, rank), columns, rank);
      this->each_column(begin, width, [&](int64_t column, int c) { visit(column, Tile::result(0, row, c)); });
    }
  }

  PETX_DEVICE void adapter() const {
    sync_block();  // dS's other columns come from other threads
    hidden_grad(to_.ds, p.heads, p.up_weight, p.r / p.heads, p.z, to_.dz);
    bool parallel = p.reads_x_in_down(), through_gate = this->has_token_gate() && p.gate_input == GateInput::original;
    auto finish_dh = [&](int64_t column, C product) {
      C dh = at<T>(to_.ds, token * p.d + column) + product;
      if (through_gate) dh += dlogit_ * at<T>(this->gate_of_s(), column);
      put<T>(g.dh, token * p.d + column, dh);
    };
    if (g.dh && !parallel) input_grad(to_.dz, p.r, p.down_weight, p.d, finish_dh);
    if (g.dh && parallel)
      for (int64_t begin = 0; begin < p.d; begin += Tile::kN)
        this->each_column(begin, p.d, [&](int64_t column, int) { finish_dh(column, C(0)); });
    if (!g.dx) return;
    // Where x is as wide as h, the first pass left its part in dx.
    bool begun = p.d_x == p.d;
    auto finish_dx = [&](int64_t column, C product) {
      int64_t i = token * p.d_x + column;
      put<T>(g.dx, i, begun ? at<T>(g.dx, i) + product : product);
    };
    if (parallel) input_grad(to_.dz, p.r, p.down_weight, p.d_x, finish_dx);
    if (!parallel && !begun)
      for (int64_t begin = 0; begin < p.d_x; begin += Tile::kN)
        this->each_column(begin, p.d_x, [&](int64_t column, int) { finish_dx(column, C(0)); });
  }

  PETX_DEVICE void gate() const {
    hidden_grad(to_.dgate, 1, p.gate_weight, p.r_g, p.gate_z, to_.dgate_z);
    if (!g.dx) return;
    input_grad(to_.dgate_z, p.r_g, p.gate_down_weight, p.d_x, [&](int64_t column, C product) {
      int64_t i = token * p.d_x + column;
      put<T>(g.dx, i, at<T>(g.dx, i) + product);
    });
  }

  const GatedAdapterGrads& g;
  const Intermediate<T>& to_;
  int64_t block_;
  C gate_ = 1, mean_ = 0, rstd_ = 1;
  C along_ = 0, mean_part_ = 0, dot_ = 0, dlogit_ = 0;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_backward(GatedAdapterParams p, GatedAdapterGrads g, Intermediate<T> to, Stage stage) {
  Backward<T>(p, g, to, block_x()).run(stage);
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
      return launch(site_backward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(2), stream, p, g, to_, stage);
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
