// Backward of cp_reconstruct on the GPU, for all modules at once. With A_k = V M_k^T:
//
//   D_k = dW'_k gate'(scale A_k U);   dA_k = D_k U^T;   dU = scale sum_k A_k^T D_k
//   dM_k = scale dA_k^T V;   dV = scale sum_k dA_k M_k;   dthreshold = sum dW'_k gate'_t
//
// Launches, each left out where nobody wants its result: A of all modules; blocks of 64 rows for dA and the threshold;
// blocks of 64 columns for dU; and what these leave, finished and added up. Where plan.h says strips, the rows go by
// these (row_strips.cuh), the first launch makes the images of U too, and stored D goes to wide_columns, 128 columns a
// block.
// Bytes: dW' once from memory; D once written and twice read, by strips once, which add it to dA as they make it,
// through the second-level cache where it holds it. dU in the row blocks would write R x d_in floats for every 64 rows.
// A, dA (R values per row of a module) and the splits of dU stay in the cache.
// Tiling: a block of rows recomputes the update tile by tile, turns it into D, leaves that in the workspace and reads
// its whole rows back as operand. Blocks of columns read D as one matrix of all rows of all modules: to make it again
// would take six times as many instructions as to multiply it. The workspace holds stored_bytes() of it at most, so
// that more modules take more launches; where one module's D is larger, blocks of columns make D themselves, a tile at
// a time. A block sums 64 columns of dA, or 64 x 64 values of dU, in shared memory; a rank above 64 takes more blocks
// of rows, each of which makes the tile again.

#include <algorithm>

#include "cuda/common/wide_tile.cuh"
#include "cuda/cp_reconstruct/row_strips.cuh"

namespace petx::cuda {
namespace {

// D of a tile of one module's rows, through the gate's slopes.
template <class T>
class GateBackward {
 public:
  using Tiles = ReconstructTile<T>;
  using Tile = TileOf<T>;
  using C = Compute<T>;
  const Tiles tile;
  const Gate kind_;
  const Mixed<T> mixed;  // A of these rows

  PETX_DEVICE GateBackward(const ReconstructCall<C>& p, const Intermediate<T>& to, const void* dout, int64_t module,
                           int64_t row_tile)
      : tile(p, module, row_tile),
        kind_(p.gate),
        mixed(to.mixed.from((module * p.d_out + tile.first) * p.rank)),
        dout_(static_cast<const T*>(dout)) {}

  // D of the tile from `column` on into `to`, whose rows lie `stride` apart, ready for the block; returns this thread's
  // share of the threshold's gradient.
  PETX_DEVICE C make(int64_t column, T* to, int64_t stride) const {
    Pack<T> values[Tiles::kThreadPacks];
#pragma unroll
    for (int n = 0; n < Tiles::kThreadPacks; ++n) {
      auto place = tile.place(n, column);
      values[n] = read_pack(dout_ + tile.index(place, column), place.count);
    }
    tile.make_update(mixed, column);
    C dthreshold = 0;
#pragma unroll
    for (int n = 0; n < Tiles::kThreadPacks; ++n) {
      auto place = tile.place(n, column);
      with_gate(kind_, [&]<Gate kind>() {
#pragma unroll
        for (int j = 0; j < Tiles::kPack; ++j) {
          GateSlopes<C> slopes = tile.template slopes<kind>(tile.update(place.row, place.column + j));
          C d = load(values[n].value[j]);  // zero outside the matrix
          dthreshold += d * slopes.threshold;
          store(values[n].value[j], d * slopes.value);
        }
      });
      if (place.row < tile.rows) write_pack(to + place.row * stride + place.column, values[n], Tiles::kPack);
    }
    sync_block();
    return dthreshold;
  }

