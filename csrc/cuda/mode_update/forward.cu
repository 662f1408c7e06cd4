// Forward of PETAL's update on the GPU.
//
//   h = x U^T;  g_k = drop_k(h) M_k;  y_k = base_k + g_k V^T
//
// Bytes: x, the bases and the results once from memory, h once to it; U, V and the cores come from the second-level
// cache, once per block.
// Launches: x U^T, nothing where x comes projected; a block of rows' and projection's g_k with the results. Tiling:
// blocks of 64 rows, in the first launch of 128 where that takes less (plan.h). Few rows make too few of them. So the
// first splits the depth of its product among blocks, which leave parts of h in C for the second to add up, and there
// several blocks share a projection's columns. Each makes g_k for itself: that takes as long as a tile or two of the
// results, and waits for random numbers while other blocks wait for memory. Up to a rank of 64 it stays in shared
// memory for all tiles, in 16 bits; else it goes through a workspace and is read back from the second-level cache, so
// that no rank is too large. Results go from the registers that they were made in to memory (run_tile.cuh).

#include "cuda/common/run_tile.cuh"
#include "cuda/mode_update/block.cuh"

namespace petx::cuda {
namespace {

// What the launches leave for each other; null where not needed.
template <class T>
struct Passing {
  Compute<T>* parts;  // of h, where its depth is split
  // [K, shares, N, R], where they do not stay in shared memory:
  T* kept;   // what is multiplied by the core, with a diagonal one g_k itself; without parts and dropout that is h
  T* mixed;  // g_k
};

// Block (row block, split of the depth and tile of ranks).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_down(ModeCall<Compute<T>> p, DepthSplits splits, Compute<T>* parts) {
  using Block = ModeBlock<T>;
  using Tile = typename Block::Tile;
  const Block block(p, block_x());
  const DepthPart of = splits.part(block_y(), p.d_in);
  const int64_t begin = of.tile * Tile::kN;
  if (p.d_in)
    Tile::multiply(0, block.block_rows(p.x, p.d_in, of.from),
                   Block::weight_rows(static_cast<const T*>(p.u) + of.from, begin, p.rank, p.d_in), of.depth);
  if (parts) return block.put_part(begin, parts + of.split * Block::Parts::size(p));
  block.each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
    Block::store_run(p.h, block.token * p.rank + column, left, p.d_in ? block.result(0, c) : typename Block::Run{});
  });
}

// The same by tiles of 128 x 64.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_down(ModeCall<Compute<T>> p, DepthSplits splits, Compute<T>* parts) {
  using Block = ModeBlock<T>;
  using Wide = WideTile<T, 2>;
  const DepthPart of = splits.part(block_y(), p.d_in);
  const int64_t begin = of.tile * Wide::kN;
  Wide::multiply_rows(static_cast<const T*>(p.x) + of.from, p.d_in, p.rows,
                      Block::weight_rows(static_cast<const T*>(p.u) + of.from, begin, p.rank, p.d_in), of.depth);
  for (int half = 0; half < 2; ++half) {
    const Block block(p, 2 * block_x() + half);
    if (parts) {
      block.template put_wide_part<Wide>(half, begin, parts + of.split * Block::Parts::size(p));
    } else {
      block.each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
        Block::store_run(p.h, block.token * p.rank + column, left, block.template wide_result<Wide>(half, c));
      });
    }
  }
}

// A run of what a core multiplies, dropout(h), or with a diagonal core g_k itself; h from its parts, which `first`
// leaves for the backward.
template <class T>
PETX_DEVICE RunOf<T> kept_run(const ModeBlock<T>& block, const Passing<T>& passing, int64_t splits, int64_t k,
                              bool first, int64_t column, int64_t left) {
  using Block = ModeBlock<T>;
  const auto& p = block.p;
  const int64_t i = block.token * p.rank + column;
  RunOf<T> run;
  if (passing.parts) {
    // As the backward will find it.
    run = Block::rounded(block.sum_of_parts(passing.parts, splits, column));
    if (first) Block::store_run(p.h, i, left, run);
  } else {
    run = Block::load_run(p.h, i, left);
  }
  block.drop(run, k, column);
  if (p.diagonal) Block::multiply_by(run, Block::load_run(block.core(k), column, left));
  return run;
}

