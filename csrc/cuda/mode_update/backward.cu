// Backward of PETAL's update on the GPU.
//
//   dg_k = dy_k V;  dV = sum_k dy_k^T g_k;  dM_k = drop_k(h)^T dg_k;  dh = sum_k drop_k(dg_k M_k^T)
//   dU = dh^T x;  dx = dh U
//
// Launches: one over blocks of rows and projections (dg_k, and what it adds to dh; beside them, in blocks of their own,
// g_k from h), before it one that splits the depth of dy_k V among blocks where that takes less (plan.h), and one over
// blocks of rows and shares of dx's columns (the sum over k that is dh, which each share makes for itself, and dx; dh
// alone where no dx is wanted); then the sums over tokens (token_sums.cuh): the products, and their splits added up. A
// diagonal core's gradient is a sum of columns beside these. Bytes: the dy_k twice, the second time mostly from the
// cache, x and dx once; beside them [N, R] tensors only. What nobody asked for is neither computed nor stored. Tiling:
// that of the forward, dy_k V by blocks of 128 rows too where that takes less. What each projection adds to dh is
// rounded to the storage type, as torch's is, and the sum over k is made in C.

#include "cuda/common/token_sums.cuh"
#include "cuda/mode_update/grads.cuh"

namespace petx::cuda {
namespace {

// Block (row block, split of the depth and tile of ranks and projection).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_parts(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to, DepthSplits splits) {
  using Block = ModeBlock<T>;
  using Tile = typename Block::Tile;
  const Block block(p, block_x());
  const int modes = static_cast<int>(p.count), y = static_cast<int>(block_y()), k = y % modes;
  const T* dy = static_cast<const T*>(of_mode(g.dy, k));
  if (!dy) return;
  const DepthPart of = splits.part(y / modes, p.d_out);
  const int64_t begin = of.tile * Tile::kN;
  const T* v = static_cast<const T*>(p.v) + of.from * p.rank;
  Tile::multiply(0, block.block_rows(dy, p.d_out, of.from), Block::weight_columns(v, begin, p.rank, p.rank), of.depth);
  block.put_part(begin, of_mode(to.parts, k) + of.split * Block::Parts::size(p));
}

// The same by tiles of 128 x 64.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_parts(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to, DepthSplits splits) {
  using Block = ModeBlock<T>;
  using Wide = WideTile<T, 2>;
  const int modes = static_cast<int>(p.count), y = static_cast<int>(block_y()), k = y % modes;
  const T* dy = static_cast<const T*>(of_mode(g.dy, k));
  if (!dy) return;
  const DepthPart of = splits.part(y / modes, p.d_out);
  const int64_t begin = of.tile * Wide::kN;
  const T* v = static_cast<const T*>(p.v) + of.from * p.rank;
  Wide::multiply_rows(dy + of.from, p.d_out, p.rows, Block::weight_columns(v, begin, p.rank, p.rank), of.depth);
  for (int half = 0; half < 2; ++half)
    Block(p, 2 * block_x() + half)
        .template put_wide_part<Wide>(half, begin, of_mode(to.parts, k) + of.split * Block::Parts::size(p));
}

// Block (row block, projection), and behind these the projections again.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_outputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to, int64_t splits) {
  const ModeBackward<T> block(p, g, to);
  if (block_y() < p.count)
    block.output_grad(block_y(), splits);
  else
    block.output(block_y() - p.count);
}

// The same by tiles of 128 x 64, where dy_k V is in one piece.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_outputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to) {
  if (block_y() < p.count) return ModeBackward<T>::wide_output_grad(p, g, to, block_y());
#pragma unroll 1
  for (int half = 0; half < 2 && (2 * block_x() + half) * kTile < p.rows; ++half)
    ModeBackward<T>(p, g, to, 2 * block_x() + half).output(block_y() - p.count);
}

// Block (row block, share of dx's columns).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_inputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to, ColumnShares shares, bool several) {
  ModeBackward<T>(p, g, to).input(shares, several);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_inputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to, ColumnShares shares,
                     bool several) {
  ModeBackward<T, TurnedTile<T>>(p, g, to).input(shares, several);
}

