// Forward of the expert mixture on the GPU.
//
//   u = x A^T + a;  g = uniform or softmax(x W_g^T + c);  y = alpha x + beta ((g act(u)) B^T + sum_k g_k b_k)
//
// Fused. Launches: the down projection, a pass over the rows where gates are not equal, the up projection. Bytes: x
// once from memory (a second time from the cache for alpha x), y once, u and the gates once for the backward, the
// scaled hidden values written and read back through the second-level cache; the weights, 2 K r d values at most, come
// from the cache once per block. Tiling: a block owns 64 rows and a share of the columns, as many shares as fill the
// machine; that is what a launch between the two projections is for. Equal gates let the down projection make the
// hidden values itself. The gate's K columns follow the K r of the down projection in the same tiles of 64, and cost a
// pass over x only where they do not fit beside the last of these. A sample's gate, the softmax of its tokens' mean
// logits, takes a launch more.
//
// Hybrid. The wide products are torch's (cuBLAS, same stream); what lies between is one pass over u and, after the last
// product, one over x and y. The gate's K columns are a tile here and a pass over x.

#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {
namespace {

template <class T>
struct Work {
  using C = Compute<T>;
  T* hidden;       // [N, K r] beta g act(u)
  C* logits;       // [N, K] without bias
  C* mean_logits;  // [samples, K]
};

template <class T, class TileType = TileOf<T>>
class Forward : Mixture<T, TileType> {
  using Base = Mixture<T, TileType>;
  using Base::p, Base::token, Base::mixed, Base::kRun;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  // Behind the products' shared memory: a tile's mean of the up biases, in one of two places, so that nobody still
  // reads the one that is written.
  static constexpr int kProductBytes = Tile::shared_bytes(1), kBiasBytes = 2 * Tile::kN * sizeof(C);

  PETX_DEVICE Forward(const MixtureCall<C>& call, const Work<T>& work, T* out, int biases_at)
      : Base(call, block_x()), work_(work), out_(out), biases_(biases_at) {}

