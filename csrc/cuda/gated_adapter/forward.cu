// Forward of the VL-PET site on the GPU.
//
//   z = down(h or x);  S = h + up(gelu(z));  Y = s * G * S;  out = norm(x + dropout(Y))
//
// Bytes: h, x and out once from memory; a block's second look at h and x, and at out if there is a norm, finds them in
// the cache; the weights, 4 d r values at most, come from the second-level cache once per block.
// Tiling: a block owns 64 rows from the first product to the last store, because a row's norm and gate need all of
// it. z goes to memory anyway, for the backward; gelu(z) goes to a workspace and is read back from the second-level
// cache, so that no width or rank is too large.
// The up products are made once: a row of S in floats would not fit beside its neighbours, so what the norm needs of
// all columns, x + dropout(Y) as it is stored, waits in out for the row's statistics, and S for a token's gate.

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {
namespace {

// `small` takes two launches, since its gate is a mean over a sample: the tokens' gates, then the rest.
enum class Stage { whole, tokens, rest };
enum class Pass { logits, result };

template <class T>
class Forward : Site<T> {
  using Base = Site<T>;
  using Base::constants, Base::hidden, Base::kRun, Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE Forward(const GatedAdapterParams& params, const SiteConstants<T>& constants, const Hidden<T>& hidden,
                      int64_t block, T* out)
      : Base(params, constants, hidden, block), out_(out) {}

  PETX_DEVICE void run(Stage stage) {
    const bool token_gate = this->has_token_gate(), gate_of_s = p.gate_input == GateInput::modified;
    if (stage == Stage::rest) {
      gate_ = this->sample_mean(p.token_gate, true);
    } else {
      down(p.reads_x_in_down() ? p.x : p.h, p.down_width(), p.down_weight, p.down_bias, p.r, p.z, hidden.a);
      if (this->large()) down(p.x, p.d_x, p.gate_down_weight, p.gate_down_bias, p.r_g, p.gate_z, hidden.gate_a);
      sync_block();  // other columns come from other threads
    }
#pragma unroll 1
    for (int number = token_gate && stage != Stage::rest ? 0 : 1; number < 2; ++number) {
      Pass which = static_cast<Pass>(number);
      pass(which, which == Pass::logits ? gate_of_s : !(token_gate && gate_of_s));
      if (which == Pass::logits) finish_gate();
      if (stage == Stage::tokens) return;
    }
    if (p.norm == Norm::none) return;
    finish_statistics();
    normalise();
  }

 private:
  // z = in . weight^T + bias and gelu(z) of the block's rows.
  PETX_DEVICE void down(const void* in, int64_t width, const void* weight, const void* bias, int64_t rank, void* z,
                        T* a) {
    for (int64_t begin = 0; begin < rank; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(in, width), this->weight_rows(weight, begin, rank, width), width);
      this->each_run(begin, rank, [&](int64_t column, int c, int64_t left) {
        int64_t i = token * rank + column;
        Run run = this->result(0, c);
        if (bias) Base::add_to(run, Base::load_run(bias, column, left));
        Base::store_run(z, i, left, run);
        run = Base::rounded(run);  // as the backward will find it
        this->activate(run);
        Base::store_run(a, i, left, run);
      });
    }
  }

  // One look at every value of the block. The passes share one loop, and with it the code of its products.
  PETX_DEVICE void pass(Pass which, bool products) {
    this->each_tile(products, [&](int64_t begin, int64_t end) {
      this->each_run(begin, end, [&](int64_t column, int c, int64_t left) {
        if (which == Pass::logits)
          add_logits(products, column, c, left);
        else
          put_result(products, column, c, left);
      });
    });
  }

  PETX_DEVICE void add_logits(bool products, int64_t column, int c, int64_t left) {
    int64_t i = token * p.d + column;
    Run s;
    if (products) {
      s = this->modified(column, c, left);
      Base::store_run(out_, i, left, s);
    } else {
      s = Base::load_run(p.h, i, left);
    }
    Run x = Base::load_run(p.x, i, left), of_x = Base::load_run(p.gate_weight, column, left);
    Run of_s = Base::load_run(this->gate_of_s(), column, left);
#pragma unroll
    for (int j = 0; j < kRun; ++j) logit_ += x.value[j] * of_x.value[j] + s.value[j] * of_s.value[j];
  }

  // y = x + dropout(s G S), which waits in out if there is a norm; S lies there where the logits have been before.
  PETX_DEVICE void put_result(bool products, int64_t column, int c, int64_t left) {
    int64_t i = token * p.d + column;
    Run y = products ? this->modified(column, c, left) : Base::load_run(out_, i, left);
    Base::multiply_by(y, this->channel_gate(column, c, left));
    Base::multiply_by(y, this->factors(column));
#pragma unroll
    for (int j = 0; j < kRun; ++j) y.value[j] *= gate_;
    if (p.residual) Base::add_to(y, Base::load_run(p.x, i, left));
    Base::store_run(out_, i, left, y);
    if (p.norm != Norm::none) join(y, left < kRun ? static_cast<int>(left) : kRun);
  }

  // Mean and squared deviations of a run of `count` values, joined with those before it.
  PETX_DEVICE void join(const Run& y, int count) {
    C sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum += j < count ? y.value[j] : C(0);
    C mean = sum / C(count);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      C apart = j < count ? y.value[j] - mean : C(0);
      squares += apart * apart;
    }
    C all = seen_ + C(count), apart = mean - mean_, part = C(count) / all;
    squares_ += squares + apart * apart * seen_ * part;
    mean_ += apart * part;
    seen_ = all;
  }

  PETX_DEVICE void normalise() const {
    this->each_tile(false, [&](int64_t begin, int64_t end) {
      this->each_run(begin, end, [&](int64_t column, int, int64_t left) {
        int64_t i = token * p.d + column;
        Run y = Base::load_run(out_, i, left), weight = Base::load_run(p.norm_weight, column, left);
#pragma unroll
        for (int j = 0; j < kRun; ++j) y.value[j] = (y.value[j] - mean_) * rstd_ * weight.value[j];
        if (p.norm_bias) Base::add_to(y, Base::load_run(p.norm_bias, column, left));
        Base::store_run(out_, i, left, y);
      });
    });
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
    mean_ = mean, rstd_ = C(1) / sqrt(squares / C(p.d) + constants.eps);
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
    site_forward(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden, T* out, Stage stage) {
  Forward<T>(p, constants, hidden, block_x(), out).run(stage);
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
      return launch(site_forward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(2), stream, p,
                    SiteConstants<T>(p), hidden_, out_, stage);
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
