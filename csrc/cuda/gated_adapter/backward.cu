// Backward of the VL-PET site on the GPU.
//
//   dY = s dropout(norm'(dout));  dS = G dY + the gate's own;  dz = (dS up) gelu'(z);  dh = dS + dz down
//
// Launches: gelu(z) again; S and G from the up products and a first pass over their values; where a norm needs its sums
// or a token's gate its gradient, which that pass leaves, another that makes dS; dz; dh and dx; then the sums over
// tokens (token_sums.cuh): weights, vectors, and their splits added up. A token's gate takes launches over rows for its
// numbers, `small` three, since its gate is a mean over a sample, and so is the gradient.
//
// Bytes: h, x, dout, dh and dx once from memory, dS (and the gate's gradient) written once and read by every launch
// behind, all but the first time from the cache. S and G are recomputed from z, as in the forward, whose tiling this
// is. Where passes follow, S and G wait, as they would be stored, in the places of dS and the gate's gradient.
//
// A row's sums are made of those of its tiles, so that they do not depend on how blocks share the columns.

#include "cuda/common/token_sums.cuh"
#include "cuda/gated_adapter/values.cuh"

namespace petx::cuda {
namespace {

// gelu(z) of the adapter or, in the second row of blocks, of the gate.
template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    site_activate(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden) {
  using Block = RowBlock<T>;
  const bool gate = block_y() == 1;
  const int64_t i = (block_x() * kRowLaunch.threads + thread_index()) * Block::kRun;
  const int64_t left = p.rows * (gate ? p.r_g : p.r) - i;
  if (left <= 0) return;
  typename Block::Run run = Block::load_run(gate ? p.gate_z : p.z, i, left);
  SiteView<T>(p, constants).activate(run);
  Block::store_run(gate ? hidden.gate_a : hidden.a, i, left, run);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_direct(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                ColumnShares shares) {
  SiteValues<T, RunTileOf<T>, SiteStage::direct>(p, constants, g, to).run(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_look(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
              ColumnShares shares) {
  SiteValues<T, RunTileOf<T>, SiteStage::look>(p, constants, g, to).run(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_pass(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
              ColumnShares shares) {
  SiteValues<T, RunTileOf<T>, SiteStage::pass>(p, constants, g, to).run(shares);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_direct(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                     ColumnShares shares) {
  SiteValues<T, RunTileOf<T, true>, SiteStage::direct>(p, constants, g, to).run(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_look(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                   ColumnShares shares) {
  SiteValues<T, RunTileOf<T, true>, SiteStage::look>(p, constants, g, to).run(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_pass(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                   ColumnShares shares) {
  SiteValues<T, RunTileOf<T, true>, SiteStage::pass>(p, constants, g, to).run(shares);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    site_gates(GatedAdapterParams p, SiteConstants<T> constants, SiteIntermediate<T> to, GateStage stage) {
  SiteGateRow<T>(p, constants, to).run(stage);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_hidden_grad(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                     int64_t head_tiles) {
  SiteBackward<T>(p, constants, g, to).hidden_grad(HiddenGrad<T>(p, to, head_tiles, TileOf<T>::kN));
}

// The same by tiles of 128 x 32 n.
template <class T, int parts>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_hidden_grad(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                          int64_t head_tiles) {
  using Wide = WideTile<T, parts>;
  const HiddenGrad<T> of(p, to, head_tiles, Wide::kN);
  Wide::multiply_rows(of.d, p.d, p.rows, of.columns(), of.width);
#pragma unroll 1
  for (int half = 0; half < 2; ++half)
    SiteBackward<T>(p, constants, g, to, 2 * block_x() + half).template wide_hidden_grad<Wide>(of, half);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_input_grads(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                     ColumnShares shares, int64_t h_tiles) {
  SiteBackward<T>(p, constants, g, to).input_grads(shares, h_tiles);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_input_grads(GatedAdapterParams p, SiteConstants<T> constants, GatedAdapterGrads g, SiteIntermediate<T> to,
                          ColumnShares shares, int64_t h_tiles) {
  SiteBackward<T, TurnedTile<T>>(p, constants, g, to).input_grads(shares, h_tiles);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;
  using Tile = TileOf<T>;

 public:
  BackwardCall(Workspace& workspace, const GatedAdapterParams& params, const GatedAdapterGrads& grads)
      : p(params), g(grads), plan_(p), constants_(p, {grads.dout, grads.dh, grads.dx, grads.skip}), sums_(p.rows) {
    bool large = p.granularity == Granularity::large, middle_y = p.granularity == Granularity::middle_y;
    bool small = p.granularity == Granularity::small, token_gate = has_token_gate(p);
    to_.parts = plan_.up.tiles * (plan_.up.wide() ? RunTileOf<T, true>::kRowSums : RunTileOf<T>::kRowSums);
    const int64_t parts = to_.parts * p.rows;
    to_.hidden = {workspace.take<T>(p.rows * p.r), workspace.take<T>(p.rows * p.r_g)};
    to_.ds = workspace.take<T>(p.rows * p.d);
    to_.dgate = workspace.take<T>(large ? p.rows * p.d : 0);
    to_.dz = workspace.take<T>(p.rows * p.r);
    to_.dgate_z = workspace.take<T>(p.rows * p.r_g);
    to_.along = workspace.take<C>(p.norm == Norm::none ? 0 : parts);
    to_.mean_part = workspace.take<C>(p.norm == Norm::none ? 0 : parts);
    to_.dots = workspace.take<C>(!token_gate ? 0 : p.norm == Norm::none ? parts : 3 * parts);
    to_.sample_gate = workspace.take<C>(small ? p.rows : 0);
    to_.gate = small ? to_.sample_gate : token_gate ? static_cast<const C*>(p.token_gate) : nullptr;
    to_.dot = workspace.take<C>(small ? p.rows : 0);
    to_.dlogit = workspace.take<C>(token_gate ? p.rows : 0);
    bool gate_vector = g.gate_weight && !large && p.granularity != Granularity::none;
    // A pass that makes no product adds up all of them.
    const bool passes = p.norm != Norm::none || token_gate;
    const void* of_gate = gate_vector ? g.gate_weight : passes && large ? g.gate_bias : nullptr;
    const void* wanted[kVectorGrads] = {of_gate, passes ? g.up_bias : nullptr, g.norm_weight, g.norm_bias};
    for (int sum = 0; sum < kVectorGrads; ++sum)
      to_.columns[sum] = workspace.take<C>(wanted[sum] ? plan_.blocks * p.d : 0);

    auto grad = [&](void* to, int leaf) { return GradTo<T>::of(to, g.narrow, leaf); };
    int64_t rank = p.r / p.heads;
    const void* in = p.reads_x_in_down() ? p.x : p.h;
    sums_.product(grad(g.up_weight, 4), to_.ds, to_.hidden.a, p.d / p.heads, rank, p.heads);
    sums_.product(grad(g.down_weight, 2), to_.dz, in, p.r, p.down_width(), 1);
    if (large) sums_.product(grad(g.gate_weight, 8), to_.dgate, to_.hidden.gate_a, p.d, p.r_g, 1);
    sums_.product(grad(g.gate_down_weight, 6), to_.dgate_z, p.x, p.r_g, p.d_x, 1);
    sums_.column(grad(g.down_bias, 3), to_.dz, nullptr, p.r);
    sums_.column(grad(g.gate_down_bias, 7), to_.dgate_z, nullptr, p.r_g);
    if (token_gate) sums_.column(grad(g.gate_bias, 9), nullptr, to_.dlogit, 1);
    if (small) sums_.column(grad(g.gate_weight, 8), p.x, to_.dlogit, p.d);
    auto of_blocks = [&](GradTo<T> to, VectorGrad which, const void* sigmoid_of = nullptr) {
      sums_.finish(to, to_.columns[which], plan_.blocks, p.d, p.d, sigmoid_of);
    };
    if (passes) {
      of_blocks(grad(g.up_bias, 5), kUpBias);
      if (large) of_blocks(grad(g.gate_bias, 9), kGate);
    } else {
      sums_.column(grad(g.up_bias, 5), to_.ds, nullptr, p.d);
      if (large) sums_.column(grad(g.gate_bias, 9), to_.dgate, nullptr, p.d);
    }
    of_blocks(grad(g.norm_weight, 10), kNormWeight);
    of_blocks(grad(g.norm_bias, 11), kNormBias);
    bool sigmoid = middle_y && p.middle_y == MiddleY::sigmoid;
    if (gate_vector) of_blocks(grad(g.gate_weight, 8).from(small ? p.d : 0), kGate, sigmoid ? p.gate_weight : nullptr);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    const bool token_gate = has_token_gate(p), small = p.granularity == Granularity::small;
    if (int error = activate(stream)) return error;
    if (int error = small ? gates(GateStage::gate, stream) : 0) return error;
    if (p.norm == Norm::none && !token_gate) {
      if (int error = values<SiteStage::direct>(stream)) return error;
    } else {
      if (int error = values<SiteStage::look>(stream)) return error;
      if (int error = token_gate ? gates(GateStage::dot, stream) : 0) return error;
      if (int error = small ? gates(GateStage::dlogit, stream) : 0) return error;
      if (int error = values<SiteStage::pass>(stream)) return error;
    }
    if (int error = hidden_grad(stream)) return error;
    if (int error = input_grads(stream)) return error;
    return sums_.run(stream);
  }

 private:
  int activate(void* stream) const {
    const int64_t most = p.rows * (p.r > p.r_g ? p.r : p.r_g), of_block = kRowLaunch.threads * RowBlock<T>::kRun;
    return launch(site_activate<T>, (most + of_block - 1) / of_block, p.r_g ? 2 : 1, kRowLaunch.threads, 0, stream, p,
                  constants_, to_.hidden);
  }
  template <SiteStage stage>
  int values(void* stream) const {
    auto start = [&](auto* direct, auto* look, auto* pass, int shared_bytes) {
      auto* kernel = stage == SiteStage::direct ? direct : stage == SiteStage::look ? look : pass;
      return launch(kernel, plan_.blocks, plan_.up.count, Tile::kThreads, shared_bytes, stream, p, constants_, g, to_,
                    ColumnShares(plan_.up));
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.up.wide())
        return start(site_wide_direct<T>, site_wide_look<T>, site_wide_pass<T>,
                     PassMemory<T, RunTileOf<T, true>, stage>::kBytes);
    return start(site_direct<T>, site_look<T>, site_pass<T>, PassMemory<T, RunTileOf<T>, stage>::kBytes);
  }
  int gates(GateStage stage, void* stream) const {
    return launch(site_gates<T>, SiteRow<T>::blocks(p.rows), 1, kRowLaunch.threads, 0, stream, p, constants_, to_,
                  stage);
  }
  int hidden_grad(void* stream) const {
    const TileKind kind = plan_.hidden_grad;
    auto start = [&](auto* kernel, int shared_bytes) {
      const int64_t tiles = kind.across(p.r / p.heads);
      return launch(kernel, kind.down(p.rows), p.heads * tiles + kind.across(p.r_g), Tile::kThreads, shared_bytes,
                    stream, p, constants_, g, to_, tiles);
    };
    if constexpr (sizeof(T) == 2) {
      if (kind.parts == 2) return start(site_wide_hidden_grad<T, 2>, WideTile<T, 2>::kSharedBytes);
      if (kind.parts == 3) return start(site_wide_hidden_grad<T, 3>, WideTile<T, 3>::kSharedBytes);
    }
    return start(site_hidden_grad<T>, Tile::shared_bytes(1));
  }
  int input_grads(void* stream) const {
    const bool large = p.granularity == Granularity::large;
    const bool adds = large || p.reads_x_in_down() || !begins_dx(p);
    const TiledColumns columns = plan_.input_grads(p, g.dh ? p.d : 0, g.dx && adds ? p.d_x : 0);
    if (!columns.tiles) return 0;
    auto start = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, plan_.blocks, columns.count, Tile::kThreads, shared_bytes, stream, p, constants_, g, to_,
                    ColumnShares(columns), g.dh ? columns.tiles_of(p.d) : 0);
    };
    if constexpr (sizeof(T) == 2)
      if (columns.wide()) return start(site_wide_input_grads<T>, TurnedTile<T>::shared_bytes(large ? 2 : 1));
    return start(site_input_grads<T>, Tile::shared_bytes(large ? 2 : 1));
  }

  const GatedAdapterParams& p;
  const GatedAdapterGrads& g;
  GatedAdapterPlan plan_;
  SiteConstants<T> constants_;
  SiteIntermediate<T> to_ = {};
  TokenSums<T, 4, 6, 12> sums_;
};

}  // namespace

int64_t gated_adapter_bwd_workspace(const GatedAdapterParams& p, const GatedAdapterGrads& g) {
  return p.rows ? count_workspace<BackwardCall>(p.dtype, p, g) : 0;
}

// With no rows the caller's gradients are zeros already.
int gated_adapter_bwd(const GatedAdapterParams& p, const GatedAdapterGrads& g, void* workspace, void* stream) {
  return p.rows ? run_call<BackwardCall>(p.dtype, workspace, stream, p, g) : 0;
}

}  // namespace petx::cuda