  // u of the block's rows and their logits, from column `from` on of both; with equal gates the hidden values.
  PETX_DEVICE void down(const ColumnShares& shares, int64_t from) const {
    const int64_t width = p.stacked + (p.gated() ? p.experts : 0);
    const T *weight = static_cast<const T*>(p.down_weight), *gate = static_cast<const T*>(p.gate_weight);
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = from + tile * Tile::kN;
      int64_t head = p.stacked - begin;  // rows of A that are left; of W_g the tile has those that follow
      JoinedRows<T> columns{weight + begin * p.d, gate + (head < 0 ? -head * p.d : 0), p.d, head < 0 ? 0 : head,
                            width - begin};
      Tile::multiply(0, this->block_rows(p.x, p.d), columns, p.d);
      this->each_run(begin, width, [&](int64_t column, int c, int64_t left) {
        Run u = this->result(0, c);
        const int64_t own = p.stacked - column;  // values of the run that are u's; logits follow
        if (own < kRun && own < left) {
#pragma unroll
          for (int j = 0; j < kRun; ++j)
            if (j >= own && j < left) write(work_.logits + token * p.experts + (j - own), u.value[j]);
        }
        if (own <= 0) return;
        const int64_t i = token * p.stacked + column;
        if (p.down_bias) Base::add_to(u, Base::load_run(p.down_bias, column, own));
        Base::store_run(p.u, i, own, u);
        if (p.gated()) return;
        // Of u as the backward will find it.
        Run hidden = scaled_activation(p.activation, Base::rounded(u), p.beta * p.equal_gate);
        Base::store_run(work_.hidden, i, own, mixed ? hidden : Run{});
      });
    });
  }

  PETX_DEVICE void up(const ColumnShares& shares) const {
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = tile * Tile::kN;
      mean_biases(tile);
      Tile::multiply(0, this->block_rows(work_.hidden, p.stacked),
                     Base::weight_rows(p.up_weight, begin, p.d, p.stacked), p.stacked);
      this->each_run(begin, p.d, [&](int64_t column, int c, int64_t left) {
        put_result(tile, column, c, left, this->result(0, c));
      });
    });
  }

  // After torch's last product, which lies in out.
  PETX_DEVICE void finish(const ColumnShares& shares) const {
    Base::each_tile(shares, [&](int64_t tile) {
      mean_biases(tile);
      sync_block();
      this->each_run(tile * Tile::kN, p.d, [&](int64_t column, int c, int64_t left) {
        put_result(tile, column, c, left, Base::load_run(out_, token * p.d + column, left));
      });
    });
  }

 private:
  // beta sum_k b_k / K of a tile's columns, zeros past the last.
  PETX_DEVICE void mean_biases(int64_t tile) const {
    const int64_t column = tile * Tile::kN + thread_index();
    if (p.gated() || !p.up_bias || thread_index() >= Tile::kN) return;
    C sum = 0;
    for (int64_t k = 0; column < p.d && k < p.experts; ++k) sum += at<T>(p.up_bias, k * p.d + column);
    biases_.set(place(tile, thread_index()), p.beta * p.equal_gate * sum);
  }
  PETX_DEVICE static int place(int64_t tile, int c) { return static_cast<int>(tile % 2) * Tile::kN + c; }

  // y of a run from its product.
  PETX_DEVICE void put_result(int64_t tile, int64_t column, int c, int64_t left, Run product) const {
    const int64_t i = token * p.d + column;
    Run y = Base::load_run(p.x, i, left);
    if (mixed) {
      if (p.up_bias && p.gated())
        Base::add_vectors(product, p.up_bias, column, left, [&](int64_t k) { return p.beta * read(this->gates + k); });
      if (p.up_bias && !p.gated()) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) product.value[j] += biases_.get(place(tile, c + j));
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) y.value[j] = p.alpha * y.value[j] + product.value[j];
    }
    Base::store_run(out_, i, left, y);
  }

  const Work<T>& work_;
  T* out_;
  Shared<C> biases_;
};

// Between the projections: a token's gates, u with its bias if cuBLAS has left it without, and what goes
// into the up product, beta g act(u) or, for tokens out of scope, nothing.
template <class T>
class Between : MixtureRow<T> {
  using Base = MixtureRow<T>;
  using Base::p, Base::lane, Base::token, Base::mixed;
  using typename Base::C;
  using typename Base::Run;

 public:
  PETX_DEVICE Between(const MixtureCall<C>& call, const Work<T>& work) : Base(call), work_(work) {}

  PETX_DEVICE void run(bool add_bias) const {
    if (p.gate == ExpertGate::token) {
      auto logit = [&](int64_t k) {
        return read(work_.logits + token * p.experts + k) + at_or_zero<T>(p.gate_bias, k);
      };
      if (this->valid) softmax(logit, p.experts, p.top_k, this->gates, lane, Base::kLanes);
      sync_block();  // other gates come from other lanes
    }
    for (int64_t k = 0; k < p.experts; ++k) {
      const C scale = mixed ? p.beta * this->gate(k) : C(0);
      this->each_run(k, [&](int64_t i, int64_t column, int64_t left) {
        Run u = Base::load_run(p.u, i, left);
        if (add_bias) {
          RowBlock<T>::add_to(u, Base::load_run(p.down_bias, column, left));
          Base::store_run(p.u, i, left, u);
          u = RowBlock<T>::rounded(u);
        }
        Run hidden = scaled_activation(p.activation, u, scale);
        Base::store_run(work_.hidden, i, left, mixed ? hidden : Run{});
      });
    }
  }

 private:
  const Work<T>& work_;
};

