// Backward of PETAL's update on the GPU.
//
//   dg_k = dy_k V;  dV = sum_k dy_k^T g_k;  dM_k = drop_k(h)^T dg_k;  dh = sum_k drop_k(dg_k M_k^T)
//   dU = dh^T x;  dx = dh U
//
// Launches: one over blocks of rows and projections (dg_k, and g_k recomputed from h), one over blocks of rows and
// shares of dx's columns (dh, which each share makes for itself, and dx), then the sums over tokens (token_sums.cuh):
// the products, and their splits added up. A diagonal core's gradient is a sum of columns, one launch more. Bytes: the
// dy_k and x twice, the second time mostly from the cache, dx once; beside them [N, R] tensors only. What nobody asked
// for is neither computed nor stored. Tiling: that of the forward. The sum over k that is dh stays in floats, in the
// tile's place for results.

#include "cuda/common/token_sums.cuh"
#include "cuda/mode_update/block.cuh"

namespace petx::cuda {
namespace {

// What the row blocks leave for each other and for the sums over tokens, [N, R] each, null where not needed. Without
// dropout the kept h is h.
template <class T>
struct Intermediate {
  T* kept[kMostModes];
  T* mixed[kMostModes];  // g_k
  T* dg[kMostModes];
  T* by_core[kMostModes];  // dg_k times the kept h, for diagonal cores
  T* dh;
  T* more_dh;  // of all shares but the first
};

template <class T>
class Backward : ModeBlock<T> {
  using Base = ModeBlock<T>;
  using Base::p, Base::row, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;
  static constexpr int kProduct = 0, kSum = 1;  // slots of results

 public:
  PETX_DEVICE Backward(const ModeCall<C>& call, const ModeUpdateGrads& grads, const Intermediate<T>& to)
      : Base(call, block_x()), g(grads), to_(to) {}

  // Of projection k: dg_k, the kept h, g_k.
  PETX_DEVICE void output(int64_t k) const {
    if (!of_mode(g.dy, k)) return;
    const T* h = static_cast<const T*>(p.h);
    if (of_mode(to_.dg, k)) output_grad(k);
    if (of_mode(to_.kept, k)) this->keep(h, k, false, of_mode(to_.kept, k));
    if (!of_mode(to_.mixed, k)) return;
    if (p.diagonal) {
      this->keep(h, k, true, of_mode(to_.mixed, k));
    } else {
      this->mix(p.mask.drops() ? of_mode(to_.kept, k) : h, k, of_mode(to_.mixed, k));
    }
  }

  // dh, and this share of dx's columns.
  PETX_DEVICE void input(const ColumnShares& shares) const {
    T* dh = block_y() ? to_.more_dh + (block_y() - 1) * p.rows * p.rank : to_.dh;
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) hidden_grad(begin, dh);
    if (!g.dx || !p.x) return;
    sync_block();  // dh's other columns come from other threads
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = tile * Tile::kN;
      Tile::multiply(kProduct, this->block_rows(dh, p.rank), Base::weight_columns(p.u, begin, p.d_in, p.d_in), p.rank);
      this->each_run(begin, p.d_in, [&](int64_t column, int c, int64_t left) {
        Base::store_run(g.dx, token * p.d_in + column, left, this->result(kProduct, c));
      });
    });
  }

 private:
  PETX_DEVICE void output_grad(int64_t k) const {
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      Tile::multiply(kProduct, this->block_rows(of_mode(g.dy, k), p.d_out),
                     Base::weight_columns(p.v, begin, p.rank, p.rank), p.d_out);
      this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
        int64_t i = token * p.rank + column;
        Run dg = this->result(kProduct, c);
        Base::store_run(of_mode(to_.dg, k), i, left, dg);
        if (!of_mode(to_.by_core, k)) return;
        Run kept = Base::load_run(p.h, i, left);
        this->drop(kept, k, column);
        Base::multiply_by(kept, dg);
        Base::store_run(of_mode(to_.by_core, k), i, left, kept);
      });
    }
  }

  PETX_DEVICE void hidden_grad(int64_t begin, T* dh) const {
    bool begun = false;
    for (int64_t k = 0; k < p.count; ++k) {
      if (!of_mode(g.dy, k)) continue;
      if (!p.diagonal)
        Tile::multiply(kProduct, this->block_rows(of_mode(to_.dg, k), p.rank),
                       Base::weight_rows(this->core(k), begin, p.rank, p.rank), p.rank);
      this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
        Run part;
        if (p.diagonal) {
          part = Base::load_run(of_mode(to_.dg, k), token * p.rank + column, left);
          Base::multiply_by(part, Base::load_run(this->core(k), column, left));
        } else {
          part = this->result(kProduct, c);
        }
        this->drop(part, k, column);
#pragma unroll
        for (int j = 0; j < Base::kRun; ++j)
          Tile::set_result(kSum, row, c + j, begun ? Tile::result(kSum, row, c + j) + part.value[j] : part.value[j]);
      });
      begun = true;
    }
    this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
      Base::store_run(dh, token * p.rank + column, left, this->result(kSum, c));
    });
  }

  const ModeUpdateGrads& g;
  const Intermediate<T>& to_;
};

