// Forward of PETAL's update on the GPU.
//
//   h = x U^T;  g_k = drop_k(h) M_k;  y_k = base_k + g_k V^T
//
// Bytes: x, the bases and the results once from memory, h once to it; U, V and the cores come from the second-level
// cache, once per block.
// Tiling: a block owns 64 rows from x U^T to the last store, so that one launch does it all: at PETAL's sizes launches
// cost more than the arithmetic. drop_k(h) and g_k go through a workspace and are read back from the second-level
// cache, so that no rank is too large. Few rows make too few blocks: then several share the rows, each with a part of
// the K d_out columns, and recompute h, which costs a K-th part of the whole at most.

#include "cuda/mode_update/block.cuh"

namespace petx::cuda {
namespace {

// What a share of the columns leaves behind on its way: [shares, N, R] each, null where not needed.
template <class T>
struct Passing {
  T* h;  // of all shares but the first, whose h is the call's
  T* kept;
  T* mixed;
};

template <class T>
class Forward : ModeBlock<T> {
  using Base = ModeBlock<T>;
  using Base::p, Base::token;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE Forward(const ModeCall<C>& call, const ModeUpdateOutputs& out, const Passing<T>& passing, int64_t share)
      : Base(call, block_x()), out_(out) {
    int64_t size = p.rows * p.rank;
    h_ = share && p.x ? passing.h + (share - 1) * size : static_cast<T*>(p.h);
    kept_ = passing.kept + share * size, mixed_ = passing.mixed + share * size;
  }

  // Results' tiles [begin, end), numbered through all projections.
  PETX_DEVICE void run(int64_t begin, int64_t end, int64_t tiles) {
    if (p.x) project();
    for (int64_t k = begin / tiles; k * tiles < end; ++k) {
      if (p.diagonal) {
        this->keep(h_, k, true, mixed_);
      } else if (p.mask.drops()) {
        this->keep(h_, k, false, kept_);
        this->mix(kept_, k, mixed_);
      } else {
        this->mix(h_, k, mixed_);
      }
      for (int64_t tile = begin > k * tiles ? begin - k * tiles : 0; tile < tiles && k * tiles + tile < end; ++tile)
        update(k, tile * Tile::kN);
    }
  }

 private:
  PETX_DEVICE void project() const {
    for (int64_t begin = 0; begin < p.rank; begin += Tile::kN) {
      if (p.d_in)
        Tile::multiply(0, this->block_rows(p.x, p.d_in), Base::weight_rows(p.u, begin, p.rank, p.d_in), p.d_in);
      this->each_run(begin, p.rank, [&](int64_t column, int c, int64_t left) {
        Base::store_run(h_, token * p.rank + column, left, p.d_in ? this->result(0, c) : Run{});
      });
    }
    sync_block();  // h's other columns come from other threads
  }

  PETX_DEVICE void update(int64_t k, int64_t begin) const {
    Tile::multiply(0, this->block_rows(mixed_, p.rank), Base::weight_rows(p.v, begin, p.d_out, p.rank), p.rank);
    const void* base = of_mode(out_.base, k);
    void* to = of_mode(out_.y, k);
    this->each_run(begin, p.d_out, [&](int64_t column, int c, int64_t left) {
      Run y = this->result(0, c);
      if (base) {
        Run more = Base::load_run(base, token * out_.base_stride + column, left);
#pragma unroll
        for (int j = 0; j < Base::kRun; ++j) y.value[j] += more.value[j];
      }
      Base::store_run(to, token * p.d_out + column, left, y);
    });
  }

  const ModeUpdateOutputs& out_;
  T *h_, *kept_, *mixed_;
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mode_forward(ModeCall<Compute<T>> p, ModeUpdateOutputs out, Passing<T> passing, int64_t tiles,
                 ColumnShares shares) {
  const int64_t share = block_y(), begin = share * shares.each, end = begin + shares.each;
  Forward<T>(p, out, passing, share).run(begin, end < shares.tiles ? end : shares.tiles, tiles);
}

// One call: where everything lies, and its launch.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const ModeUpdateParams& params, const ModeUpdateOutputs& out)
      : p(params), plan_(params), out_(out) {
    int64_t size = p.rows * p.rank;
    passing_.h = workspace.take<T>(p.x ? (plan_.shares.count - 1) * size : 0);
    passing_.kept = workspace.take<T>(p.mask.drops() && !p.diagonal ? plan_.shares.count * size : 0);
    passing_.mixed = workspace.take<T>(plan_.shares.count * size);
  }

  int run(void* stream) const {
    return launch(mode_forward<T>, plan_.blocks, plan_.shares.count, Tile::kThreads, Tile::shared_bytes(1), stream, p,
                  out_, passing_, plan_.tiles, plan_.shares);
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