// dh alone, where no dx is wanted or x comes projected: a run a thread.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    mode_hidden_grads(ModeCall<Compute<T>> p, ModeUpdateGrads g, ModeIntermediate<T> to) {
  const int64_t i = (block_x() * kSumLaunch.threads + thread_index()) * RowBlock<T>::kRun, left = p.rows * p.rank - i;
  if (left > 0) RowBlock<T>::store_run(to.dh, i, left, sum_of_dh(p, g, to, i, left));
}

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  BackwardCall(Workspace& workspace, const ModeUpdateParams& params, const ModeUpdateGrads& grads)
      : p(params), g(grads), plan_(params), sums_(p.rows) {
    auto take = [&](bool needed) { return workspace.take<T>(needed ? p.rows * p.rank : 0); };
    const bool dh = g.dx || g.du;
    int64_t given = 0;
    for (int64_t k = 0; k < p.count; ++k) given += g.dy[k] != nullptr;
    several_ = given > 1;
    if (dh) to_.dh = p.x ? take(true) : static_cast<T*>(g.dx);
    shares_ = g.dx && p.x ? plan_.dx.count : 1;
    to_.more_dh = workspace.take<T>(dh && several_ ? (shares_ - 1) * p.rows * p.rank : 0);
    splits_ = dh || g.dcores ? plan_.out.count : 1;
    const void *dy[kMostModes], *mixed[kMostModes];
    int pairs = 0;
    for (int64_t k = 0; k < p.count; ++k) {
      if (!g.dy[k]) continue;
      // Diagonal cores need the kept h only beside the core or dg_k, where it is made in passing.
      to_.kept[k] = take(p.mask.drops() && !p.diagonal && (g.dv || g.dcores));
      to_.mixed[k] = take(g.dv);
      to_.dg[k] = take(dh || g.dcores);
      to_.parts[k] = workspace.take<C>(splits_ > 1 ? splits_ * SumParts<T>::size(p) : 0);
      to_.of_dh[k] = several_ ? take(dh) : to_.dh;
      again_ |= g.dv || (p.mask.drops() && !p.diagonal && g.dcores);
      to_.by_core[k] = take(p.diagonal && g.dcores);
      dy[pairs] = g.dy[k], mixed[pairs++] = to_.mixed[k];
      const GradTo<T> dcore = GradTo<T>::of(g.dcores, g.narrow, 3).from(k * p.core_size());
      if (p.diagonal) {
        sums_.column(dcore, to_.by_core[k], nullptr, p.rank);
      } else {
        sums_.product(dcore, p.mask.drops() ? to_.kept[k] : p.h, to_.dg[k], p.rank, p.rank);
      }
    }
    sums_.product_of_pairs(GradTo<T>::of(g.dv, g.narrow, 2), pairs, dy, mixed, p.d_out, p.rank);
    sums_.product(GradTo<T>::of(g.du, g.narrow, 1), to_.dh, p.x, p.rank, p.d_in);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    if (int error = splits_ > 1 ? parts(stream) : 0) return error;
    if (int error = outputs(stream)) return error;
    const bool dx = g.dx && p.x;
    if (int error = dx ? inputs(stream) : to_.dh && several_ ? hidden_grads(stream) : 0) return error;
    return sums_.run(stream);
  }

 private:
  int parts(void* stream) const {
    const DepthSplits& splits = plan_.out;
    auto start = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, splits.kind.down(p.rows), p.count * splits.blocks(), Tile::kThreads, shared_bytes, stream,
                    p, g, to_, splits);
    };
    if constexpr (sizeof(T) == 2)
      if (splits.kind.parts) return start(mode_wide_parts<T>, WideTile<T, 2>::kSharedBytes);
    return start(mode_parts<T>, Tile::shared_bytes(1));
  }
  int outputs(void* stream) const {
    const int64_t blocks = again_ ? 2 * p.count : p.count;
    if constexpr (sizeof(T) == 2)
      if (plan_.out.count == 1 && plan_.out.kind.parts)
        return launch(mode_wide_outputs<T>, plan_.out.kind.down(p.rows), blocks, Tile::kThreads,
                      WideTile<T, 2>::kSharedBytes, stream, p, g, to_);
    return launch(mode_outputs<T>, plan_.blocks, blocks, Tile::kThreads, Tile::shared_bytes(1), stream, p, g, to_,
                  splits_);
  }
  int inputs(void* stream) const {
    auto start = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, plan_.blocks, shares_, Tile::kThreads, shared_bytes, stream, p, g, to_,
                    ColumnShares(plan_.dx), several_);
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.dx.wide()) return start(mode_wide_inputs<T>, TurnedTile<T>::shared_bytes(1));
    return start(mode_inputs<T>, Tile::shared_bytes(1));
  }

  int hidden_grads(void* stream) const {
    constexpr int64_t kRun = RowBlock<T>::kRun;
    const int64_t blocks = sum_blocks((p.rows * p.rank + kRun - 1) / kRun);
    return launch(mode_hidden_grads<T>, blocks, 1, kSumLaunch.threads, 0, stream, p, g, to_);
  }

  const ModeCall<C> p;
  const ModeUpdateGrads& g;
  ModeUpdatePlan plan_;
  int64_t shares_, splits_;
  bool several_;        // projections add to dh
  bool again_ = false;  // whether g_k or the kept h is made again
  ModeIntermediate<T> to_ = {};
  TokenSums<T, 2 * kMostModes + 1, kMostModes, kMostModes + 2> sums_;
};

}  // namespace

int64_t mode_update_bwd_workspace(const ModeUpdateParams& p, const ModeUpdateGrads& g) {
  return p.rows && p.d_out ? count_workspace<BackwardCall>(p.dtype, p, g) : 0;
}

// With no rows the caller's gradients are zeros already.
int mode_update_bwd(const ModeUpdateParams& p, const ModeUpdateGrads& g, void* workspace, void* stream) {
  return p.rows && p.d_out ? run_call<BackwardCall>(p.dtype, workspace, stream, p, g) : 0;
}

}  // namespace petx::cuda
