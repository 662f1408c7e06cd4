// Forward of the expert mixture on the GPU.
//
//   u = x A^T + a;  g = uniform or softmax(x W_g^T + c);  y = alpha x + beta ((g act(u)) B^T + sum_k g_k b_k)
//
// Fused. Bytes: x once from memory (a second time from the cache for alpha x), y once, u and the gates once for the
// backward, the scaled hidden values written and read back through the second-level cache; the weights, 2 K r d values
// at most, come from the cache once a block. Tiling: a block owns 64 rows from the first product to the last store,
// so that no launch lies between. The gate's K columns follow the K r of the down projection in the same tiles of 64,
// and cost a pass over x only where they do not fit beside the last of these. A sample's gate, the softmax of its
// tokens' mean logits, takes three launches: rows, samples, rows.
//
// Hybrid. The wide products belong to the host library; what lies between is one pass over u and, after the last
// product, one over x and y. The gate's K columns are a tile here and a pass over x.

#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {
namespace {

enum class Stage { whole, tokens, rest };

template <class T>
struct Work {
  using C = Compute<T>;
  T* hidden;       // [N, K r] beta g act(u)
  C* logits;       // [N, K] without bias
  C* mean_logits;  // [samples, K]
};

template <class T>
class Forward : Mixture<T> {
  using Base = Mixture<T>;
  using Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Tile;

 public:
  PETX_DEVICE Forward(const ExpertMixtureParams& params, const Work<T>& work, int64_t block, T* out)
      : Base(params, block), work_(work), out_(out) {}

  PETX_DEVICE void run(Stage stage) {
    if (stage != Stage::rest) down(0);
    if (stage == Stage::tokens) return;
    sync_block();  // other columns come from other threads
    if (p.gate == ExpertGate::token) softmax_of_row();
    if (p.gated()) hidden();
    for (int64_t begin = 0; begin < p.d; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(work_.hidden, p.stacked),
                     this->weight_rows(p.up_weight, begin, p.d, p.stacked), p.stacked);
      this->each_column(begin, p.d,
                        [&](int64_t column, int c) { this->put_result(out_, token, column, Tile::result(0, row, c)); });
    }
  }

  // Logits alone, for the hybrid path: in C, since rounded ones would let other experts through.
  PETX_DEVICE void logits() { down(p.stacked); }

  // Between the host library's products: u without bias is there, and the logits.
  PETX_DEVICE void between() {
    if (p.gate == ExpertGate::token) softmax_of_row();
    if (p.down_bias)
      this->each_value(p.stacked, [&](int64_t, int64_t column, int64_t i) {
        put<T>(p.u, i, at<T>(p.u, i) + at<T>(p.down_bias, column));
      });
    hidden();  // each thread at the values that it has just made
  }

  PETX_DEVICE void finish() {
    this->each_value(
        p.d, [&](int64_t t, int64_t column, int64_t i) { this->put_result(out_, t, column, load(read(out_ + i))); });
  }

 private:
  // u of the block's rows and their logits, from column `from` on of both.
  PETX_DEVICE void down(int64_t from) {
    int64_t width = p.stacked + (p.gated() ? p.experts : 0);
    const T *weight = static_cast<const T*>(p.down_weight), *gate = static_cast<const T*>(p.gate_weight);
    for (int64_t begin = from; begin < width; begin += Tile::kN) {
      int64_t head = p.stacked - begin;  // rows of A that are left; of W_g the tile has those that follow
      JoinedRows<T> columns{weight + begin * p.d, gate + (head < 0 ? -head * p.d : 0), p.d, head < 0 ? 0 : head,
                            width - begin};
      Tile::multiply(0, this->block_rows(p.x, p.d), columns, p.d);
      this->each_column(begin, width, [&](int64_t column, int c) {
        C product = Tile::result(0, row, c);
        if (column >= p.stacked) {
          write(work_.logits + token * p.experts + column - p.stacked, product);
          return;
        }
        int64_t i = token * p.stacked + column;
        put<T>(p.u, i, product + at_or_zero<T>(p.down_bias, column));
        // Of u as the backward will find it. Other gates are not there yet.
        if (!p.gated()) put<T>(work_.hidden, i, Base::hidden(token, column, at<T>(p.u, i)));
      });
    }
  }

  PETX_DEVICE void softmax_of_row() {
    if (this->valid()) {
      auto logit = [&](int64_t k) {
        return read(work_.logits + token * p.experts + k) + at_or_zero<T>(p.gate_bias, k);
      };
      softmax(logit, p.experts, p.top_k, static_cast<C*>(p.gates) + token * p.experts, sharer, Base::kSharers);
    }
    sync_block();
  }

