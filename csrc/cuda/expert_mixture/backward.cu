// Backward of the expert mixture on the GPU.
//
//   q = dout B;  dgate_k = beta (q . act(u) over expert k + dout . b_k);  du = beta g q act'(u)
//   dx = alpha dout + du A + dlogits W_g
//
// Launches: q, a pass over the rows, for a sample's gate its sums over the sample's tokens, dx, then the sums over
// tokens (token_sums.cuh). Bytes: dout, x and dx once from memory, du and the hidden values written once and read twice
// more from the cache, u once. The hidden values are recomputed from u, as in the forward, whose tiling and choice of
// products this has. In the hybrid path torch (cuBLAS) makes q, du A and the two wide weights' gradients, each in the
// storage type as its own are; all that is K wide stays here.

#include "cuda/common/token_sums.cuh"
#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {
namespace {

template <class T>
struct Work {
  using C = Compute<T>;
  T* du;           // [N, K r] first q
  T* hidden;       // [N, K r] beta g act(u)
  T* scaled_gate;  // [N, K] beta g, zeros out of scope: up_bias' gradient is its product with dout
  C* equal_gate;   // [N] the same where all gates are equal: then the gradient of each bias is one sum
  C* dgates;       // [N, K]
  T* raw_dgates;   // [N, K] dout . b_k by cuBLAS
  T* dlogits;      // [N, K]
  C* sample;       // [samples, K] gradients of samples' logits
  C* token;        // [samples, K] the part of each token that counts
  T* down_weight;  // [K r, d] and
  T* up_weight;    // [d, K r] by cuBLAS
};

// The products of 64 rows.
template <class T, class TileType = TileOf<T>>
class Backward : Mixture<T, TileType> {
  using Base = Mixture<T, TileType>;
  using Base::p, Base::token, Base::mixed, Base::kRun;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE Backward(const MixtureCall<C>& call, const ExpertMixtureGrads& grads, const Work<T>& work)
      : Base(call, block_x()), g(grads), work_(work) {}

  // q, and behind its tiles, where gates learn, dout . b_k.
  PETX_DEVICE void products(const ColumnShares& shares, int64_t q_tiles) const {
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = (tile < q_tiles ? tile : tile - q_tiles) * Tile::kN;
      if (tile < q_tiles) {
        Tile::multiply(0, this->block_rows(g.dout, p.d), Base::weight_columns(p.up_weight, begin, p.stacked, p.stacked),
                       p.d);
        this->each_run(begin, p.stacked, [&](int64_t column, int c, int64_t left) {
          Base::store_run(work_.du, token * p.stacked + column, left, this->result(0, c));
        });
        return;
      }
      Tile::multiply(0, this->block_rows(g.dout, p.d), Base::weight_rows(p.up_bias, begin, p.experts, p.d), p.d);
      this->each_run(begin, p.experts, [&](int64_t k, int c, int64_t left) {
#pragma unroll
        for (int j = 0; j < kRun; ++j)
          if (j < left) write(work_.dgates + token * p.experts + k + j, Tile::result(0, this->row, c + j));
      });
    });
  }

  PETX_DEVICE void dx(const ColumnShares& shares) const {
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = tile * Tile::kN;
      Tile::multiply(0, this->block_rows(work_.du, p.stacked), Base::weight_columns(p.down_weight, begin, p.d, p.d),
                     p.stacked);
      this->each_run(begin, p.d,
                     [&](int64_t column, int c, int64_t left) { put_dx(column, left, this->result(0, c)); });
    });
  }

  // After torch's product, which lies in dx.
  PETX_DEVICE void finish(const ColumnShares& shares) const {
    Base::each_tile(shares, [&](int64_t tile) {
      this->each_run(tile * Tile::kN, p.d, [&](int64_t column, int, int64_t left) {
        put_dx(column, left, Base::load_run(g.dx, token * p.d + column, left));
      });
    });
  }

 private:
  // dx of a run from its product.
  PETX_DEVICE void put_dx(int64_t column, int64_t left, Run dx) const {
    const int64_t i = token * p.d + column;
    const Run dout = Base::load_run(g.dout, i, left);
    const C by = mixed ? p.alpha : C(1);
#pragma unroll
    for (int j = 0; j < kRun; ++j) dx.value[j] += by * dout.value[j];
    if (p.gated()) {
      const T* dlogits = work_.dlogits + token * p.experts;
      Base::add_vectors(dx, p.gate_weight, column, left, [&](int64_t k) { return load(read(dlogits + k)); });
    }
    Base::store_run(g.dx, i, left, dx);
  }

  const ExpertMixtureGrads& g;
  const Work<T>& work_;
};

