// Backward of cp_reconstruct on the GPU, for all modules at once. With A_k = V M_k^T:
//
//   D_k = dW'_k gate'(scale A_k U);   dA_k = D_k U^T;   dU = scale sum_k A_k^T D_k
//   dM_k = scale dA_k^T V;   dV = scale sum_k dA_k M_k;   dthreshold = sum dW'_k gate'_t
//
// Launches, each left out where nobody wants its result: A of all modules; blocks of 64 rows for dA and the threshold;
// blocks of 64 columns for dU; and what these leave, finished and added up.
// Bytes: dW' twice from memory or the second-level cache, once by its rows and once by its columns. The other way, dU
// in the row blocks, would write R x d_in floats for every 64 rows. A, dA (R values per row of a module) and the
// splits of dU stay in the cache.
// Tiling: both kinds of block recompute the update's 64 x 64 tile, turn it into D in the block's own 64 x 64 values of
// the workspace, and read it back as operand. A block sums 64 columns of dA, or 64 x 64 values of dU, in shared memory;
// a rank above 64 takes more blocks, each of which makes the tile again. Nothing of a weight's size is stored.

#include <algorithm>

#include "cuda/cp_reconstruct/block.cuh"

namespace petx::cuda {
namespace {

struct Table {
  const void* dout[kTableModules];
};

// What the kernels leave for one another. Items are the row tiles of all modules, module after module.
template <class T>
struct Intermediate {
  using C = Compute<T>;
  Mixed<T> mixed;  // [K, d_out, R]
  T* tiles;        // [blocks, 64, 64], D of the tile at hand
  T* dmixed;       // [d_out, K, R] or null
  C* du;           // [splits, R, d_in] or null
  C* dthreshold;   // [items] or null
};

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
                           int64_t row_tile, T* scratch)
      : tile(p, module, row_tile),
        kind_(p.gate),
        mixed(to.mixed.from((module * p.d_out + tile.first) * p.rank)),
        dout_(static_cast<const T*>(dout)),
        scratch_(scratch) {}

  // D of the tile from `column` on into `scratch`, ready for the block; returns this thread's share of the
  // threshold's gradient.
  PETX_DEVICE C make(int64_t column) const {
    Pack<T> values[Tiles::kThreadPacks];
#pragma unroll
    for (int n = 0; n < Tiles::kThreadPacks; ++n) {
      auto place = tile.place(n, column);
      values[n] = tile.read_pack(dout_ + tile.index(place, column), place.count);
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
      tile.write_pack(scratch_ + place.row * 64 + place.column, values[n], Tiles::kPack);
    }
    sync_block();
    return dthreshold;
  }