  PETX_DEVICE void hidden() {
    this->each_value(p.stacked, [&](int64_t t, int64_t column, int64_t i) {
      put<T>(work_.hidden, i, Base::hidden(t, column, at<T>(p.u, i)));
    });
    sync_block();
  }

  const Work<T>& work_;
  T* out_;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_forward(ExpertMixtureParams p, Work<T> work, T* out, Stage stage) {
  Forward<T>(p, work, block_x(), out).run(stage);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_logits(ExpertMixtureParams p, Work<T> work) {
  Forward<T>(p, work, block_x(), nullptr).logits();
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_between(ExpertMixtureParams p, Work<T> work) {
  Forward<T>(p, work, block_x(), nullptr).between();
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_finish(ExpertMixtureParams p, Work<T> work, T* out) {
  Forward<T>(p, work, block_x(), out).finish();
}

// A sample's gates from its tokens' logits. An empty mean is zero.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gates(ExpertMixtureParams p, Work<T> work) {
  using C = Compute<T>;
  int64_t sample = block_x();
  C* mean = work.mean_logits + sample * p.experts;
  auto counts = [&](int64_t t) { return !p.pool || read(p.pool + t); };
  auto value = [&](int64_t t, int64_t k) { return read(work.logits + t * p.experts + k); };
  SampleSums::run<C>(sample, p.length, p.experts, counts, counts, value, [&](int64_t k, C sum, C size) {
    write(mean + k, sum / (size > C(1) ? size : C(1)) + at_or_zero<T>(p.gate_bias, k));
  });
  if (thread_index() >= p.experts) return;
  auto logit = [&](int64_t k) { return read(mean + k); };
  softmax(logit, p.experts, p.top_k, static_cast<C*>(p.gates) + sample * p.experts, thread_index(),
          SampleSums::kThreads);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class ForwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const ExpertMixtureParams& params, void* out, const Products& products)
      : p(params), plan_(p), out_(static_cast<T*>(out)), products_(products) {
    work_.hidden = workspace.take<T>(p.rows * p.stacked);
    work_.logits = workspace.take<C>(p.gated() ? p.rows * p.experts : 0);
    if (p.gate == ExpertGate::sample) work_.mean_logits = workspace.take<C>(p.samples() * p.experts);
  }

  int run(void* stream) const { return plan_.hybrid ? hybrid(stream) : fused(stream); }

 private:
  int fused(void* stream) const {
    auto run = [&](Stage stage) {
      return launch(mixture_forward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(1), stream, p, work_, out_,
                    stage);
    };
    if (p.gate != ExpertGate::sample) return run(Stage::whole);
    if (int error = run(Stage::tokens)) return error;
    if (int error = gates(stream)) return error;
    return run(Stage::rest);
  }

  int hybrid(void* stream) const {
    auto multiply = [&](const void* a, int64_t rows, int64_t depth, const void* b, int64_t columns, void* to) {
      return products_.multiply(products_.context, p.dtype, host::matrix(static_cast<const T*>(a), rows, depth),
                                host::matrix(static_cast<const T*>(b), columns, depth).transposed(),
                                host::matrix(static_cast<T*>(to), rows, columns));
    };
    auto rows = [&](auto* kernel, int bytes) {
      return launch(kernel, plan_.blocks, 1, Tile::kThreads, bytes, stream, p, work_);
    };
    if (int error = multiply(p.x, p.rows, p.d, p.down_weight, p.stacked, p.u)) return error;
    if (p.gated())
      if (int error = rows(mixture_logits<T>, Tile::shared_bytes(1))) return error;
    if (p.gate == ExpertGate::sample)
      if (int error = gates(stream)) return error;
    if (int error = rows(mixture_between<T>, 0)) return error;
    if (int error = multiply(work_.hidden, p.rows, p.stacked, p.up_weight, p.d, out_)) return error;
    return launch(mixture_finish<T>, plan_.blocks, 1, Tile::kThreads, 0, stream, p, work_, out_);
  }

  int gates(void* stream) const {
    return launch(sample_gates<T>, p.samples(), 1, SampleSums::kThreads, SampleSums::shared_bytes<C>(), stream, p,
                  work_);
  }

  const ExpertMixtureParams& p;
  ExpertMixturePlan plan_;
  Work<T> work_ = {};
  T* out_;
  const Products& products_;
};

}  // namespace

int64_t expert_mixture_fwd_workspace(const ExpertMixtureParams& p) {
  return p.empty() ? 0 : count_workspace<ForwardCall>(p.dtype, p, nullptr, Products{});
}

int expert_mixture_fwd(const ExpertMixtureParams& p, void* out, void* workspace, const Products& products,
                       void* stream) {
  return p.empty() ? 0 : run_call<ForwardCall>(p.dtype, workspace, stream, p, out, products);
}

}  // namespace petx::cuda
