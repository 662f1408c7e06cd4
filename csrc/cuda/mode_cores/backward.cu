// Backward of mode_cores on the GPU.
//
//   full      dgate(C) = dM^T P;  dP = dM gate(C)     C as [S, R] with S = R^2, P [n, R], M [n, S]
//   diagonal  M = gate(lambda) * P, row by row
//
// Bytes: C twice (once without a gate) and dM twice, the second time from the cache if they fit, as P is.
// Launches: two. Blocks of two kinds are in the first: some make 64 of C's rows by 64 ranks of dC and what they add to
// the threshold's gradient, the others a split of dP, the sum over C's rows. The second adds up, in an order that the
// shape fixes.

#include "cuda/mode_cores/block.cuh"

namespace petx::cuda {
namespace {

template <class T>
PETX_DEVICE GateSlopes<Compute<T>> slopes_at(const CoresCall<Compute<T>>& p, int64_t i, int64_t k) {
  using C = Compute<T>;
  C value = at<T>(p.core, i), limit = threshold_of<T>(p, k), inverse = p.inverse_temperature;
  return with_gate(p.gate, [&]<Gate kind>() { return gate_slopes<kind>(value, limit, inverse); });
}

// C's rows in a split of dP, of which there are so many tiles: four chunks of a product's depth, so that these blocks
// take not much longer than the others. More where that would be more splits than fill a card, since each is written
// and read again, but no longer sums in one float.
inline int64_t rows_of_a_split(int64_t slices, int64_t tiles) {
  constexpr int64_t kLeast = 256, kMost = 1024;
  const int64_t splits = tiles < kMultiprocessors ? kMultiprocessors / tiles : 1;
  const int64_t rows = tiles_along((slices + splits - 1) / splits) * kTile;
  return rows < kLeast ? kLeast : rows > kMost ? kMost : rows;
}

// The backward's grid, and what its blocks leave to be added up.
template <class T>
struct Grid {
  using C = Compute<T>;
  using Tile = TileOf<T>;
  int64_t slice_tiles, rank_tiles, mode_tiles;
  int64_t core_blocks;   // of the first kind
  int64_t splits, size;  // of C's rows, for dP
  C* dthreshold;         // each: [slice tiles, R], else [core blocks]
  C* dvectors;           // [splits, n, R]