// Between the products: q becomes du, the hidden values are made, and the gates' gradients; of a token's gate the
// logits' too. A row's lanes go through an expert's values side by side; then every eighth expert is one's.
template <class T>
class Between : MixtureRow<T> {
  using Base = MixtureRow<T>;
  using Base::p, Base::lane, Base::token, Base::mixed, Base::valid, Base::kRun, Base::kLanes;
  using typename Base::C;
  using typename Base::Run;

 public:
  PETX_DEVICE Between(const MixtureCall<C>& call, const Work<T>& work) : Base(call), work_(work) {}

  PETX_DEVICE void run() const {
    const int64_t first_gate = token * p.experts;
    if (work_.equal_gate && valid && !lane) write(work_.equal_gate + token, mixed ? p.beta * p.equal_gate : C(0));
    C mean = 0;
#pragma unroll 1
    for (int64_t k = 0; k < p.experts; ++k) {
      const C gate = mixed ? this->gate(k) : C(0), scale = p.beta * gate;
      C along = 0;
      if (work_.hidden || work_.du)
        this->each_run(k, [&](int64_t i, int64_t, int64_t left) {
          const Run u = Base::load_run(p.u, i, left);
          if (work_.hidden) {
            const Run hidden = scaled_activation(p.activation, u, scale);
            Base::store_run(work_.hidden, i, left, mixed ? hidden : Run{});
          }
          if (!work_.du) return;
          Run q = Base::load_run(work_.du, i, left);
          with_activation(p.activation, [&]<ExpertActivation kind>() {
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
              if (work_.dgates) along += q.value[j] * expert_activation<kind>(u.value[j]);
              if constexpr (kind == ExpertActivation::relu) {
                q.value[j] =
                    u.value[j] <= C(0) ? C(0) : scale * q.value[j];  // what it cuts off gets zero whatever comes
              } else {
                q.value[j] *= scale * expert_activation_slope<kind>(u.value[j]);
              }
            }
          });
          Base::store_run(work_.du, i, left, mixed ? q : Run{});
        });
      along = Base::row_sum(along);
      if (!valid || k % kLanes != lane) continue;
      if (work_.scaled_gate) put<T>(work_.scaled_gate, first_gate + k, scale);
      if (!work_.dgates) continue;
      C dgate = mixed ? p.beta * (along + dout_along_bias(first_gate + k)) : C(0);
      write(work_.dgates + first_gate + k, dgate);
      mean += gate * dgate;
    }
    if (!work_.dgates || p.gate != ExpertGate::token) return;
    mean = Base::row_sum(mean);
    for (int64_t k = lane; valid && k < p.experts; k += kLanes)
      put<T>(work_.dlogits, first_gate + k,
             mixed ? logit_grad(this->gate(k), read(work_.dgates + first_gate + k), mean) : C(0));
  }

 private:
  PETX_DEVICE C dout_along_bias(int64_t i) const {
    if (work_.raw_dgates) return load(read(work_.raw_dgates + i));
    return p.up_bias ? read(work_.dgates + i) : C(0);
  }

  const Work<T>& work_;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_products(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, Work<T> work, ColumnShares shares,
                     int64_t q_tiles) {
  Backward<T>(p, g, work).products(shares, q_tiles);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between_bwd(MixtureCall<Compute<T>> p, Work<T> work) {
  Between<T>(p, work).run();
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_dx(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, Work<T> work, ColumnShares shares) {
  Backward<T>(p, g, work).dx(shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_dx(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, Work<T> work, ColumnShares shares) {
  Backward<T, TurnedTile<T>>(p, g, work).dx(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_finish_bwd(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, Work<T> work, ColumnShares shares) {
  Backward<T>(p, g, work).finish(shares);
}

// The gradients of a sample's logits from those of its tokens' gates, and each token's part of them.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gate_grads(MixtureCall<Compute<T>> p, Work<T> work) {
  using C = Compute<T>;
  int64_t sample = block_x(), experts = p.experts;
  C *whole = work.sample + sample * experts, *part = work.token + sample * experts;
  auto all = [](int64_t) { return true; };
  auto counts = [&](int64_t t) { return p.in_pool(t); };
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
    C dlogit = logit_grad(read(gates + k), read(part + k), mean), size = read(whole + k);
    write(whole + k, dlogit);
    write(part + k, dlogit / size);
  }
  sync_block();
  // Neighbouring threads at neighbouring values of the sample's [length, K], without a division a value.
  const int64_t tokens = SampleSums::kThreads / experts, more = SampleSums::kThreads % experts;
  int64_t t = thread_index() / experts, k = thread_index() % experts;
  while (t < p.length) {
    const int64_t token = sample * p.length + t;
    put<T>(work.dlogits, token * experts + k, p.in_pool(token) ? read(part + k) : C(0));
    t += tokens, k += more;
    if (k >= experts) k -= experts, ++t;
  }
}

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  BackwardCall(Workspace& workspace, const ExpertMixtureParams& params, const ExpertMixtureGrads& grads,
               const Products& products)
      : p(params), g(grads), plan_(params), products_(products), sums_(p.rows) {
    const bool gates = p.gated() && g.hidden(), sample = gates && p.gate == ExpertGate::sample;
    const int64_t narrow = p.rows * p.experts, weight = p.stacked * p.d;
    work_.du = workspace.take<T>(g.hidden() ? p.rows * p.stacked : 0);
    work_.hidden = workspace.take<T>(g.up_weight ? p.rows * p.stacked : 0);
    work_.scaled_gate = workspace.take<T>(g.up_bias && p.gated() ? narrow : 0);
    work_.equal_gate = workspace.take<C>(g.up_bias && !p.gated() ? p.rows : 0);
    work_.dgates = workspace.take<C>(gates ? narrow : 0);
    work_.raw_dgates = workspace.take<T>(plan_.hybrid && gates && p.up_bias ? narrow : 0);
    work_.dlogits = workspace.take<T>(gates ? narrow : 0);
    work_.sample = workspace.take<C>(sample ? p.samples() * p.experts : 0);
    work_.token = workspace.take<C>(sample ? p.samples() * p.experts : 0);
    auto grad = [&](void* to, int leaf) { return GradTo<T>::of(to, g.narrow, leaf); };
    // By cuBLAS in T, and widened behind it where they are wanted in C.
    auto widened = [&](void* to, int leaf) {
      return plan_.hybrid && sizeof(T) < sizeof(C) && to && !grad(to, leaf).narrow;
    };
    const bool wide_down = widened(g.down_weight, 1), wide_up = widened(g.up_weight, 3);
    work_.down_weight = workspace.take<T>(wide_down ? weight : 0);
    work_.up_weight = workspace.take<T>(wide_up ? weight : 0);

    if (!plan_.hybrid) {
      sums_.product(grad(g.up_weight, 3), g.dout, work_.hidden, p.d, p.stacked);
      sums_.product(grad(g.down_weight, 1), work_.du, p.x, p.stacked, p.d);
    }
    if (wide_up) sums_.widen(grad(g.up_weight, 3), work_.up_weight, weight);
    if (wide_down) sums_.widen(grad(g.down_weight, 1), work_.down_weight, weight);
    if (!p.gated()) {
      sums_.column(grad(g.up_bias, 4), g.dout, work_.equal_gate, p.d, p.experts);
    } else {
      sums_.product(grad(g.up_bias, 4), work_.scaled_gate, g.dout, p.experts, p.d);
    }
    sums_.product(grad(g.gate_weight, 5), work_.dlogits, p.x, p.experts, p.d);
    sums_.column(grad(g.down_bias, 2), work_.du, nullptr, p.stacked);
    if (p.gate == ExpertGate::token) sums_.column(grad(g.gate_bias, 6), work_.dlogits, nullptr, p.experts);
    if (sample) sums_.finish(grad(g.gate_bias, 6), work_.sample, p.samples(), p.experts, p.experts);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    const bool between = work_.du || work_.hidden || work_.scaled_gate || work_.equal_gate;
    if (int error = work_.du ? (plan_.hybrid ? library_products() : products(stream)) : 0) return error;
    if (between)
      if (int error =
              launch(mixture_between_bwd<T>, MixtureRow<T>::blocks(p.rows), 1, kRowLaunch.threads, 0, stream, p, work_))
        return error;
    if (work_.sample)
      if (int error = launch(sample_gate_grads<T>, p.samples(), 1, SampleSums::kThreads, SampleSums::shared_bytes<C>(),
                             stream, p, work_))
        return error;
    if (int error = g.dx ? dx(stream) : 0) return error;
    if (int error = plan_.hybrid ? library_sums() : 0) return error;
    return sums_.run(stream);
  }

 private:
  int products(void* stream) const {
    const int64_t q_tiles = tiles_along(p.stacked), more = p.gated() && p.up_bias ? tiles_along(p.experts) : 0;
    const ColumnShares shares(plan_.blocks, q_tiles + more);
    return launch(mixture_products<T>, plan_.blocks, shares.count, Tile::kThreads, Tile::shared_bytes(1), stream, p, g,
                  work_, shares, q_tiles);
  }
  int dx(void* stream) const {
    auto rows = [&](auto* kernel, const ColumnShares& shares, int bytes) {
      return launch(kernel, plan_.blocks, shares.count, Tile::kThreads, bytes, stream, p, g, work_, shares);
    };
    if constexpr (sizeof(T) == 2)
      if (!plan_.hybrid && plan_.up.wide()) return rows(mixture_wide_dx<T>, plan_.up, TurnedTile<T>::shared_bytes(1));
    if (!plan_.hybrid) return rows(mixture_dx<T>, plan_.up, Tile::shared_bytes(1));
    if (int error =
            multiply(matrix(work_.du, p.rows, p.stacked), matrix(p.down_weight, p.stacked, p.d), static_cast<T*>(g.dx)))
      return error;
    return rows(mixture_finish_bwd<T>, plan_.shares, 0);
  }

  // Products by cuBLAS.
  int multiply(const host::Matrix& a, const host::Matrix& b, T* to) const {
    return products_.multiply(products_.context, p.dtype, a, b, host::matrix(to, a.rows, b.cols));
  }
  int library_products() const {
    const host::Matrix dout = matrix(g.dout, p.rows, p.d);
    if (int error = multiply(dout, matrix(p.up_weight, p.d, p.stacked), work_.du)) return error;
    return work_.raw_dgates ? multiply(dout, matrix(p.up_bias, p.experts, p.d).transposed(), work_.raw_dgates) : 0;
  }
  // In the storage type; what is wanted in the compute type goes through the workspace and the last launch.
  int library_sums() const {
    auto weight_grad = [&](void* to, T* narrow, const host::Matrix& a, const host::Matrix& b) {
      return to ? multiply(a.transposed(), b, narrow ? narrow : static_cast<T*>(to)) : 0;
    };
    if (int error = weight_grad(g.up_weight, work_.up_weight, matrix(g.dout, p.rows, p.d),
                                matrix(work_.hidden, p.rows, p.stacked)))
      return error;
    return weight_grad(g.down_weight, work_.down_weight, matrix(work_.du, p.rows, p.stacked), matrix(p.x, p.rows, p.d));
  }

  static host::Matrix matrix(const void* data, int64_t rows, int64_t columns) {
    return host::matrix(static_cast<const T*>(data), rows, columns);
  }

  const MixtureCall<C> p;
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
