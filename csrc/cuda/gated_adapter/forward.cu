// Forward of the VL-PET site on the GPU.
//
//   z = down(h or x);  S = h + up(gelu(z));  Y = s * G * S;  out = norm(x + dropout(Y))
//
// Bytes: h, x and out once from memory; a block's second look at h and x (and third, where there is a norm) finds
// them in the cache; the weights, 4 d r values at most, come from the second-level cache once a block and pass.
// Tiling: a block owns 64 rows from the first product to the last store, because a row's norm and gate need all of
// it. z goes to memory anyway, for the backward; gelu(z) goes to a workspace and is read back from the second-level
// cache, so that no width or rank is too large.
// Each pass over the columns makes the up products anew: a row of S in floats would not fit beside its neighbours.

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {
namespace {

// `small` takes two launches, since its gate is a mean over a sample: the tokens' gates, then the rest.
enum class Stage { whole, tokens, rest };
enum class Pass { logits, statistics, result };

template <class T>
class Forward : Site<T> {
  using Base = Site<T>;
  using Base::hidden, Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Tile;

 public:
  PETX_DEVICE Forward(const GatedAdapterParams& params, const Hidden<T>& hidden, int64_t block, T* out)
      : Base(params, hidden, block), out_(out) {}

  PETX_DEVICE void run(Stage stage) {
    if (stage == Stage::rest) {
      gate_ = this->sample_mean(p.token_gate, true);
    } else {
      down(p.reads_x_in_down() ? p.x : p.h, p.down_width(), p.down_weight, p.down_bias, p.r, p.z, hidden.a);
      if (this->large()) down(p.x, p.d_x, p.gate_down_weight, p.gate_down_bias, p.r_g, p.gate_z, hidden.gate_a);
      sync_block();  // other columns come from other threads
    }
    bool logits = stage == Stage::tokens || p.granularity == Granularity::middle_x;
#pragma unroll 1
    for (int number = 0; number < 3; ++number) {
      Pass which = static_cast<Pass>(number);
      if (which == Pass::logits ? !logits : which == Pass::statistics ? p.norm == Norm::none : false) continue;
      pass(which);
      if (which == Pass::logits) finish_gate();
      if (which == Pass::statistics) finish_statistics();
      if (stage == Stage::tokens) return;
    }
  }

 private:
  // z = in . weight^T + bias and gelu(z) of the block's rows.
  PETX_DEVICE void down(const void* in, int64_t width, const void* weight, const void* bias, int64_t rank, void* z,
                        T* a) {
    for (int64_t begin = 0; begin < rank; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(in, width), this->weight_rows(weight, begin, rank, width), width);
      this->each_column(begin, rank, [&](int64_t column, int c) {
        int64_t i = token * rank + column;
        put<T>(z, i, Tile::result(0, row, c) + at_or_zero<T>(bias, column));
        put<T>(a, i, activate(p.activation, at<T>(z, i)));  // of z as the backward will find it
      });
    }
  }

  // One look at every value of the block. The passes share one loop, and with it the code of its products.
  PETX_DEVICE void pass(Pass which) {
    bool modified = which != Pass::logits || p.gate_input == GateInput::modified;
    this->each_tile(modified, [&](int64_t begin, int64_t end) {
      this->each_column(begin, end, [&](int64_t column, int c) {
        value(which, column, modified ? this->modified(column, c) : at<T>(p.h, token * p.d + column),
              this->logit(column, c));
      });
    });
  }

  PETX_DEVICE void value(Pass which, int64_t column, C s, C logit) {
    if (which == Pass::logits) {
      C x = at<T>(p.x, token * p.d + column), from_x = at<T>(p.gate_weight, column);
      logit_ += x * from_x + s * at<T>(this->gate_of_s(), column);
      return;
    }
    C y = this->tail(column, s, this->channel_gate(column, logit) * gate_, this->dropout(column));
    if (which == Pass::statistics) {
      C apart = y - mean_;
      seen_ += C(1);
      mean_ += apart / seen_;
      squares_ += apart * (y - mean_);
      return;
    }
    if (p.norm != Norm::none)
      y = (y - mean_) * rstd_ * at<T>(p.norm_weight, column) + at_or_zero<T>(p.norm_bias, column);
    put<T>(out_, token * p.d + column, y);
  }

  // middle_x's gate is a token's own; small's is the mean of these, taken by the second launch.
  PETX_DEVICE void finish_gate() {
    gate_ = sigmoid(this->row_sum(logit_) + at_or_zero<T>(p.gate_bias, 0));
    if (sharer == 0 && this->valid()) write(static_cast<C*>(p.token_gate) + token, gate_);
  }

  // Each thread has mean and squared deviations of its own columns; together they are the row's.
  PETX_DEVICE void finish_statistics() {
    C mean = p.norm == Norm::layer ? this->row_sum(seen_ * mean_) / C(p.d) : C(0);
    C apart = mean_ - mean;
    C squares = this->row_sum(squares_ + seen_ * apart * apart);
    mean_ = mean, rstd_ = C(1) / sqrt(squares / C(p.d) + C(p.eps));
    if (sharer != 0 || !this->valid()) return;
    C* stats = static_cast<C*>(p.norm_stats) + 2 * token;
    write(stats, mean_);
    write(stats + 1, rstd_);
  }

  T* out_;
  C logit_ = 0, gate_ = 1;
  C seen_ = 0, mean_ = 0, squares_ = 0, rstd_ = 0;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_forward(GatedAdapterParams p, Hidden<T> hidden, T* out, Stage stage) {
  Forward<T>(p, hidden, block_x(), out).run(stage);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const GatedAdapterParams& params, void* out)
      : p(params),
        plan_(p),
        hidden_{workspace.take<T>(p.rows * p.r), workspace.take<T>(p.rows * p.r_g)},
        out_(static_cast<T*>(out)) {}

  int run(void* stream) const {
    auto rows = [&](Stage stage) {
      return launch(site_forward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(2), stream, p, hidden_, out_,
                    stage);
    };
    if (!plan_.two_steps) return rows(Stage::whole);
    int error = rows(Stage::tokens);
    return error ? error : rows(Stage::rest);
  }

 private:
  const GatedAdapterParams& p;
  GatedAdapterPlan plan_;
  Hidden<T> hidden_;
  T* out_;
};

}  // namespace

int64_t gated_adapter_fwd_workspace(const GatedAdapterParams& p) {
  return count_workspace<ForwardCall>(p.dtype, p, nullptr);
}

int gated_adapter_fwd(const GatedAdapterParams& p, void* out, void* workspace, void* stream) {
  return p.rows ? run_call<ForwardCall>(p.dtype, workspace, stream, p, out) : 0;
}

}  // namespace petx::cuda