 private:
  const T* dout_;
};

// Block (row tile and chunk of 64 of the rank, module).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    row_blocks(ReconstructCall<Compute<T>> p, DoutTable table, int64_t first_module, int64_t chunks,
               Intermediate<T> to) {
  using Tile = TileOf<T>;
  using C = Compute<T>;
  int64_t row_tile = block_x() / chunks, chunk = block_x() % chunks;
  int64_t module = first_module + block_y(), begin = chunk * 64, width = p.modules * p.rank;
  GateBackward<T> gate(p, to, table.dout[block_y()], module, row_tile);
  int64_t first = gate.tile.first, rows = gate.tile.rows;
  const T* u = static_cast<const T*>(p.u) + begin * p.d_in;
  TileSum<T> sum;
  C dthreshold = 0;
  // D of the rows, or a tile of it at a time; the first chunk of ranks stores what the others make again.
  const bool gated = p.gate != Gate::none, stores = to.stored && chunk == 0, whole = !gated || stores;
  T* made = stores ? to.stored + (block_y() * p.d_out + first) * to.stride
                   : to.tiles + (block_y() * tiles_of(p.d_out) * chunks + block_x()) * 64 * 64;
  const int64_t stride = stores ? to.stride : 64, piece = whole ? p.d_in : 64;
  Rows<T> d{made, stride, rows};
  if (!gated) d = {static_cast<const T*>(table.dout[block_y()]) + first * p.d_in, p.d_in, rows};
#pragma unroll 1
  for (int64_t from = 0; from < p.d_in; from += piece) {
    const int64_t depth = p.d_in - from < piece ? p.d_in - from : piece;
#pragma unroll 1
    for (int64_t column = 0; gated && column < depth; column += 64)
      dthreshold += gate.make(from + column, made + column, stride);
    if (to.dmixed) sum.add_product(d, Rows<T>{u + from, p.d_in, p.rank - begin}, depth);
  }
  if (to.dmixed)
#pragma unroll 1
    for (int n = 0; n < TileSum<T>::kValues; ++n) {
      int i = TileSum<T>::row(n), j = TileSum<T>::column();
      if (i < rows && begin + j < p.rank)
        put<T>(to.dmixed, (first + i) * width + module * p.rank + begin + j, sum.value(n));
    }
  if (!to.dthreshold || chunk != 0) return;
  for (int mask = 16; mask > 0; mask /= 2) dthreshold += shuffle_xor(dthreshold, mask);
  sync_block();  // of result 0, of which others may still be reading
  if (thread_index() % 32 == 0) Tile::set_result(0, 0, thread_index() / 32, dthreshold);
  sync_block();
  if (thread_index() != 0) return;
  for (int warp = 1; warp < Tile::kThreads / 32; ++warp) dthreshold += Tile::result(0, 0, warp);
  write(to.dthreshold + module * tiles_of(p.d_out) + row_tile, dthreshold);
}

// Items a split of dU sums, and splits: those that fill the machine in one wave of `blocks` each, as the shape says.
// More than 24 would write more of their sums than they read of dW'.
struct Splits {
  int64_t size, count;
  Splits(int64_t items, int64_t blocks)
      : size(tiles_of_a_share(blocks, items, 0, 24)), count(size ? (items + size - 1) / size : 0) {}
};

template <class T>
using ColumnTile = WideTile<T, 2>;

// Block (tile of columns and chunk of 64 of the rank, split of the table's items, which are 64 rows of one module or,
// where D is stored, of all).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    column_blocks(ReconstructCall<Compute<T>> p, DoutTable table, int64_t first_module, int64_t rows, int64_t items,
                  int64_t split_items, int64_t first_split, Intermediate<T> to) {
  using Tile = TileOf<T>;
  int64_t chunks = tiles_of(p.rank), column = block_x() / chunks * 64, begin = block_x() % chunks * 64;
  T* scratch = to.tiles ? to.tiles + (block_y() * tiles_of(p.d_in) * chunks + block_x()) * 64 * 64 : nullptr;
  TileSum<T> sum;
  int64_t end = (block_y() + 1) * split_items < items ? (block_y() + 1) * split_items : items;
  if (to.stored) {
    const int64_t row = block_y() * split_items * 64, depth = end * 64 < rows ? end * 64 - row : rows - row;
    const T* a = to.mixed.high + (first_module * p.d_out + row) * p.rank + begin;
    const T* d = to.stored + row * to.stride + column;
    sum.add_product(Columns<T>{a, p.rank, p.rank - begin}, Columns<T>{d, to.stride, p.d_in - column}, depth);
    end = 0;
  }
  for (int64_t item = block_y() * split_items; item < end; ++item) {
    int64_t module = item / tiles_of(p.d_out), row_tile = item % tiles_of(p.d_out);
    const T* dout = static_cast<const T*>(table.dout[module]);
    GateBackward<T> gate(p, to, dout, first_module + module, row_tile);
    Columns<T> a{gate.mixed.high + begin, p.rank, p.rank - begin};
    if (p.gate == Gate::none) {
      Columns<T> d{dout + gate.tile.first * p.d_in + column, p.d_in, p.d_in - column};
      Tile::multiply(0, a, d, gate.tile.rows);
    } else {
      gate.make(column, scratch, 64);
      Tile::multiply(0, a, Columns<T>{scratch, 64, 64}, gate.tile.rows);
    }
    sum.add();
  }
  Compute<T>* du = to.du + (first_split + block_y()) * p.rank * p.d_in;
#pragma unroll 1
  for (int n = 0; n < TileSum<T>::kValues; ++n) {
    int64_t i = begin + TileSum<T>::row(n), j = column + TileSum<T>::column();
    if (i < p.rank && j < p.d_in) write(du + i * p.d_in + j, sum.value(n));
  }
}