// g_k of the block's rows, where `mixed` says.
template <class T>
PETX_DEVICE void mix_rows(const ModeBlock<T>& block, const Passing<T>& passing, int64_t splits, int64_t k, bool first,
                          T* kept, T* mixed) {
  using Block = ModeBlock<T>;
  const auto& p = block.p;
  if (!kept) return block.mix(static_cast<const T*>(p.h), k, mixed);
  for (int64_t begin = 0; begin < p.rank; begin += kTile)
    block.each_run(begin, p.rank, [&](int64_t column, int, int64_t left) {
      Block::store_run(kept, block.token * p.rank + column, left,
                       kept_run(block, passing, splits, k, first, column, left));
    });
  sync_block();  // other columns come from other threads
  if (!p.diagonal) block.mix(kept, k, mixed);
}
// The same of a rank that one chunk of a product holds, where the products look for it in shared memory.
template <class T>
PETX_DEVICE void stage_rows(const ModeBlock<T>& block, const Passing<T>& passing, int64_t splits, int64_t k,
                            bool first) {
  using Block = ModeBlock<T>;
  const auto& p = block.p;
  block.stage([&](int64_t column, int64_t left) { return kept_run(block, passing, splits, k, first, column, left); });
  if (p.diagonal) return;
  MmaTile<T>::multiply(0, typename MmaTile<T>::StagedRows{}, Block::weight_columns(block.core(k), 0, p.rank, p.rank),
                       p.rank);
  block.stage([&](int c, int64_t) { return block.result(0, c); });
}

// Block (row block, projection and share of its results' tiles).
template <class T, bool wide>
PETX_DEVICE void put_results(const ModeCall<Compute<T>>& p, const ModeUpdateOutputs& out, const Passing<T>& passing,
                             int64_t splits, const ColumnShares& shares) {
  using Block = ModeBlock<T>;
  using Tile = RunTileOf<T, wide>;
  const Block block(p, block_x());
  const int y = static_cast<int>(block_y()), count = static_cast<int>(shares.count), k = y / count, share = y % count;
  const int64_t own = y * p.rows * p.rank;
  T *kept = passing.kept ? passing.kept + own : nullptr, *mixed = passing.mixed ? passing.mixed + own : kept;
  const bool there = Block::stages(p);
  if constexpr (Block::kStages)
    if (there) stage_rows(block, passing, splits, k, y == 0);
  if (!there) mix_rows(block, passing, splits, k, y == 0, kept, mixed);
  const void* base = of_mode(out.base, k);
  void* to = of_mode(out.y, k);
  const int first = share * static_cast<int>(shares.each), left = static_cast<int>(shares.tiles) - first;
#pragma unroll 1
  for (int n = 0; n < shares.each && n < left; ++n) {
    const int64_t begin = int64_t(first + n) * Tile::kN;
    typename Tile::Sums sums;
    if constexpr (Tile::kOneRun) sums.begin({});
    Tile::multiply(sums, 0, block.block_rows(there ? p.h : mixed, p.rank),
                   Block::weight_rows(p.v, begin, p.d_out, p.rank), p.rank, there);
    Tile::each_place([&](int c) {
      const int64_t column = begin + c, rest = p.d_out - column;
      if (rest <= 0) return;
      Tile::each_row([&](int number, int row) {
        if (row >= block.rows) return;
        const int64_t token = block.first + row;
        typename Block::Run y = sums.run(number, row, c);
        if (base) Block::add_to(y, Block::load_run(base, token * out.base_stride + column, rest));
        Block::store_run(to, token * p.d_out + column, rest, y);
      });
    });
  }
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_up(ModeCall<Compute<T>> p, ModeUpdateOutputs out, Passing<T> passing, int64_t splits, ColumnShares shares) {
  put_results<T, false>(p, out, passing, splits, shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_wide_up(ModeCall<Compute<T>> p, ModeUpdateOutputs out, Passing<T> passing, int64_t splits,
                 ColumnShares shares) {
  put_results<T, true>(p, out, passing, splits, shares);
}

// One call: where everything lies, and its launch.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const ModeUpdateParams& params, const ModeUpdateOutputs& out)
      : p(params), plan_(params), out_(out) {
    const bool split = plan_.down.count > 1;
    const int64_t copies = ModeBlock<T>::stages(p) ? 0 : p.count * plan_.up.count * p.rows * p.rank;
    passing_.parts = workspace.take<Compute<T>>(split ? plan_.down.count * SumParts<T>::size(p) : 0);
    passing_.kept = workspace.take<T>(p.diagonal || p.mask.drops() || split ? copies : 0);
    passing_.mixed = workspace.take<T>(p.diagonal ? 0 : copies);
  }

  int run(void* stream) const {
    if (int error = p.x ? down(stream) : 0) return error;
    auto up = [&](auto* kernel, int shared_bytes) {
      constexpr int kMixing = Tile::shared_bytes(1);
      return launch(kernel, plan_.blocks, p.count * plan_.up.count, Tile::kThreads,
                    shared_bytes < kMixing ? kMixing : shared_bytes, stream, p, out_, passing_, plan_.down.count,
                    ColumnShares(plan_.up));
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.up.wide()) return up(mode_wide_up<T>, RunTileOf<T, true>::shared_bytes(1));
    return up(mode_up<T>, RunTileOf<T>::shared_bytes(1));
  }

 private:
  int down(void* stream) const {
    auto start = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, plan_.down.kind.down(p.rows), plan_.down.blocks(), Tile::kThreads, shared_bytes, stream, p,
                    plan_.down, passing_.parts);
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.down.kind.parts) return start(mode_wide_down<T>, WideTile<T, 2>::kSharedBytes);
    return start(mode_down<T>, Tile::shared_bytes(1));
  }

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
