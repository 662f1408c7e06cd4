// Forward of the expert mixture on the GPU.
//
//   u = x A^T + a;  g = uniform or softmax(x W_g^T + c);  y = alpha x + beta ((g act(u)) B^T + sum_k g_k b_k)
//
// Fused. Launches: the down projection, a pass over the rows where gates are not equal, the up projection. Bytes: x
// once from memory (a second time from the cache for alpha x), y once, u and the gates once for the backward, the
// scaled hidden values written and read back through the second-level cache; the weights, 2 K r d values at most, come
// from the cache once per block. Tiling: a block owns 64 rows and a share of the columns, as many shares as fill the
// machine; that is what a launch between the two projections is for. Equal gates let the down projection make the
// hidden values itself. The gate's K columns follow the K r of the down projection: in the same tiles of 64, so that
// they cost a pass over x only where they do not fit beside the last of these; of wide tiles, in the last 32 columns of
// one that has all of both, or else in tiles of their own, which read x again; where a token's gate leaves few of the
// narrowest, several blocks share the depth of each, whose parts the pass over the rows adds up. A sample's gate, the
// softmax of its tokens' mean logits, takes a launch more. Where plan.h says strips, y is made by strips of 64 rows
// (strips.cuh), and the pass over the rows, which equal gates have not, makes the images of B for them.
//
// Hybrid. The wide products are torch's (cuBLAS, same stream); what lies between is one pass over u, by columns where
// gates are equal (columns.cuh), and, after the last product, one over x and y. The gate's K columns are a tile here
// and a pass over x.

#include "cuda/expert_mixture/between.cuh"
#include "cuda/expert_mixture/strips.cuh"

namespace petx::cuda {
namespace {

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

  PETX_DEVICE Forward(const MixtureCall<C>& call, const MixtureWork<T>& work, T* out, int biases_at,
                      int64_t block = block_x())
      : Base(call, block), work_(work), out_(out), biases_(biases_at) {}

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
        const Run u = this->result(0, c);
        const int64_t own = p.stacked - column;  // values of the run that are u's; logits follow
        put_logits(-own, left, u);
        if (own > 0) put_down(column, own, u);
      });
    });
  }
  // The same of a tile of 128 rows, of which these are one `half`: u from column `begin` on in `columns` of it, and
  // behind them or, if there are none, from the first on, the logits of the experts from `expert` on.
  template <class Wide>
  PETX_DEVICE void put_wide_down(int half, int64_t begin, int columns, int64_t expert) const {
    this->each_run(
        begin, p.stacked,
        [&](int64_t column, int c, int64_t left) { put_down(column, left, this->template wide_result<Wide>(half, c)); },
        columns);
    if (columns == Wide::kN) return;
    this->each_run(
        expert, p.experts,
        [&](int64_t k, int c, int64_t left) {
          put_logits(k, left, this->template wide_result<Wide>(half, columns + c));
        },
        Wide::kN - columns);
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
  // What of a run lies at experts from number k on, which may be below 0.
  PETX_DEVICE void put_logits(int64_t k, int64_t left, const Run& run) const {
    if (k + kRun <= 0) return;
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (k + j >= 0 && j < left) write(work_.logits + token * p.experts + k + j, run.value[j]);
  }
  // u, of which the run has `left` values, without its bias; with equal gates the hidden values.
  PETX_DEVICE void put_down(int64_t column, int64_t left, Run u) const {
    const int64_t i = token * p.stacked + column;
    if (work_.parts) return Base::store_wide_run(work_.parts, i, left, u);
    if (p.down_bias) Base::add_to(u, Base::load_run(p.down_bias, column, left));
    Base::store_run(p.u, i, left, u);
    if (p.gated()) return;
    // Of u as the backward will find it.
    Run hidden = scaled_activation(p.activation, Base::rounded(u), p.beta * p.equal_gate);
    Base::store_run(work_.hidden, i, left, mixed ? hidden : Run{});
  }

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
        add_vectors<T>(p, product, p.up_bias, column, left, [&](int64_t k) { return p.beta * read(this->gates + k); });
      if (p.up_bias && !p.gated()) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) product.value[j] += biases_.get(place(tile, c + j));
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) y.value[j] = p.alpha * y.value[j] + product.value[j];
    }
    Base::store_run(out_, i, left, y);
  }

  const MixtureWork<T>& work_;
  T* out_;
  Shared<C> biases_;
};