 private:
  const T* dout_;
  T* scratch_;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mix_all(ReconstructCall<Compute<T>> p, Mixed<T> mixed) {
  int64_t module = block_x() / tiles_of(p.d_out);
  ReconstructTile<T> tile(p, module, block_x() % tiles_of(p.d_out));
  tile.mix(mixed.from((module * p.d_out + tile.first) * p.rank));
}

// Block (row tile and chunk of 64 of the rank, module).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    row_blocks(ReconstructCall<Compute<T>> p, Table table, int64_t first_module, int64_t chunks, Intermediate<T> to) {
  using Tile = TileOf<T>;
  using C = Compute<T>;
  int64_t row_tile = block_x() / chunks, chunk = block_x() % chunks;
  int64_t module = first_module + block_y(), begin = chunk * 64, width = p.modules * p.rank;
  T* scratch = to.tiles ? to.tiles + (block_y() * tiles_of(p.d_out) * chunks + block_x()) * 64 * 64 : nullptr;
  GateBackward<T> gate(p, to, table.dout[block_y()], module, row_tile, scratch);
  int64_t first = gate.tile.first, rows = gate.tile.rows;
  const T* u = static_cast<const T*>(p.u) + begin * p.d_in;
  TileSum<T> sum;
  C dthreshold = 0;
  if (p.gate == Gate::none) {
    const T* dout = static_cast<const T*>(table.dout[block_y()]) + first * p.d_in;
    sum.add_product(Rows<T>{dout, p.d_in, rows}, Rows<T>{u, p.d_in, p.rank - begin}, p.d_in);
  } else {
    for (int64_t column = 0; column < p.d_in; column += 64) {
      dthreshold += gate.make(column);
      if (!to.dmixed) continue;
      int64_t depth = p.d_in - column < 64 ? p.d_in - column : 64;
      Tile::multiply(0, Rows<T>{scratch, 64, rows}, Rows<T>{u + column, p.d_in, p.rank - begin}, depth);
      sum.add();
    }
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

// Block (tile of columns and chunk of 64 of the rank, split of the table's items).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    column_blocks(ReconstructCall<Compute<T>> p, Table table, int64_t first_module, int64_t items, int64_t split_items,
                  int64_t first_split, Intermediate<T> to) {
  using Tile = TileOf<T>;
  int64_t chunks = tiles_of(p.rank), column = block_x() / chunks * 64, begin = block_x() % chunks * 64;
  T* scratch = to.tiles ? to.tiles + (block_y() * tiles_of(p.d_in) * chunks + block_x()) * 64 * 64 : nullptr;
  TileSum<T> sum;
  int64_t end = (block_y() + 1) * split_items < items ? (block_y() + 1) * split_items : items;
  for (int64_t item = block_y() * split_items; item < end; ++item) {
    int64_t module = item / tiles_of(p.d_out), row_tile = item % tiles_of(p.d_out);
    const T* dout = static_cast<const T*>(table.dout[module]);
    GateBackward<T> gate(p, to, dout, first_module + module, row_tile, scratch);
    Columns<T> a{gate.mixed.high + begin, p.rank, p.rank - begin};
    if (p.gate == Gate::none) {
      Columns<T> d{dout + gate.tile.first * p.d_in + column, p.d_in, p.d_in - column};
      Tile::multiply(0, a, d, gate.tile.rows);
    } else {
      gate.make(column);
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

// The last launch: blocks of each kind follow one another.
struct FinishGrid {
  int64_t dv, dcores, du, dthreshold;
  PETX_HD int64_t blocks() const { return dv + dcores + du + dthreshold; }
};

template <class T>
class Finish {
  using Tile = TileOf<T>;
  using C = Compute<T>;

 public:
  PETX_DEVICE Finish(const ReconstructCall<C>& params, const CpReconstructGrads& grads, const Intermediate<T>& from,
                     int64_t splits)
      : p(params), g(grads), from_(from), splits_(splits), width_(p.modules * p.rank) {}

  PETX_DEVICE void dv(int64_t block) const {
    if (p.diagonal) {
      int64_t e = block * Tile::kThreads + thread_index();
      if (e >= p.d_out * p.rank) return;
      C sum = 0;
      for (int64_t i = e % p.rank; i < width_; i += p.rank)
        sum += at<T>(from_.dmixed, e / p.rank * width_ + i) * at<T>(p.cores, i);
      write(static_cast<C*>(g.v) + e, sum * p.scale);
      return;
    }
    int64_t first = block / tiles_of(p.rank) * 64, begin = block % tiles_of(p.rank) * 64;
    Rows<T> rows{from_.dmixed + first * width_, width_, p.d_out - first};
    Columns<T> columns{static_cast<const T*>(p.cores) + begin, p.rank, p.rank - begin};
    store_product(rows, columns, width_, static_cast<C*>(g.v), first, p.d_out, begin);
  }

  PETX_DEVICE void dcores(int64_t block) const {
    if (p.diagonal) return diagonal_dcores(block);
    int64_t tiles = tiles_of(p.rank), module = block / tiles / tiles;
    int64_t first = block / tiles % tiles * 64, begin = block % tiles * 64;
    Columns<T> rows{from_.dmixed + module * p.rank + first, width_, p.rank - first};
    Columns<T> columns{static_cast<const T*>(p.v) + begin, p.rank, p.rank - begin};
    C* to = static_cast<C*>(g.cores) + module * p.rank * p.rank;
    store_product(rows, columns, p.d_out, to, first, p.rank, begin);
  }

  PETX_DEVICE void du(int64_t block) const {
    int64_t count = p.rank * p.d_in, e = block * Tile::kThreads + thread_index();
    if (e >= count) return;
    C sum = 0;
    for (int64_t split = 0; split < splits_; ++split) sum += read(from_.du + split * count + e);
    write(static_cast<C*>(g.u) + e, sum * p.scale);
  }

  PETX_DEVICE void dthreshold(int64_t block) const {
    int64_t k = block * Tile::kThreads + thread_index();
    if (k >= p.thresholds) return;
    int64_t items = tiles_of(p.d_out) * (p.thresholds == 1 ? p.modules : 1);
    C sum = 0;
    for (int64_t i = 0; i < items; ++i) sum += read(from_.dthreshold + k * items + i);
    write(static_cast<C*>(g.threshold) + k, sum);
  }

 private:
  // The scaled product into `to` [rows, R], from row `first` and column `begin` on.
  template <class A>
  PETX_DEVICE void store_product(const A& a, const Columns<T>& b, int64_t depth, C* to, int64_t first, int64_t rows,
                                 int64_t begin) const {
    TileSum<T> sum;
    sum.add_product(a, b, depth);
#pragma unroll 1
    for (int n = 0; n < TileSum<T>::kValues; ++n) {
      int64_t i = first + TileSum<T>::row(n), j = begin + TileSum<T>::column();
      if (i < rows && j < p.rank) write(to + i * p.rank + j, sum.value(n) * p.scale);
    }
  }

  // 32 neighbouring values a warp; the eight warps take every eighth row, and the first adds them up.
  PETX_DEVICE void diagonal_dcores(int64_t block) const {
    int lane = thread_index() % 32, warp = thread_index() / 32;
    int64_t i = block * 32 + lane;
    constexpr int64_t kRows = 512;
    C sum = 0;
    for (int64_t first = 0; i < width_ && first < p.d_out; first += kRows) {
      int64_t end = first + kRows < p.d_out ? first + kRows : p.d_out;
      C part = 0;
      for (int64_t row = first + warp; row < end; row += Tile::kThreads / 32)
        part += at<T>(from_.dmixed, row * width_ + i) * at<T>(p.v, row * p.rank + i % p.rank);
      sum += part;
    }
    Tile::set_result(0, warp, lane, sum);
    sync_block();
    if (warp != 0 || i >= width_) return;
    for (int other = 1; other < Tile::kThreads / 32; ++other) sum += Tile::result(0, other, lane);
    write(static_cast<C*>(g.cores) + i, sum * p.scale);
  }

  const ReconstructCall<C>& p;
  const CpReconstructGrads& g;
  const Intermediate<T>& from_;
  int64_t splits_, width_;
};

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
    by_rows_ = through_mixed || g.threshold;
    needs_mixed_ = g.u || (gated && by_rows_);
    row_chunks_ = through_mixed ? chunks_ : 1;
    int64_t blocks = by_rows_ ? modules(0) * rows_ * row_chunks_ : 0;  // of the largest launch that makes tiles
    for (int64_t first = 0; g.u && first < p.modules; first += kTableModules) {
      Splits splits(modules(first) * rows_, tiles_of(p.d_in) * chunks_);
      splits_ += splits.count;
      blocks = std::max(blocks, splits.count * tiles_of(p.d_in) * chunks_);
    }
    to_.mixed = Mixed<T>::take(workspace, needs_mixed_ ? p.modules * p.d_out * p.rank : 0);
    to_.tiles = workspace.take<T>(gated ? blocks * 64 * 64 : 0);
    to_.dmixed = workspace.take<T>(through_mixed ? p.d_out * p.modules * p.rank : 0);
    to_.du = workspace.take<C>(g.u ? splits_ * p.rank * p.d_in : 0);
    to_.dthreshold = workspace.take<C>(g.threshold ? p.modules * rows_ : 0);
  }

  int run(void* stream) const {
    if (needs_mixed_)
      if (int error = start(mix_all<T>, p.modules * rows_, 1, stream, p, to_.mixed)) return error;
    int64_t first_split = 0;
    for (int64_t first = 0; first < p.modules; first += kTableModules) {
      Table table = {};
      for (int64_t k = 0; k < modules(first); ++k) table.dout[k] = dout_[first + k];
      if (by_rows_)
        if (int error =
                start(row_blocks<T>, rows_ * row_chunks_, modules(first), stream, p, table, first, row_chunks_, to_))
          return error;
      if (!g.u) continue;
      Splits splits(modules(first) * rows_, tiles_of(p.d_in) * chunks_);
      if (int error = start(column_blocks<T>, tiles_of(p.d_in) * chunks_, splits.count, stream, p, table, first,
                            modules(first) * rows_, splits.size, first_split, to_))
        return error;
      first_split += splits.count;
    }
    FinishGrid grid = {};
    auto blocks_of = [](int64_t values, int64_t a_block) { return (values + a_block - 1) / a_block; };
    if (g.v) grid.dv = p.diagonal ? blocks_of(p.d_out * p.rank, Tile::kThreads) : rows_ * chunks_;
    if (g.cores) grid.dcores = p.diagonal ? blocks_of(p.modules * p.rank, 32) : p.modules * chunks_ * chunks_;
    if (g.u) grid.du = blocks_of(p.rank * p.d_in, Tile::kThreads);
    if (g.threshold) grid.dthreshold = blocks_of(p.thresholds, Tile::kThreads);
    return grid.blocks() ? start(finish<T>, grid.blocks(), 1, stream, p, g, to_, splits_, grid) : 0;
  }

 private:
  // Of the table that begins with module `first`.
  int64_t modules(int64_t first) const { return p.modules - first < kTableModules ? p.modules - first : kTableModules; }

  template <class... Parameters, class... Arguments>
  static int start(void (*kernel)(Parameters...), int64_t x, int64_t y, void* stream, Arguments... arguments) {
    return launch(kernel, x, y, Tile::kThreads, TileSum<T>::kSharedBytes, stream, arguments...);
  }

  const ReconstructCall<C> p;
  const CpReconstructGrads& g;
  const void* const* dout_;
  int64_t rows_, chunks_, row_chunks_, splits_ = 0;  // tiles of rows, of the rank, splits of dU
  bool by_rows_, needs_mixed_;
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
