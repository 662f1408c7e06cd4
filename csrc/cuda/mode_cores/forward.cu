// Forward of mode_cores on the GPU: the cores of all mode vectors.
//
//   full      M = P gate(C)^T              C as [S, R] with S = R^2, P [n, R], M [n, S]
//   diagonal  M = gate(lambda) * P, row by row
//
// Bytes: C and M once, P from the second-level cache. At PETAL's sizes R^3 is a megabyte and the launch is what costs,
// so there is one.
// Tiling: a block makes 64 modes by 64 of C's rows. gate(C) never lies in memory (block.cuh).

#include "cuda/mode_cores/block.cuh"

namespace petx::cuda {
namespace {

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    full_cores(CoresCall<Compute<T>> p, T* cores, int64_t across) {
  using Block = RowBlock<T>;
  using Tile = typename Block::Tile;
  const Block modes(p.modes, block_x() / across);
  const int64_t slice = block_x() % across * Tile::kN, slices = p.slices();
  const Rows<T> vectors = modes.block_rows(p.vectors, p.rank);
  if (p.gate == Gate::none) {
    Tile::multiply(0, vectors, Block::weight_rows(p.core, slice, slices, p.rank), p.rank);
  } else {
    GatedCore<T, false> core{p, slice * p.rank, 0, slices - slice};
    Tile::multiply(0, vectors, core, p.rank);
  }
  modes.each_run(slice, slices, [&](int64_t column, int c, int64_t left) {
    Block::store_run(cores, modes.token * slices + column, left, modes.result(0, c));
  });
}

template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    diagonal_cores(CoresCall<Compute<T>> p, T* cores) {
  using C = Compute<T>;
  int64_t i = block_x() * kSumLaunch.threads + thread_index();
  if (i >= p.modes * p.rank) return;
  C value = at<T>(p.core, i % p.rank), limit = threshold_of<T>(p, i % p.rank), inverse = p.inverse_temperature;
  C weight = with_gate(p.gate, [&]<Gate kind>() { return gated<kind>(value, limit, inverse); });
  put<T>(cores, i, weight * at<T>(p.vectors, i));
}

}  // namespace

int mode_cores_fwd(const ModeCoresParams& p, void* cores, void* stream) {
  if (p.modes == 0) return 0;
  return with_storage(p.dtype, [&]<class T>() {
    using Tile = TileOf<T>;
    T* to = static_cast<T*>(cores);
    const CoresCall<Compute<T>> call(p);
    if (p.diagonal)
      return launch(diagonal_cores<T>, sum_blocks(p.modes * p.rank), 1, kSumLaunch.threads, 0, stream, call, to);
    ModeCoresPlan plan(p);
    return launch(full_cores<T>, plan.blocks(), 1, Tile::kThreads, Tile::shared_bytes(1), stream, call, to,
                  plan.across);
  });
}

}  // namespace petx::cuda
