// Forward of PETAL's update on the GPU.
//
//   h = x U^T;  g_k = drop_k(h) M_k;  y_k = base_k + g_k V^T
//
// Bytes: x, the bases and the results once from memory, h once to it; U, V and the cores come from the second-level
// cache, once per block.
// Launches: x U^T, nothing where x comes projected; a block of rows and projection's g_k; the results. Tiling: blocks
// of 64 rows. Few rows make too few of them. So the first launch splits the depth of its product among blocks (plan.h),
// which leave parts of h in C for the second to add up, and in the third several blocks share the rows, each with a
// part of the K d_out columns. What is [N, R] goes through a workspace and is read back from the second-level cache, so
// that no rank is too large; the second launch is there so that no share makes it again.

#include "cuda/mode_update/block.cuh"

namespace petx::cuda {
namespace {

// What the launches leave for each other; null where not needed.
template <class T>
struct Passing {
  Compute<T>* parts;  // of h: [splits, N, R]
  T* h;               // [K - 1, N, R]: of all projections but the first, whose h is the call's
  T* kept;            // [K, N, R], as below
  T* mixed;           // g_k
};

// Block (row block, split of the depth and tile of ranks).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_down(ModeCall<Compute<T>> p, DepthSplits splits, Compute<T>* parts) {
  using Block = ModeBlock<T>;
  using Tile = typename Block::Tile;
  const Block block(p, block_x());
  const int y = static_cast<int>(block_y()), count = static_cast<int>(splits.count), split = y % count;
  const int64_t begin = y / count * Tile::kN, from = split * splits.each;
  const int64_t depth = p.d_in - from < splits.each ? p.d_in - from : splits.each;
  if (p.d_in)
    Tile::multiply(0, block.block_rows(p.x, p.d_in, from),
                   Block::weight_rows(static_cast<const T*>(p.u) + from, begin, p.rank, p.d_in), depth);
  if (parts) {
    block.put_part(begin, parts + split * p.rows * p.rank);
    return;
  }
  block.each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
    Block::store_run(p.h, block.token * p.rank + column, left, p.d_in ? block.result(0, c) : typename Block::Run{});
  });
}

// Block (row block, projection).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_mixed(ModeCall<Compute<T>> p, Passing<T> passing, int64_t splits) {
  using Block = ModeBlock<T>;
  const Block block(p, block_x());
  const int64_t k = block_y(), size = p.rows * p.rank;
  T* h = static_cast<T*>(p.h);
  if (passing.parts) {
    if (k) h = passing.h + (k - 1) * size;
    for (int64_t begin = 0; begin < p.rank; begin += kTile)
      block.each_run(begin, p.rank, [&](int64_t column, int, int64_t left) {
        Block::store_run(h, block.token * p.rank + column, left,
                         block.sum_of_parts(passing.parts, splits, column, left));
      });
    sync_block();  // h's other columns come from other threads
  }
  T* mixed = passing.mixed + k * size;
  if (p.diagonal) {
    block.keep(h, k, true, mixed);
    return;
  }
  if (p.mask.drops()) block.keep(h, k, false, passing.kept + k * size);
  block.mix(p.mask.drops() ? passing.kept + k * size : h, k, mixed);
}

// Block (row block, share of the results' tiles, which are numbered through all projections).
template <class T, class Tile>
PETX_DEVICE void put_results(const ModeCall<Compute<T>>& p, const ModeUpdateOutputs& out, const T* mixed, int64_t tiles,
                             const ColumnShares& shares) {
  using Block = RowBlock<T, Tile>;
  const Block block(p.rows, block_x());
  int64_t k = block_y() * shares.each / tiles, tile = block_y() * shares.each - k * tiles;
  const int64_t left = shares.tiles - block_y() * shares.each;
#pragma unroll 1
  for (int64_t n = 0; n < shares.each && n < left; ++n) {
    const int64_t begin = tile * Tile::kN;
    Tile::multiply(0, block.block_rows(mixed + k * p.rows * p.rank, p.rank),
                   Block::weight_rows(p.v, begin, p.d_out, p.rank), p.rank);
    const void* base = of_mode(out.base, k);
    void* to = of_mode(out.y, k);
    block.each_run(begin, p.d_out, [&](int64_t column, int c, int64_t rest) {
      typename Block::Run y = block.result(0, c);
      if (base) Block::add_to(y, Block::load_run(base, block.token * out.base_stride + column, rest));
      Block::store_run(to, block.token * p.d_out + column, rest, y);
    });
    if (++tile == tiles) tile = 0, ++k;
  }
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_up(ModeCall<Compute<T>> p, ModeUpdateOutputs out, const T* mixed, int64_t tiles, ColumnShares shares) {
  put_results<T, TileOf<T>>(p, out, mixed, tiles, shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_up(ModeCall<Compute<T>> p, ModeUpdateOutputs out, const T* mixed, int64_t tiles, ColumnShares shares) {
  put_results<T, TurnedTile<T>>(p, out, mixed, tiles, shares);
}

// One call: where everything lies, and its launch.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const ModeUpdateParams& params, const ModeUpdateOutputs& out)
      : p(params), plan_(params), out_(out) {
    const int64_t size = p.rows * p.rank;
    const bool split = plan_.down.count > 1;
    passing_.parts = workspace.take<Compute<T>>(split ? plan_.down.count * size : 0);
    passing_.h = workspace.take<T>(split ? (p.count - 1) * size : 0);
    passing_.kept = workspace.take<T>(p.mask.drops() && !p.diagonal ? p.count * size : 0);
    passing_.mixed = workspace.take<T>(p.count * size);
  }

  int run(void* stream) const {
    auto rows = [&](auto* kernel, int64_t blocks, auto... more) {
      return launch(kernel, plan_.blocks, blocks, Tile::kThreads, Tile::shared_bytes(1), stream, p, more...);
    };
    const DepthSplits& splits = plan_.down;
    if (p.x)
      if (int error = rows(mode_down<T>, splits.count * plan_.rank_tiles, splits, passing_.parts)) return error;
    if (int error = rows(mode_mixed<T>, p.count, passing_, splits.count)) return error;
    auto up = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, plan_.blocks, plan_.up.count, Tile::kThreads, shared_bytes, stream, p, out_,
                    static_cast<const T*>(passing_.mixed), plan_.up.tiles_of(p.d_out), ColumnShares(plan_.up));
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.up.wide()) return up(mode_wide_up<T>, TurnedTile<T>::shared_bytes(1));
    return up(mode_up<T>, Tile::shared_bytes(1));
  }

 private:
  const ModeCall<Compute<T>> p;
  ModeUpdatePlan plan_;
  const ModeUpdateOutputs& out_;
  Passing<T> passing_;
};

}  // namespace

int64_t mode_update_fwd_workspace(const ModeUpdateParams& p) {
  return p.rows && p.d_out ? count_workspace<ForwardCall>(p.dtype, p, ModeUpdateOutputs{}) : 0;
}

int mode_update_fwd(const ModeUpdateParams& p, const ModeUpdateOutputs& out, void* workspace, void* stream) {
  return p.rows && p.d_out ? run_call<ForwardCall>(p.dtype, workspace, stream, p, out) : 0;
}

}  // namespace petx::cuda
