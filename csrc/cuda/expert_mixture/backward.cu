// Backward of the expert mixture on the GPU.
//
//   q = dout B;  dgate_k = beta (q . act(u) over expert k + dout . b_k);  du = beta g q act'(u)
//   dx = alpha dout + du A + dlogits W_g
//
// Launches: one over blocks of 64 rows for all that a row needs alone (three for a sample's gate, whose gradient is a
// sum over its tokens: rows, samples, rows), then the sums over tokens (token_sums.cuh). Bytes: dout, x and dx once
// from memory, du and the hidden values written once and read twice more from the cache, u once. The hidden values are
// made anew from u, as in the forward, whose tiling and whose choice of products this has. In the hybrid path the host
// library makes q, du A and the two wide weights' gradients, each in the storage type as torch's own are; all that is
// K wide stays here.

#include "cuda/common/token_sums.cuh"
#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {
namespace {

enum class Stage { whole, tokens, rest };

template <class T>
struct Work {
  using C = Compute<T>;
  T* du;           // [N, K r] first q
  T* hidden;       // [N, K r] beta g act(u)
  T* scaled_gate;  // [N, K] beta g, zeros out of scope: up_bias' gradient is its product with dout
  C* dgates;       // [N, K]
  T* raw_dgates;   // [N, K] dout . b_k from the host library
  T* dlogits;      // [N, K]
  C* sample;       // [samples, K] gradients of samples' logits
  C* token;        // [samples, K] the part of each token that counts
  T* down_weight;  // [K r, d] and
  T* up_weight;    // [d, K r] from the host library
};

template <class T>
class Backward : Mixture<T> {
  using Base = Mixture<T>;
  using Base::p, Base::row, Base::sharer, Base::token;
  using typename Base::C;
  using typename Base::Tile;

 public:
  PETX_DEVICE Backward(const ExpertMixtureParams& params, const ExpertMixtureGrads& grads, const Work<T>& work,
                       int64_t block)
      : Base(params, block), g(grads), work_(work) {}

  PETX_DEVICE void run(Stage stage) {
    if (stage != Stage::rest) {
      if (work_.du) products();
      sync_block();  // other columns come from other threads
      between();
      sync_block();
    }
    if (stage == Stage::tokens) return;
    if (stage == Stage::rest) spread_sample();  // read after the product, which ends with a barrier
    if (!g.dx) return;
    for (int64_t begin = 0; begin < p.d; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(work_.du, p.stacked), this->weight_columns(p.down_weight, begin, p.d, p.d),
                     p.stacked);
      this->each_column(begin, p.d, [&](int64_t column, int c) {
        this->put_dx(g.dx, g.dout, work_.dlogits, token, column, Tile::result(0, row, c));
      });
    }
  }

  // Between the products: q becomes du, the hidden values are made, and the gates' gradients; of a token's gate the
  // logits' too. A row's four threads go through an expert's values side by side; then every fourth expert is one's.
  PETX_DEVICE void between() const {
    const int64_t rank = p.rank(), first_gate = token * p.experts;
    const bool mixed = this->valid() && this->in_scope(token);
    C mean = 0;
    for (int64_t k = 0; k < p.experts; ++k) {
      C gate = mixed ? this->gate(token, k) : C(0), scale = C(p.beta) * gate, along = 0;
      int64_t begin = token * p.stacked + k * rank, end = this->valid() ? begin + rank : begin;
      for (int64_t i = begin + sharer; i < end; i += Base::kSharers) {
        C u = at<T>(p.u, i), a = activate(p.activation, u);
        if (work_.hidden) put<T>(work_.hidden, i, mixed ? scale * a : C(0));
        if (!work_.du) continue;
        C q = load(read(work_.du + i));
        along += q * a;
        put<T>(work_.du, i, mixed ? scale * q * activation_slope(p.activation, u) : C(0));
      }
      along = this->row_sum(along);
      if (!this->valid() || k % Base::kSharers != sharer) continue;
      if (work_.scaled_gate) put<T>(work_.scaled_gate, first_gate + k, scale);
      if (!work_.dgates) continue;
      C dgate = mixed ? C(p.beta) * (along + dout_along_bias(first_gate + k)) : C(0);
      write(work_.dgates + first_gate + k, dgate);
      mean += gate * dgate;
    }
    if (!work_.dgates || p.gate != ExpertGate::token) return;
    mean = this->row_sum(mean);
    for (int64_t k = sharer; this->valid() && k < p.experts; k += Base::kSharers)
      put<T>(work_.dlogits, first_gate + k,
             mixed ? this->gate(token, k) * (read(work_.dgates + first_gate + k) - mean) : C(0));
  }

  PETX_DEVICE void finish() {
    if (p.gate == ExpertGate::sample) {
      spread_sample();
      sync_block();
    }
    if (!g.dx) return;
    this->each_value(p.d, [&](int64_t t, int64_t column, int64_t i) {
      this->put_dx(g.dx, g.dout, work_.dlogits, t, column, at<T>(g.dx, i));
    });
  }