  Grid(const ModeCoresParams& p, const ModeCoresGrads& g, Workspace& workspace) {
    slice_tiles = (p.slices() + Tile::kM - 1) / Tile::kM, rank_tiles = (p.rank + Tile::kN - 1) / Tile::kN;
    mode_tiles = (p.modes + Tile::kM - 1) / Tile::kM;
    core_blocks = g.dcore || g.dthreshold ? slice_tiles * rank_tiles : 0;
    size = rows_of_a_split(p.slices(), mode_tiles * rank_tiles), splits = (p.slices() + size - 1) / size;
    dthreshold = workspace.template take<C>(g.dthreshold ? p.each ? slice_tiles * p.rank : core_blocks : 0);
    dvectors = workspace.template take<C>(g.dvectors ? splits * p.modes * p.rank : 0);
  }
  int64_t blocks() const { return core_blocks + (dvectors ? splits * mode_tiles * rank_tiles : 0); }
};

template <class T>
PETX_DEVICE void core_grad(const CoresCall<Compute<T>>& p, const ModeCoresGrads& g, const Grid<T>& grid,
                           int64_t block) {
  using C = Compute<T>;
  using Tile = TileOf<T>;
  using Part = RowBlock<C>;
  const int number = static_cast<int>(block), across = static_cast<int>(grid.rank_tiles);
  const int64_t slice = int64_t(number / across) * Tile::kM, rank = int64_t(number % across) * Tile::kN;
  const int64_t slices = p.slices();
  Columns<T> grads{static_cast<const T*>(g.dcores) + slice, slices, slices - slice};
  Columns<T> vectors{static_cast<const T*>(p.vectors) + rank, p.rank, p.rank - rank};
  Tile::multiply(0, grads, vectors, p.modes);
  const int row = thread_index() / Part::kSharers;
#pragma unroll 1
  for (int c = thread_index() % Part::kSharers * Part::kRun; c < Tile::kN; c += Part::kRun * Part::kSharers) {
    const int64_t left = slice + row < slices ? p.rank - rank - c : 0, at_core = (slice + row) * p.rank + rank + c;
    typename Part::Run run;
#pragma unroll
    for (int j = 0; j < Part::kRun; ++j) {
      run.value[j] = Tile::result(0, row, c + j);
      if (p.gate == Gate::none) continue;
      C by_threshold = 0;
      if (j < left) {
        GateSlopes<C> slopes = slopes_at<T>(p, at_core + j, rank + c + j);
        by_threshold = run.value[j] * slopes.threshold, run.value[j] *= slopes.value;
      }
      if (grid.dthreshold) Tile::set_result(0, row, c + j, by_threshold);
    }
    if (g.dcore) GradTo<T>::of(g.dcore, g.narrow, 0).put_run(at_core, left, run);
  }
  if (!grid.dthreshold) return;
  sync_block();
  int j = thread_index();
  C sum = 0;
  if (j < Tile::kN)
    for (int i = 0; i < Tile::kM; ++i) sum += Tile::result(0, i, j);
  if (p.each) {
    if (j < Tile::kN && rank + j < p.rank) write(grid.dthreshold + slice / Tile::kM * p.rank + rank + j, sum);
    return;
  }
  if (j < Tile::kN) Tile::set_result(0, 0, j, sum);  // nobody else reads this column
  sync_block();
  if (j) return;
  for (int k = 1; k < Tile::kN; ++k) sum += Tile::result(0, 0, k);
  write(grid.dthreshold + block, sum);
}

template <class T>
PETX_DEVICE void vector_grad(const CoresCall<Compute<T>>& p, const ModeCoresGrads& g, const Grid<T>& grid,
                             int64_t block) {
  using Tile = TileOf<T>;
  using Part = RowBlock<Compute<T>>;
  const int number = static_cast<int>(block), across = static_cast<int>(grid.rank_tiles);
  const int down = static_cast<int>(grid.mode_tiles), split = number / across / down;
  const int64_t rank = int64_t(number % across) * Tile::kN, mode = int64_t(number / across % down) * Tile::kM;
  const int64_t begin = split * grid.size, slices = p.slices();
  int64_t depth = slices - begin < grid.size ? slices - begin : grid.size;
  Rows<T> grads{static_cast<const T*>(g.dcores) + mode * slices + begin, slices, p.modes - mode};
  if (p.gate == Gate::none) {
    const T* core = static_cast<const T*>(p.core) + begin * p.rank;
    Tile::multiply(0, grads, RowBlock<T>::weight_columns(core, rank, p.rank, p.rank), depth);
  } else {
    GatedCore<T, true> core{p, begin * p.rank + rank, rank, p.rank - rank};
    Tile::multiply(0, grads, core, depth);
  }
  const int row = thread_index() / Part::kSharers;
  if (mode + row >= p.modes) return;
#pragma unroll 1
  for (int c = thread_index() % Part::kSharers * Part::kRun; c < Tile::kN; c += Part::kRun * Part::kSharers) {
    typename Part::Run run;
#pragma unroll
    for (int j = 0; j < Part::kRun; ++j) run.value[j] = Tile::result(0, row, c + j);
    Part::store_run(grid.dvectors, ((split * p.modes + mode + row) * p.rank) + rank + c, p.rank - rank - c, run);
  }
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    full_cores_backward(CoresCall<Compute<T>> p, ModeCoresGrads g, Grid<T> grid) {
  int64_t block = block_x();
  if (block < grid.core_blocks)
    core_grad<T>(p, g, grid, block);
  else
    vector_grad<T>(p, g, grid, block - grid.core_blocks);
}

// The first block makes the sums over modes, the others dP.
template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    diagonal_cores_backward(CoresCall<Compute<T>> p, ModeCoresGrads g) {
  using C = Compute<T>;
  C inverse = p.inverse_temperature;
  if (block_x()) {
    int64_t i = (block_x() - 1) * kSumLaunch.threads + thread_index();
    if (i >= p.modes * p.rank) return;
    C value = at<T>(p.core, i % p.rank), limit = threshold_of<T>(p, i % p.rank);
    C weight = with_gate(p.gate, [&]<Gate kind>() { return gated<kind>(value, limit, inverse); });
    GradTo<T>::of(g.dvectors, g.narrow, 1).put(i, at<T>(g.dcores, i) * weight);
    return;
  }
  const auto dthreshold = GradTo<T>::of(g.dthreshold, g.narrow, 2);
  C by_threshold = 0;
  for (int64_t k = thread_index(); k < p.rank; k += kSumLaunch.threads) {
    C sum = 0;
    for (int64_t i = k; i < p.modes * p.rank; i += p.rank) sum += at<T>(g.dcores, i) * at<T>(p.vectors, i);
    GateSlopes<C> slopes = slopes_at<T>(p, k, k);
    if (g.dcore) GradTo<T>::of(g.dcore, g.narrow, 0).put(k, sum * slopes.value);
    if (g.dthreshold && p.each) dthreshold.put(k, sum * slopes.threshold);
    by_threshold += sum * slopes.threshold;
  }
  if (!g.dthreshold || p.each) return;
  Shared<C> parts(0);
  parts.set(thread_index(), by_threshold);
  sync_block();
  if (thread_index()) return;
  for (int k = 1; k < kSumLaunch.threads; ++k) by_threshold += parts.get(k);
  dthreshold.put(0, by_threshold);
}

// One call: its workspace, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;

 public:
  BackwardCall(Workspace& workspace, const ModeCoresParams& params, const ModeCoresGrads& grads)
      : p(params), g(grads), grid_(p, g, workspace) {}

  int run(void* stream) const { return p.diagonal ? diagonal(stream) : full(stream); }

 private:
  int diagonal(void* stream) const {
    int64_t blocks = g.dvectors ? sum_blocks(p.modes * p.rank) : 0;
    return launch(diagonal_cores_backward<T>, 1 + blocks, 1, kSumLaunch.threads, kSumLaunch.threads * sizeof(C), stream,
                  p, g);
  }

  int full(void* stream) const {
    int error = launch(full_cores_backward<T>, grid_.blocks(), 1, TileOf<T>::kThreads, TileOf<T>::shared_bytes(1),
                       stream, p, g, grid_);
    if (error) return error;
    Reductions<T, kFewReductions> sums = {};
    auto add = [&](void* to, int leaf, const C* from, int64_t parts, int64_t count) {
      if (to) sums.each[sums.count++] = {from, GradTo<T>::of(to, g.narrow, leaf), parts, count, count, nullptr};
    };
    add(g.dvectors, 1, grid_.dvectors, grid_.splits, p.modes * p.rank);
    add(g.dthreshold, 2, grid_.dthreshold, p.each ? grid_.slice_tiles : grid_.core_blocks, p.thresholds());
    return launch_reductions(sums, stream);
  }

  const CoresCall<C> p;
  const ModeCoresGrads& g;
  Grid<T> grid_;
};

}  // namespace

int64_t mode_cores_bwd_workspace(const ModeCoresParams& p, const ModeCoresGrads& g) {
  return p.modes && !p.diagonal ? count_workspace<BackwardCall>(p.dtype, p, g) : 0;
}

int mode_cores_bwd(const ModeCoresParams& p, const ModeCoresGrads& g, void* workspace, void* stream) {
  return p.modes ? run_call<BackwardCall>(p.dtype, workspace, stream, p, g) : 0;
}

}  // namespace petx::cuda