// Block (row block, projection).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_outputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, Intermediate<T> to) {
  Backward<T>(p, g, to).output(block_y());
}

// Block (row block, share of dx's columns).
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_inputs(ModeCall<Compute<T>> p, ModeUpdateGrads g, Intermediate<T> to, ColumnShares shares) {
  Backward<T>(p, g, to).input(shares);
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
    bool dh = g.dx || g.du;
    if (dh) to_.dh = p.x ? take(true) : static_cast<T*>(g.dx);
    shares_ = g.dx && p.x ? plan_.dx.count : 1;
    to_.more_dh = workspace.take<T>(dh ? (shares_ - 1) * p.rows * p.rank : 0);
    const void *dy[kMostModes], *mixed[kMostModes];
    int pairs = 0;
    for (int64_t k = 0; k < p.count; ++k) {
      if (!g.dy[k]) continue;
      // Diagonal cores need the kept h only beside the core or dg_k, where it is made in passing.
      to_.kept[k] = take(p.mask.drops() && !p.diagonal && (g.dv || g.dcores));
      to_.mixed[k] = take(g.dv);
      to_.dg[k] = take(dh || g.dcores);
      to_.by_core[k] = take(p.diagonal && g.dcores);
      dy[pairs] = g.dy[k], mixed[pairs++] = to_.mixed[k];
      C* dcore = g.dcores ? static_cast<C*>(g.dcores) + k * p.core_size() : nullptr;
      if (p.diagonal) {
        sums_.column(dcore, to_.by_core[k], nullptr, p.rank);
      } else {
        sums_.product(dcore, p.mask.drops() ? to_.kept[k] : p.h, to_.dg[k], p.rank, p.rank);
      }
    }
    sums_.product_of_pairs(g.dv, pairs, dy, mixed, p.d_out, p.rank);
    sums_.product(g.du, to_.dh, p.x, p.rank, p.d_in);
    sums_.place(workspace);
  }

  int run(void* stream) const {
    if (int error =
            launch(mode_outputs<T>, plan_.blocks, p.count, Tile::kThreads, Tile::shared_bytes(1), stream, p, g, to_))
      return error;
    if (to_.dh)
      if (int error = launch(mode_inputs<T>, plan_.blocks, shares_, Tile::kThreads, Tile::shared_bytes(2), stream, p, g,
                             to_, plan_.dx))
        return error;
    return sums_.run(stream);
  }

 private:
  const ModeCall<C> p;
  const ModeUpdateGrads& g;
  ModeUpdatePlan plan_;
  int64_t shares_;
  Intermediate<T> to_ = {};
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