 private:
  // q of the block's rows, and where gates learn, dout . b_k.
  PETX_DEVICE void products() const {
    for (int64_t begin = 0; begin < p.stacked; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(g.dout, p.d), this->weight_columns(p.up_weight, begin, p.stacked, p.stacked),
                     p.d);
      this->each_column(begin, p.stacked, [&](int64_t column, int c) {
        put<T>(work_.du, token * p.stacked + column, Tile::result(0, row, c));
      });
    }
    for (int64_t begin = 0; p.gated() && p.up_bias && begin < p.experts; begin += Tile::kN) {
      Tile::multiply(0, this->block_rows(g.dout, p.d), this->weight_rows(p.up_bias, begin, p.experts, p.d), p.d);
      this->each_column(begin, p.experts, [&](int64_t k, int c) {
        write(work_.dgates + token * p.experts + k, Tile::result(0, row, c));
      });
    }
  }

  PETX_DEVICE C dout_along_bias(int64_t i) const {
    if (work_.raw_dgates) return load(read(work_.raw_dgates + i));
    return p.up_bias ? read(work_.dgates + i) : C(0);
  }

  // Each token's part of its sample's logits' gradient.
  PETX_DEVICE void spread_sample() const {
    this->each_value(p.experts, [&](int64_t t, int64_t k, int64_t i) {
      bool counts = !p.pool || read(p.pool + t);
      put<T>(work_.dlogits, i, counts ? read(work_.token + p.gate_row(t) * p.experts + k) : C(0));
    });
  }

  const ExpertMixtureGrads& g;
  const Work<T>& work_;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_backward(ExpertMixtureParams p, ExpertMixtureGrads g, Work<T> work, Stage stage) {
  Backward<T>(p, g, work, block_x()).run(stage);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_between_bwd(ExpertMixtureParams p, ExpertMixtureGrads g, Work<T> work) {
  Backward<T>(p, g, work, block_x()).between();
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_finish_bwd(ExpertMixtureParams p, ExpertMixtureGrads g, Work<T> work) {
  Backward<T>(p, g, work, block_x()).finish();
}

// The gradients of a sample's logits from those of its tokens' gates.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gate_grads(ExpertMixtureParams p, Work<T> work) {
  using C = Compute<T>;
  int64_t sample = block_x(), experts = p.experts;
  C *whole = work.sample + sample * experts, *part = work.token + sample * experts;
  auto all = [](int64_t) { return true; };
  auto counts = [&](int64_t t) { return !p.pool || read(p.pool + t); };
  auto value = [&](int64_t t, int64_t k) { return read(work.dgates + t * experts + k); };
  SampleSums::run<C>(sample, p.length, experts, all, counts, value, [&](int64_t k, C sum, C size) {
    write(part + k, sum);
    write(whole + k, size > C(1) ? size : C(1));
  });
  const C* gates = static_cast<const C*>(p.gates) + sample * experts;
  C mean = 0;
  for (int64_t k = 0; k < experts; ++k) mean += read(gates + k) * read(part + k);
  sync_block();
  for (int64_t k = thread_index(); k < experts; k += SampleSums::kThreads) {
    C dlogit = read(gates + k) * (read(part + k) - mean), size = read(whole + k);
    write(whole + k, dlogit);
    write(part + k, dlogit / size);
  }
}

// What the host library left in the storage type becomes a gradient in the compute type.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    widen(const T* from, Compute<T>* to, int64_t count) {
  int64_t i = block_x() * kSumLaunch.threads + thread_index();
  if (i < count) write(to + i, load(read(from + i)));
}

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  BackwardCall(Workspace& workspace, const ExpertMixtureParams& params, const ExpertMixtureGrads& grads,
               const Products& products)
      : p(params), g(grads), plan_(p), products_(products), sums_(p.rows) {
    const bool gates = p.gated() && g.hidden(), sample = gates && p.gate == ExpertGate::sample;
    const int64_t narrow = p.rows * p.experts, weight = p.stacked * p.d;
    work_.du = workspace.take<T>(g.hidden() ? p.rows * p.stacked : 0);
    work_.hidden = workspace.take<T>(g.up_weight ? p.rows * p.stacked : 0);
    work_.scaled_gate = workspace.take<T>(g.up_bias ? narrow : 0);
    work_.dgates = workspace.take<C>(gates ? narrow : 0);
    work_.raw_dgates = workspace.take<T>(plan_.hybrid && gates && p.up_bias ? narrow : 0);
    work_.dlogits = workspace.take<T>(gates ? narrow : 0);
    work_.sample = workspace.take<C>(sample ? p.samples() * p.experts : 0);
    work_.token = workspace.take<C>(sample ? p.samples() * p.experts : 0);
    const bool narrowed = plan_.hybrid && sizeof(T) < sizeof(C);
    work_.down_weight = workspace.take<T>(narrowed && g.down_weight ? weight : 0);
    work_.up_weight = workspace.take<T>(narrowed && g.up_weight ? weight : 0);

    if (!plan_.hybrid) {
      sums_.product(g.up_weight, g.dout, work_.hidden, p.d, p.stacked);
      sums_.product(g.down_weight, work_.du, p.x, p.stacked, p.d);
    }
    sums_.product(g.up_bias, work_.scaled_gate, g.dout, p.experts, p.d);
    sums_.product(g.gate_weight, work_.dlogits, p.x, p.experts, p.d);
    sums_.column(g.down_bias, work_.du, nullptr, p.stacked);
    if (p.gate == ExpertGate::token) sums_.column(g.gate_bias, work_.dlogits, nullptr, p.experts);
    if (sample) sums_.finish(g.gate_bias, work_.sample, p.samples(), p.experts, p.experts);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    if (int error = plan_.hybrid ? hybrid(stream) : fused(stream)) return error;
    return sums_.run(stream);
  }

 private:
  int fused(void* stream) const {
    auto rows = [&](Stage stage) {
      return launch(mixture_backward<T>, plan_.blocks, 1, Tile::kThreads, Tile::shared_bytes(1), stream, p, g, work_,
                    stage);
    };
    if (!work_.sample) return work_.du || work_.hidden || work_.scaled_gate ? rows(Stage::whole) : 0;
    if (int error = rows(Stage::tokens)) return error;
    if (int error = sample_grads(stream)) return error;
    return rows(Stage::rest);
  }

  int hybrid(void* stream) const {
    auto multiply = [&](const host::Matrix& a, const host::Matrix& b, T* to) {
      return products_.multiply(products_.context, p.dtype, a, b, host::matrix(to, a.rows, b.cols));
    };
    auto rows = [&](auto* kernel) { return launch(kernel, plan_.blocks, 1, Tile::kThreads, 0, stream, p, g, work_); };
    const host::Matrix dout = matrix(g.dout, p.rows, p.d), x = matrix(p.x, p.rows, p.d);
    if (work_.du)
      if (int error = multiply(dout, matrix(p.up_weight, p.d, p.stacked), work_.du)) return error;
    if (work_.raw_dgates)
      if (int error = multiply(dout, matrix(p.up_bias, p.experts, p.d).transposed(), work_.raw_dgates)) return error;
    if (work_.du || work_.hidden || work_.scaled_gate)
      if (int error = rows(mixture_between_bwd<T>)) return error;
    if (work_.sample)
      if (int error = sample_grads(stream)) return error;
    const host::Matrix du = matrix(work_.du, p.rows, p.stacked);
    if (g.dx)
      if (int error = multiply(du, matrix(p.down_weight, p.stacked, p.d), static_cast<T*>(g.dx))) return error;
    if (g.dx || work_.sample)
      if (int error = rows(mixture_finish_bwd<T>)) return error;
    auto weight_grad = [&](void* to, T* narrow, const host::Matrix& a, const host::Matrix& b) {
      if (!to) return 0;
      if (int error = multiply(a.transposed(), b, narrow ? narrow : static_cast<T*>(to))) return error;
      int64_t count = a.cols * b.cols;
      return narrow ? launch(widen<T>, sum_blocks(count), 1, kSumLaunch.threads, 0, stream, narrow, static_cast<C*>(to),
                             count)
                    : 0;
    };
    if (int error = weight_grad(g.up_weight, work_.up_weight, dout, matrix(work_.hidden, p.rows, p.stacked)))
      return error;
    return weight_grad(g.down_weight, work_.down_weight, du, x);
  }

  static host::Matrix matrix(const void* data, int64_t rows, int64_t columns) {
    return host::matrix(static_cast<const T*>(data), rows, columns);
  }
  int sample_grads(void* stream) const {
    return launch(sample_gate_grads<T>, p.samples(), 1, SampleSums::kThreads, SampleSums::shared_bytes<C>(), stream, p,
                  work_);
  }

  const ExpertMixtureParams& p;
  const ExpertMixtureGrads& g;
  ExpertMixturePlan plan_;
  const Products& products_;
  Work<T> work_ = {};
  TokenSums<T, 4, 6, 12> sums_;
};

}  // namespace

int64_t expert_mixture_bwd_workspace(const ExpertMixtureParams& p, const ExpertMixtureGrads& g) {
  return p.empty() ? 0 : count_workspace<BackwardCall>(p.dtype, p, g, Products{});
}

// With no rows, or rows of no width, the caller's gradients are zeros already.
int expert_mixture_bwd(const ExpertMixtureParams& p, const ExpertMixtureGrads& g, void* workspace,
                       const Products& products, void* stream) {
  return p.empty() ? 0 : run_call<BackwardCall>(p.dtype, workspace, stream, p, g, products);
}

}  // namespace petx::cuda