// The same of D that is stored, by tiles of 128 columns and all ranks: block (tile, split of the rows of all modules).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    wide_columns(ReconstructCall<Compute<T>> p, int64_t first_module, int64_t rows, int64_t split_rows,
                 int64_t first_split, Intermediate<T> to) {
  using Tile = ColumnTile<T>;
  constexpr int64_t kDepth = 512;  // no long sum is kept in one float
  const int64_t column = block_x() * Tile::kM, begin = block_y() * split_rows;
  const int64_t end = begin + split_rows < rows ? begin + split_rows : rows;
  typename Tile::Sums sums;
#pragma unroll 1
  for (int64_t row = begin; row < end; row += kDepth) {
    const Columns<T> d{to.stored + row * to.stride + column, to.stride, to.stride - column};
    const Columns<T> a{to.mixed.high + (first_module * p.d_out + row) * p.rank, p.rank, p.rank};
    typename Tile::Sums part;
    Tile::multiply(part, d, a, end - row < kDepth ? end - row : kDepth);
    Tile::add(sums, part);
    sync_block();  // the next product's stages are this one's
  }
  float* du = to.du + (first_split + block_y()) * p.rank * p.d_in + column;
  Tile::each_pair(sums, [&](int j, int i, float first, float second) {
    if (column + j >= p.d_in) return;
    if (i < p.rank) write(du + i * p.d_in + j, first);
    if (i + 1 < p.rank) write(du + (i + 1) * p.d_in + j, second);
  });
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    finish(ReconstructCall<Compute<T>> p, CpReconstructGrads g, Intermediate<T> from, int64_t splits, FinishGrid grid) {
  Finish<T> all(p, g, from, splits);
  int64_t block = block_x();
  if (block < grid.dv) return all.dv(block);
  block -= grid.dv;
  if (block < grid.dcores) return all.dcores(block);
  block -= grid.dcores;
  if (block < grid.du) return all.du(block);
  all.dthreshold(block - grid.du);
}

// Bytes of D that lie in the workspace at a time: 56 modules of 768 by 768 in a 16-bit type. PETX_CUDA_STORED_BYTES
// overrides.
inline int64_t stored_bytes() { return env_int_or("PETX_CUDA_STORED_BYTES", 64 << 20, INT64_MAX); }

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using Tile = TileOf<T>;
  using C = Compute<T>;

 public:
  BackwardCall(Workspace& workspace, const CpReconstructParams& params, const void* const* dout,
               const CpReconstructGrads& grads)
      : p(params), g(grads), dout_(dout), rows_(tiles_of(p.d_out)), chunks_(tiles_of(p.rank)) {
    bool gated = p.gate != Gate::none, through_mixed = g.v || g.cores;
    row_chunks_ = through_mixed ? chunks_ : 1;
    to_.stride = tiles_of(p.d_in) * 64;
    const int64_t of_module = p.d_out * to_.stride * static_cast<int64_t>(sizeof(T));
    const int64_t most = stored_bytes();
    strips_ = CpReconstructPlan(p).backward_strips;
    // Whoever wants dU or dA, so that the order of either sum does not depend on whether the other is wanted; strips
    // make dA of what they have.
    stores_ = gated && (g.u || (through_mixed && !strips_)) && of_module <= most;
    by_rows_ = through_mixed || g.threshold || (stores_ && g.u);
    needs_mixed_ = g.u || (gated && by_rows_);
    group_ = stores_ && of_module ? std::min(kTableModules, most / of_module) : kTableModules;
    // Blocks of the largest launch that makes tiles and keeps none of them.
    int64_t blocks = by_rows_ && !strips_ && (!stores_ || row_chunks_ > 1) ? modules(0) * rows_ * row_chunks_ : 0;
    for (int64_t first = 0; g.u && first < p.modules; first += group_) {
      const Splits splits(items(first), column_blocks_a_split());
      splits_ += splits.count;
      if (!stores_) blocks = std::max(blocks, splits.count * column_blocks_a_split());
    }
    to_.mixed = Mixed<T>::take(workspace, needs_mixed_ ? p.modules * p.d_out * p.rank : 0);
    to_.tiles = workspace.take<T>(gated ? blocks * 64 * 64 : 0);
    to_.stored = workspace.take<T>(stores_ ? modules(0) * p.d_out * to_.stride : 0);
    images_ = workspace.take<T>(strips_ && by_rows_ ? images_of_columns(p.d_in) : 0);
    to_.dmixed = workspace.take<T>(through_mixed ? p.d_out * p.modules * p.rank : 0);
    to_.du = workspace.take<C>(g.u ? splits_ * p.rank * p.d_in : 0);
    to_.dthreshold = workspace.take<C>(g.threshold ? p.modules * rows_ : 0);
  }

  int run(void* stream) const {
    if (needs_mixed_ || images_)
      if (int error = launch_mix(p, to_.mixed, needs_mixed_, images_, stream)) return error;
    int64_t first_split = 0;
    for (int64_t first = 0; first < p.modules; first += group_) {
      DoutTable table = {};
      for (int64_t k = 0; k < modules(first); ++k) table.dout[k] = dout_[first + k];
      if (by_rows_)
        if (int error = by_rows(table, first, stream)) return error;
      if (!g.u) continue;
      const Splits splits(items(first), column_blocks_a_split());
      if (int error = by_columns(table, first, splits, first_split, stream)) return error;
      first_split += splits.count;
    }
    FinishGrid grid = {};
    auto blocks_of = [](int64_t values, int64_t a_block) { return (values + a_block - 1) / a_block; };
    if (g.v) grid.dv = p.diagonal ? blocks_of(p.d_out * p.rank, Tile::kThreads) : rows_ * chunks_;
    if (g.cores) grid.dcores = p.diagonal ? blocks_of(p.modules * p.rank, 32) : p.modules * chunks_ * chunks_;
    if (g.u) grid.du = blocks_of(p.rank * p.d_in, Tile::kThreads);
    if (g.threshold) grid.dthreshold = blocks_of(p.thresholds, Finish<T>::kThresholds);
    return grid.blocks() ? start(finish<T>, grid.blocks(), 1, stream, p, g, to_, splits_, grid) : 0;
  }

 private:
  // Of the launches that begin with module `first`: modules, and 64 rows of them.
  int64_t modules(int64_t first) const { return std::min(p.modules - first, group_); }
  int64_t items(int64_t first) const { return stores_ ? tiles_of(modules(first) * p.d_out) : modules(first) * rows_; }

  int by_rows(const DoutTable& table, int64_t first, void* stream) const {
    if constexpr (sizeof(T) == 2)
      if (strips_)
        return launch(row_strips<T>, rows_, modules(first), kStripLaunch.threads,
                      Strip<T>::kSharedBytes + Strip<T>::KeptRows::kSharedBytes, stream, p, table, first,
                      static_cast<const T*>(images_), to_);
    return start(row_blocks<T>, rows_ * row_chunks_, modules(first), stream, p, table, first, row_chunks_, to_);
  }

  int by_columns(const DoutTable& table, int64_t first, const Splits& splits, int64_t first_split, void* stream) const {
    const int64_t blocks = column_blocks_a_split(), rows = modules(first) * p.d_out;
    if constexpr (sizeof(T) == 2)
      if (by_wide_columns())
        return launch(wide_columns<T>, blocks, splits.count, kTileLaunch.threads, ColumnTile<T>::kSharedBytes, stream,
                      p, first, rows, splits.size * 64, first_split, to_);
    return start(column_blocks<T>, blocks, splits.count, stream, p, table, first, rows, items(first), splits.size,
                 first_split, to_);
  }
  bool by_wide_columns() const { return strips_ && stores_; }
  int64_t column_blocks_a_split() const {
    return by_wide_columns() ? (p.d_in + TileKind::kWideRows - 1) / TileKind::kWideRows : tiles_of(p.d_in) * chunks_;
  }

  template <class... Parameters, class... Arguments>
  static int start(void (*kernel)(Parameters...), int64_t x, int64_t y, void* stream, Arguments... arguments) {
    return launch(kernel, x, y, Tile::kThreads, TileSum<T>::kSharedBytes, stream, arguments...);
  }

  const ReconstructCall<C> p;
  const CpReconstructGrads& g;
  const void* const* dout_;
  int64_t rows_, chunks_, row_chunks_, splits_ = 0;  // tiles of rows, of the rank, splits of dU
  int64_t group_;                                    // modules of a launch
  bool by_rows_, needs_mixed_, stores_, strips_;
  T* images_;
  Intermediate<T> to_ = {};
};

}  // namespace

int64_t cp_reconstruct_bwd_workspace(const CpReconstructParams& p, const CpReconstructGrads& g) {
  return count_workspace<BackwardCall>(p.dtype, p, nullptr, g);
}

int cp_reconstruct_bwd(const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g,
                       void* workspace, void* stream) {
  return p.d_out && p.d_in ? run_call<BackwardCall>(p.dtype, workspace, stream, p, dout, g) : 0;
}

}  // namespace petx::cuda
