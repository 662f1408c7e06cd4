// Forward of cp_reconstruct on the GPU, all modules in one launch.
//
//   W'_k = W_k + gate(scale A_k U),   A_k = V M_k^T
//
// Bytes: every W_k once from memory and every W'_k once to it; U, V and the cores come from the second-level cache.
// Tiling: a block owns 64 rows of one module and some tiles of 64 columns. It makes A_k of its rows first, leaves it in
// the workspace and reads it back from the second-level cache as operand of every tile, so that no rank is too large.
// A tile of W is asked for before the product that hides its way. The product is short (R deep), hence the small tile:
// what counts is how many loads of W are under way.
// The number of tiles a block takes grows with the call, so that one small weight still fills the machine and many
// weights make A_k only once for 64 rows. Up to a rank of 64, many weights of a 16-bit type go by strips (plan.h): A_k
// has a launch before, and stays in registers.

#include "cuda/cp_reconstruct/strips.cuh"

namespace petx::cuda {
namespace {

struct Table {
  const void* weights[kTableModules];
  void* out[kTableModules];
};

// A launch's parameters may take 4 KB, and before CUDA 12.1 not a byte more.
static_assert(sizeof(ReconstructCall<double>) + sizeof(Table) + 3 * sizeof(int64_t) + sizeof(Mixed<Half>) +
                  sizeof(void*) <=
              4096);

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    reconstruct(ReconstructCall<Compute<T>> p, Table table, int64_t first_module, int64_t groups, int64_t tiles_a_block,
                Mixed<T> all_mixed) {
  using Tiles = ReconstructTile<T>;
  using C = Compute<T>;
  int64_t row_tile = block_x() / groups, group = block_x() % groups;
  Tiles tile(p, first_module + block_y(), row_tile);
  const T* weight = static_cast<const T*>(table.weights[block_y()]);
  T* out = static_cast<T*>(table.out[block_y()]);
  int64_t begin = group * tiles_a_block * 64, end = begin + tiles_a_block * 64;
  if (end > p.d_in) end = p.d_in;

  Mixed<T> mixed = all_mixed.from((block_y() * tiles_of(p.d_out) * groups + block_x()) * 64 * p.rank);
  tile.mix(mixed);
  sync_block();  // A's other values come from other threads
  for (int64_t column = begin; column < end; column += 64) {
    Pack<T> values[Tiles::kThreadPacks];
#pragma unroll
    for (int n = 0; n < Tiles::kThreadPacks; ++n) {
      auto place = tile.place(n, column);
      values[n] = read_pack(weight + tile.index(place, column), place.count);
    }
    tile.make_update(mixed, column);
#pragma unroll
    for (int n = 0; n < Tiles::kThreadPacks; ++n) {
      auto place = tile.place(n, column);
      with_gate(p.gate, [&]<Gate kind>() {
#pragma unroll
        for (int j = 0; j < Tiles::kPack; ++j) {
          C update = tile.update(place.row, place.column + j);
          store(values[n].value[j], load(values[n].value[j]) + tile.template gate<kind>(update));
        }
      });
      write_pack(out + tile.index(place, column), values[n], place.count);
    }
  }
}

// The same by strips. `mixed`: of all modules.
template <class T>
PETX_KERNEL void __launch_bounds__(kStripLaunch.threads, kStripLaunch.blocks)
    reconstruct_strips(ReconstructCall<Compute<T>> p, Table table, int64_t first_module, int64_t groups,
                       int64_t tiles_a_block, Mixed<T> mixed, const T* images) {
  const int64_t row_tile = block_x() / groups, begin = block_x() % groups * tiles_a_block;
  const int64_t module = first_module + block_y(), left = tiles_of(p.d_in) - begin;
  const UpdateStrip<T> strip(p, module, row_tile);
  const auto high = mixed_rows(p, mixed.high, module, row_tile), low = mixed_rows(p, mixed.low, module, row_tile);
  const T* weight = static_cast<const T*>(table.weights[block_y()]);
  T* out = static_cast<T*>(table.out[block_y()]);
  auto add_update = [&](int64_t column, const Shared<Pack<T>>& in, int half) {
    const auto rows = strip.rows();
    Pack<T> packs[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) packs[n] = read_pack(weight + rows.index(n, column), rows.count(n, column));
    typename Strip<T>::Sums update;
    Strip<T>::multiply(update, in, half, low, high);
    with_gate(p.gate, [&]<Gate kind>() {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float values[8];
        unpack(values, packs[n]);
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] += strip.template gate<kind>(update.value(n, j));
        packs[n] = pack<T>(values);
      }
    });
#pragma unroll
    for (int n = 0; n < 2; ++n) write_pack(out + rows.index(n, column), packs[n], rows.count(n, column));
  };
  Strip<T>::each_half(images, begin, left < tiles_a_block ? left : tiles_a_block, add_update);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const CpReconstructParams& params, const void* const* weights, void* const* out)
      : p(params), plan_(p), weights_(weights), out_(out) {
    // Of A, all of it, or one piece for each block of a launch.
    const int64_t rows = plan_.strips ? p.modules * p.d_out : modules(0) * plan_.blocks_a_module() * Tile::kM;
    mixed_ = Mixed<T>::take(workspace, rows * p.rank);
    images_ = workspace.take<T>(plan_.strips ? images_of_columns(p.d_in) : 0);
  }

  int run(void* stream) const {
    if (plan_.strips)
      if (int error = launch_mix(p, mixed_, true, images_, stream)) return error;
    for (int64_t first = 0; first < p.modules; first += kTableModules) {
      Table table = {};
      for (int64_t k = 0; k < modules(first); ++k)
        table.weights[k] = weights_[first + k], table.out[k] = out_[first + k];
      auto start = [&](auto* kernel, int threads, int bytes, auto... more) {
        return launch(kernel, plan_.blocks_a_module(), modules(first), threads, bytes, stream, p, table, first,
                      plan_.shares.count, plan_.shares.each, mixed_, more...);
      };
      if constexpr (sizeof(T) == 2) {
        if (plan_.strips) {
          if (int error = start(reconstruct_strips<T>, kStripLaunch.threads, Strip<T>::kSharedBytes,
                                static_cast<const T*>(images_)))
            return error;
          continue;
        }
      }
      if (int error = start(reconstruct<T>, Tile::kThreads, Tile::shared_bytes(ReconstructTile<T>::kResults)))
        return error;
    }
    return 0;
  }

 private:
  // Of the table that begins with module `first`.
  int64_t modules(int64_t first) const { return p.modules - first < kTableModules ? p.modules - first : kTableModules; }

  const ReconstructCall<Compute<T>> p;
  CpReconstructPlan plan_;
  const void* const* weights_;
  void* const* out_;
  Mixed<T> mixed_;
  T* images_;
};

}  // namespace

int64_t cp_reconstruct_fwd_workspace(const CpReconstructParams& p) {
  return count_workspace<ForwardCall>(p.dtype, p, nullptr, nullptr);
}

int cp_reconstruct_fwd(const CpReconstructParams& p, const void* const* weights, void* const* out, void* workspace,
                       void* stream) {
  return p.d_out && p.d_in ? run_call<ForwardCall>(p.dtype, workspace, stream, p, weights, out) : 0;
}

}  // namespace petx::cuda