// Logits alone, for the hybrid path, begin at `from`: in C, since rounded ones would let other experts through.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_down(MixtureCall<Compute<T>> p, MixtureWork<T> work, ColumnShares shares, int64_t from) {
  Forward<T>(p, work, nullptr, 0).down(shares, from);
}

// The same by tiles of 128 x 32 n: block (128 rows, tile and split of the depth). `tiles` of the ranks are there,
// behind them those of the experts, or both in one tile.
template <class T, int parts, bool joined>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_down(MixtureCall<Compute<T>> p, MixtureWork<T> work, int64_t tiles, int64_t split_depth,
                      int64_t splits) {
  using Wide = WideTile<T, parts>;
  const int64_t first = block_x() * Wide::kM;
  const auto [tile, split, from, depth] = DepthPart::of(block_y(), splits, p.d, split_depth);
  const Rows<T> x{static_cast<const T*>(p.x) + first * p.d + from, p.d, p.rows - first};
  const T *weight = static_cast<const T*>(p.down_weight) + from, *gate = static_cast<const T*>(p.gate_weight) + from;
  const int64_t begin = tile * Wide::kN, expert = joined ? 0 : (tile - tiles) * Wide::kN;
  typename Wide::Sums sums;
  if constexpr (joined) {
    Wide::multiply_beside(sums, x, Rows<T>{weight, p.d, p.stacked}, Rows<T>{gate, p.d, p.experts}, depth);
  } else {
    const bool ranks = tile < tiles;
    Wide::multiply(sums, x,
                   Rows<T>{ranks ? weight + begin * p.d : gate + expert * p.d, p.d,
                           ranks ? p.stacked - begin : p.experts - expert},
                   depth);
  }
  Wide::leave(sums);
  if (work.parts) work.parts += split * p.rows * p.stacked, work.logits += split * p.rows * p.experts;
  const int columns = joined ? Wide::kN - 32 : tile < tiles ? Wide::kN : 0;
  for (int half = 0; half < 2; ++half)
    Forward<T>(p, work, nullptr, 0, 2 * block_x() + half).template put_wide_down<Wide>(half, begin, columns, expert);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between(MixtureCall<Compute<T>> p, MixtureWork<T> work, bool add_bias) {
  mix_between<false>(p, work, add_bias, 1);
}

// The same of parts, which take registers.
template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between_parts(MixtureCall<Compute<T>> p, MixtureWork<T> work, int64_t splits) {
  mix_between<true>(p, work, false, splits);
}

// The same of equal gates.
template <class T>
PETX_KERNEL void __launch_bounds__(kPassLaunch.threads, kPassLaunch.blocks)
    mixture_columns(MixtureCall<Compute<T>> p, MixtureWork<T> work, ColumnPass pass) {
  mix_columns(p, work, pass);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_up(MixtureCall<Compute<T>> p, MixtureWork<T> work, T* out, ColumnShares shares) {
  Forward<T>(p, work, out, Forward<T>::kProductBytes).up(shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_up(MixtureCall<Compute<T>> p, MixtureWork<T> work, T* out, ColumnShares shares) {
  using Wide = Forward<T, TurnedTile<T>>;
  Wide(p, work, out, Wide::kProductBytes).up(shares);
}

// The same by strips.
template <class T>
PETX_KERNEL void __launch_bounds__(kStripLaunch.threads, kStripLaunch.blocks)
    mixture_strip_up(MixtureCall<Compute<T>> p, MixtureWork<T> work, T* out, ColumnShares shares) {
  const MixtureStrip<T> strip(p);
  const bool mixed[2] = {strip.in_scope(0), strip.in_scope(1)};
  const float by[2] = {mixed[0] ? p.alpha : 1.0f, mixed[1] ? p.alpha : 1.0f};
  auto weight = [&](int n, int64_t k) { return p.beta * read(p.gates_of(strip.token(n)) + k); };
  strip.run(shares, work.hidden, work.images, p.x, by, mixed, p.up_bias, weight, out);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_finish(MixtureCall<Compute<T>> p, MixtureWork<T> work, T* out, ColumnShares shares) {
  Forward<T>(p, work, out, 0).finish(shares);
}

// A sample's gates from its tokens' logits. An empty mean is zero.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gates(MixtureCall<Compute<T>> p, MixtureWork<T> work) {
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
      : p(params),
        plan_(params),
        tiles_(params, p.gated() ? p.experts : 0, !plan_.hybrid && p.gate == ExpertGate::token),
        out_(static_cast<T*>(out)),
        products_(products) {
    work_.hidden = workspace.take<T>(p.rows * p.stacked);
    work_.logits = workspace.take<C>(p.gated() ? tiles_.splits * p.rows * p.experts : 0);
    work_.parts = workspace.take<C>(tiles_.splits > 1 ? tiles_.splits * p.rows * p.stacked : 0);
    if (p.gate == ExpertGate::sample) work_.mean_logits = workspace.take<C>(p.samples() * p.experts);
    work_.images = workspace.take<T>(plan_.strips ? images_of_columns(p.d) : 0);
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
      if (plan_.strips)
        return launch(mixture_strip_up<T>, plan_.blocks, plan_.strip_shares.count, kStripLaunch.threads,
                      Strip<T>::kSharedBytes, stream, p, work_, out_, ColumnShares(plan_.strip_shares));
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
    const DownTiles& tiles = tiles_;
    if constexpr (sizeof(T) == 2) {
      auto start = [&](auto* kernel, int shared_bytes) {
        const int64_t ranks = tiles.rank_tiles(p.stacked);
        const int64_t experts = tiles.joined || !p.gated() ? 0 : tiles.kind.across(p.experts);
        return launch(kernel, tiles.kind.down(p.rows), (ranks + experts) * tiles.splits, kTileLaunch.threads,
                      shared_bytes, stream, p, work_, ranks, tiles.depth, tiles.splits);
      };
      if (!from && tiles.joined) return start(mixture_wide_down<T, 3, true>, WideTile<T, 3>::kSharedBytes);
      if (!from && tiles.kind.parts == 3) return start(mixture_wide_down<T, 3, false>, WideTile<T, 3>::kSharedBytes);
      if (!from && tiles.kind.parts == 1) return start(mixture_wide_down<T, 1, false>, WideTile<T, 1>::kSharedBytes);
    }
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
    if (!p.gated()) {
      const ColumnPass pass = columns_pass(p, p.stacked);
      return launch(mixture_columns<T>, pass.across, pass.splits, kPassLaunch.threads, 0, stream, p, work_, pass);
    }
    const int64_t images = plan_.strips ? tiles_along(p.d) : 0;
    const int64_t blocks = MixtureRow<T>::blocks(p.rows) + images;
    if constexpr (sizeof(T) == 2)
      if (work_.parts)
        return launch(mixture_between_parts<T>, blocks, 1, kRowLaunch.threads, 0, stream, p, work_, tiles_.splits);
    return launch(mixture_between<T>, blocks, 1, kRowLaunch.threads, 0, stream, p, work_, add_bias);
  }

  const MixtureCall<C> p;
  ExpertMixturePlan plan_;
  DownTiles tiles_;
  MixtureWork<T> work_ = {};
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