// Logits alone, for the hybrid path, begin at `from`: in C, since rounded ones would let other experts through.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_down(MixtureCall<Compute<T>> p, Work<T> work, ColumnShares shares, int64_t from) {
  Forward<T>(p, work, nullptr, 0).down(shares, from);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between(MixtureCall<Compute<T>> p, Work<T> work, bool add_bias) {
  Between<T>(p, work).run(add_bias);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_up(MixtureCall<Compute<T>> p, Work<T> work, T* out, ColumnShares shares) {
  Forward<T>(p, work, out, Forward<T>::kProductBytes).up(shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_up(MixtureCall<Compute<T>> p, Work<T> work, T* out, ColumnShares shares) {
  using Wide = Forward<T, TurnedTile<T>>;
  Wide(p, work, out, Wide::kProductBytes).up(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_finish(MixtureCall<Compute<T>> p, Work<T> work, T* out, ColumnShares shares) {
  Forward<T>(p, work, out, 0).finish(shares);
}

// A sample's gates from its tokens' logits. An empty mean is zero.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gates(MixtureCall<Compute<T>> p, Work<T> work) {
  using C = Compute<T>;
  int64_t sample = block_x();
  C* mean = work.mean_logits + sample * p.experts;
  auto counts = [&](int64_t t) { return p.in_pool(t); };
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
      : p(params), plan_(params), out_(static_cast<T*>(out)), products_(products) {
    work_.hidden = workspace.take<T>(p.rows * p.stacked);
    work_.logits = workspace.take<C>(p.gated() ? p.rows * p.experts : 0);
    if (p.gate == ExpertGate::sample) work_.mean_logits = workspace.take<C>(p.samples() * p.experts);
  }

  int run(void* stream) const {
    const bool library = plan_.hybrid;
    if (int error = library ? multiply(p.x, p.d, p.down_weight, p.stacked, p.u) : 0) return error;
    if (int error = library && !p.gated() ? 0 : down(library ? p.stacked : 0, stream)) return error;
    if (int error = p.gate == ExpertGate::sample ? gates(stream) : 0) return error;
    if (int error = library || p.gated() ? between(library && p.down_bias, stream) : 0) return error;
    if (int error = library ? multiply(work_.hidden, p.stacked, p.up_weight, p.d, out_) : 0) return error;
    auto start = [&](auto* kernel, const ColumnShares& shares, int shared_bytes) {
      return launch(kernel, plan_.blocks, shares.count, Tile::kThreads, shared_bytes, stream, p, work_, out_, shares);
    };
    if (library) return start(mixture_finish<T>, plan_.shares, Forward<T>::kBiasBytes);
    if constexpr (sizeof(T) == 2) {
      using Wide = Forward<T, TurnedTile<T>>;
      if (plan_.up.wide()) return start(mixture_wide_up<T>, plan_.up, Wide::kProductBytes + Wide::kBiasBytes);
    }
    return start(mixture_up<T>, plan_.up, Forward<T>::kProductBytes + Forward<T>::kBiasBytes);
  }

 private:
  // By torch (cuBLAS): to [N, columns] = a [N, depth] b^T.
  int multiply(const void* a, int64_t depth, const void* b, int64_t columns, void* to) const {
    return products_.multiply(products_.context, p.dtype, host::matrix(static_cast<const T*>(a), p.rows, depth),
                              host::matrix(static_cast<const T*>(b), columns, depth).transposed(),
                              host::matrix(static_cast<T*>(to), p.rows, columns));
  }
  int down(int64_t from, void* stream) const {
    const int64_t width = p.stacked + (p.gated() ? p.experts : 0);
    const ColumnShares shares(plan_.blocks, tiles_along(width - from));
    return launch(mixture_down<T>, plan_.blocks, shares.count, Tile::kThreads, Tile::shared_bytes(1), stream, p, work_,
                  shares, from);
  }
  int gates(void* stream) const {
    return launch(sample_gates<T>, p.samples(), 1, SampleSums::kThreads, SampleSums::shared_bytes<C>(), stream, p,
                  work_);
  }
  int between(bool add_bias, void* stream) const {
    return launch(mixture_between<T>, MixtureRow<T>::blocks(p.rows), 1, kRowLaunch.threads, 0, stream, p, work_,
                  add_bias);
  }

  const MixtureCall<C> p;
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
