// Backward of the expert mixture on the GPU.
//
//   q = dout B;  dgate_k = beta (q . act(u) over expert k + dout . b_k);  du = beta g q act'(u)
//   dx = alpha dout + du A + dlogits W_g
//
// Launches: q, a pass over the rows, for a sample's gate its sums over the sample's tokens, dx, then the sums over
// tokens (token_sums.cuh). Bytes: dout, x and dx once from memory, du and the hidden values written once and read twice
// more from the cache, u once. The hidden values are recomputed from u, as in the forward, whose tiling and choice of
// products this has. Equal gates need no pass over the rows: their q is du once it is made.
//
// Hybrid. Torch (cuBLAS) makes q, du A and the two wide weights' gradients, each in the storage type as its own are;
// all that is K wide stays here. Of equal gates q and du A are each followed by one pass by columns (columns.cuh),
// which leaves the sums of the columns of du and of dout, so that no launch reads these again for the biases.

#include "cuda/common/token_sums.cuh"
#include "cuda/expert_mixture/grads.cuh"
#include "cuda/expert_mixture/strips.cuh"

namespace petx::cuda {
namespace {

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_products(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, ColumnShares shares,
                     int64_t q_tiles) {
  MixtureBackward<T>(p, g, work).products(shares, q_tiles);
}

// The same by tiles of 128 x 32 n: block (128 rows, tile and split of the depth). `tiles` of the ranks are there,
// behind them those of the experts, or both in one tile. Equal gates have a kernel of their own, which makes of q what
// follows from it: the experts' tiles would leave that no registers.
template <class T, int parts, bool joined, bool gated = true>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_products(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, int64_t tiles,
                          int64_t split_depth, int64_t splits) {
  using Wide = WideTile<T, parts>;
  const int64_t first = block_x() * Wide::kM;
  const auto [tile, split, from, depth] = DepthPart::of(block_y(), splits, p.d, split_depth);
  const Rows<T> dout{static_cast<const T*>(g.dout) + first * p.d + from, p.d, p.rows - first};
  const int64_t begin = tile * Wide::kN, expert = joined ? 0 : (tile - tiles) * Wide::kN;
  const Columns<T> up{static_cast<const T*>(p.up_weight) + from * p.stacked + begin, p.stacked, p.stacked - begin};
  const Rows<T> bias{static_cast<const T*>(p.up_bias) + expert * p.d + from, p.d, p.up_bias ? p.experts - expert : 0};
  typename Wide::Sums sums;
  if constexpr (joined) {
    Wide::multiply_beside(sums, dout, up, bias, depth);
  } else if (!gated || tile < tiles) {
    Wide::multiply(sums, dout, up, depth);
  } else {
    Wide::multiply(sums, dout, bias, depth);
  }
  Wide::leave(sums);
  if (work.parts) work.parts += split * p.rows * p.stacked;
  if (work.gate_parts) work.dgates = work.gate_parts + split * p.rows * p.experts;
  const int columns = joined ? Wide::kN - 32 : tile < tiles ? Wide::kN : 0;
  for (int half = 0; half < 2; ++half) {
    const MixtureBackward<T> rows(p, g, work, 2 * block_x() + half);
    if constexpr (gated)
      rows.template put_wide_products<Wide>(half, begin, columns, expert);
    else
      rows.template put_wide_hidden<Wide>(half, begin);
  }
}

template <bool parts, class T>
PETX_DEVICE void between(const MixtureCall<Compute<T>>& p, const MixtureGradWork<T>& work, int64_t splits) {
  beside_images<T>(
      p, work.images, [&] { MixtureBetweenGrads<T>(p, work).template run<parts>(splits); },
      [&](int64_t column) { return RowBlock<T>::weight_columns(p.down_weight, column, p.d, p.d); });
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between_bwd(MixtureCall<Compute<T>> p, MixtureGradWork<T> work) {
  between<false>(p, work, 1);
}

// The same of equal gates.
template <class T>
PETX_KERNEL void __launch_bounds__(kPassLaunch.threads, kPassLaunch.blocks)
    mixture_columns_bwd(MixtureCall<Compute<T>> p, MixtureGradWork<T> work, ColumnPass pass, bool add_bias) {
  columns_between(p, work, pass, add_bias);
}

// Of gates that differ and parts, which take registers.
template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    mixture_between_parts_bwd(MixtureCall<Compute<T>> p, MixtureGradWork<T> work, int64_t splits) {
  between<true>(p, work, splits);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_dx(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, ColumnShares shares) {
  MixtureBackward<T>(p, g, work).dx(shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mixture_wide_dx(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, ColumnShares shares) {
  MixtureBackward<T, TurnedTile<T>>(p, g, work).dx(shares);
}

// The same by strips.
template <class T>
PETX_KERNEL void __launch_bounds__(kStripLaunch.threads, kStripLaunch.blocks)
    mixture_strip_dx(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, ColumnShares shares) {
  const MixtureStrip<T> strip(p);
  const float by[2] = {strip.in_scope(0) ? p.alpha : 1.0f, strip.in_scope(1) ? p.alpha : 1.0f};
  const bool adds[2] = {strip.valid(0), strip.valid(1)};
  auto weight = [&](int n, int64_t k) { return load(read(work.dlogits + strip.token(n) * p.experts + k)); };
  strip.run(shares, work.du, work.images, g.dout, by, adds, p.gate_weight, weight, g.dx);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kPassLaunch.threads, kPassLaunch.blocks)
    mixture_finish_bwd(MixtureCall<Compute<T>> p, ExpertMixtureGrads g, MixtureGradWork<T> work, ColumnPass pass) {
  finish_columns(p, g, work, pass);
}

// The gradients of a sample's logits from those of its tokens' gates, and each token's part of them.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    sample_gate_grads(MixtureCall<Compute<T>> p, MixtureGradWork<T> work) {
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
      : p(params),
        g(grads),
        plan_(params),
        tiles_(params, p.gated() && p.up_bias ? p.experts : 0, !plan_.hybrid && p.gated() && g.hidden()),
        ranks_(columns_pass(p, p.stacked)),
        width_(columns_pass(p, p.d)),
        products_(products),
        sums_(p.rows) {
    const bool gates = p.gated() && g.hidden(), sample = gates && p.gate == ExpertGate::sample;
    const int64_t narrow = p.rows * p.experts, weight = p.stacked * p.d;
    work_.du = workspace.take<T>(g.hidden() ? p.rows * p.stacked : 0);
    work_.hidden = workspace.take<T>(g.up_weight ? p.rows * p.stacked : 0);
    work_.scaled_gate = workspace.take<T>(g.up_bias && p.gated() ? narrow : 0);
    const bool in_passes = plan_.hybrid && !p.gated();  // sums of columns, in those that go over them anyway
    work_.equal_gate = workspace.take<C>(g.up_bias && !p.gated() && !in_passes ? p.rows : 0);
    work_.bias_sums = workspace.take<C>(g.up_bias && in_passes ? width_.splits * p.d : 0);
    work_.rank_sums = workspace.take<C>(g.down_bias && in_passes ? ranks_.splits * p.stacked : 0);
    work_.dgates = workspace.take<C>(gates ? narrow : 0);
    const bool split = tiles_.splits > 1;
    work_.parts = workspace.take<C>(split ? tiles_.splits * p.rows * p.stacked : 0);
    work_.gate_parts = workspace.take<C>(split && gates && p.up_bias ? tiles_.splits * narrow : 0);
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
    work_.images = workspace.take<T>(plan_.strips && g.dx ? images_of_columns(p.d) : 0);

    if (!plan_.hybrid) {
      sums_.product(grad(g.up_weight, 3), g.dout, work_.hidden, p.d, p.stacked);
      sums_.product(grad(g.down_weight, 1), work_.du, p.x, p.stacked, p.d);
    }
    if (wide_up) sums_.widen(grad(g.up_weight, 3), work_.up_weight, weight);
    if (wide_down) sums_.widen(grad(g.down_weight, 1), work_.down_weight, weight);
    if (in_passes) {
      sums_.finish(grad(g.up_bias, 4), work_.bias_sums, width_.splits, p.d, p.d, nullptr, p.experts);
    } else if (!p.gated()) {
      sums_.column(grad(g.up_bias, 4), g.dout, work_.equal_gate, p.d, p.experts);
    } else {
      sums_.product(grad(g.up_bias, 4), work_.scaled_gate, g.dout, p.experts, p.d);
    }
    sums_.product(grad(g.gate_weight, 5), work_.dlogits, p.x, p.experts, p.d);
    if (in_passes)
      sums_.finish(grad(g.down_bias, 2), work_.rank_sums, ranks_.splits, p.stacked, p.stacked);
    else
      sums_.column(grad(g.down_bias, 2), work_.du, nullptr, p.stacked);
    if (p.gate == ExpertGate::token) sums_.column(grad(g.gate_bias, 6), work_.dlogits, nullptr, p.experts);
    if (sample) sums_.finish(grad(g.gate_bias, 6), work_.sample, p.samples(), p.experts, p.experts);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    // The products of equal gates have made all of it.
    const bool done = !p.gated() && !plan_.hybrid && work_.du;
    const bool between_needed = !done && (work_.du || work_.hidden || work_.scaled_gate || work_.equal_gate);
    if (int error = work_.du ? (plan_.hybrid ? library_products() : products(stream)) : 0) return error;
    if (int error = between_needed ? between_rows(stream) : 0) return error;
    if (work_.sample)
      if (int error = launch(sample_gate_grads<T>, p.samples(), 1, SampleSums::kThreads, SampleSums::shared_bytes<C>(),
                             stream, p, work_))
        return error;
    if (int error = g.dx ? dx(stream) : 0) return error;
    if (int error = plan_.hybrid && (g.dx || work_.bias_sums) ? finish(stream) : 0) return error;
    if (int error = plan_.hybrid ? library_sums() : 0) return error;
    return sums_.run(stream);
  }

 private:
  int between_rows(void* stream) const {
    if (!p.gated())
      return launch(mixture_columns_bwd<T>, ranks_.across, ranks_.splits, kPassLaunch.threads,
                    ColumnParts<T>::kSharedBytes, stream, p, work_, ranks_, plan_.hybrid);
    const int64_t blocks = MixtureRow<T>::blocks(p.rows) + (work_.images ? tiles_along(p.d) : 0);
    if constexpr (sizeof(T) == 2)
      if (work_.parts)
        return launch(mixture_between_parts_bwd<T>, blocks, 1, kRowLaunch.threads, 0, stream, p, work_, tiles_.splits);
    return launch(mixture_between_bwd<T>, blocks, 1, kRowLaunch.threads, 0, stream, p, work_);
  }
  int products(void* stream) const {
    const DownTiles& tiles = tiles_;
    if constexpr (sizeof(T) == 2) {
      auto start = [&](auto* kernel, int shared_bytes) {
        const int64_t ranks = tiles.rank_tiles(p.stacked);
        const int64_t experts = tiles.joined || !p.gated() || !p.up_bias ? 0 : tiles.kind.across(p.experts);
        return launch(kernel, tiles.kind.down(p.rows), (ranks + experts) * tiles.splits, kTileLaunch.threads,
                      shared_bytes, stream, p, g, work_, ranks, tiles.depth, tiles.splits);
      };
      if (!p.gated() && tiles.kind.parts == 3)
        return start(mixture_wide_products<T, 3, false, false>, WideTile<T, 3>::kSharedBytes);
      if (!p.gated() && tiles.kind.parts == 1)
        return start(mixture_wide_products<T, 1, false, false>, WideTile<T, 1>::kSharedBytes);
      if (tiles.joined) return start(mixture_wide_products<T, 3, true>, WideTile<T, 3>::kSharedBytes);
      if (tiles.kind.parts == 3) return start(mixture_wide_products<T, 3, false>, WideTile<T, 3>::kSharedBytes);
      if (tiles.kind.parts == 1) return start(mixture_wide_products<T, 1, false>, WideTile<T, 1>::kSharedBytes);
    }
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
      if (plan_.strips)
        return launch(mixture_strip_dx<T>, plan_.blocks, plan_.strip_shares.count, kStripLaunch.threads,
                      Strip<T>::kSharedBytes, stream, p, g, work_, ColumnShares(plan_.strip_shares));
    if constexpr (sizeof(T) == 2)
      if (!plan_.hybrid && plan_.up.wide()) return rows(mixture_wide_dx<T>, plan_.up, TurnedTile<T>::shared_bytes(1));
    if (!plan_.hybrid) return rows(mixture_dx<T>, plan_.up, Tile::shared_bytes(1));
    return multiply(matrix(work_.du, p.rows, p.stacked), matrix(p.down_weight, p.stacked, p.d), static_cast<T*>(g.dx));
  }
  int finish(void* stream) const {
    return launch(mixture_finish_bwd<T>, width_.across, width_.splits, kPassLaunch.threads,
                  ColumnParts<T>::kSharedBytes, stream, p, g, work_, width_);
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
  DownTiles tiles_;
  ColumnPass ranks_, width_;  // of passes over [N, K r] and [N, d]
  const Products& products_;
  MixtureGradWork<T> work_ = {};
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
