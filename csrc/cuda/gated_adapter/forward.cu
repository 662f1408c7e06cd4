// Forward of the VL-PET site on the GPU.
//
//   z = down(h or x);  S = h + up(gelu(z));  Y = s * G * S;  out = norm(x + dropout(Y))
//
// Launches: the down products of adapter and gate, the up products with what follows of a value from its own column,
// and where there is a norm or a token's gate a pass over rows, which need all of their columns (`small` takes two,
// since its gate is a mean over a sample: the tokens' gates, then the rest).
// Bytes: h, x and out once from memory; out's second time, and h's and x's, from the cache if they fit. z goes to
// memory anyway, for the backward; gelu(z) goes to a workspace and is read back from the second-level cache, so that no
// width or rank is too large. The weights, 4 d r values at most, come from the cache once per block of rows.
// Tiling: 64 rows by a tile of ranks, then 64 rows by a share of the columns, as many shares as fill the machine: that
// is what a launch between down and up is for. What needs the whole row, x + dropout(Y) as it is stored or S of a
// token's gate, waits in out.

#include "cuda/gated_adapter/rows.cuh"

namespace petx::cuda {
namespace {

// A tile of `columns` of the down products, z = in . weight^T + bias and gelu(z): the adapter's or, behind these, of
// the gate's.
template <class T>
struct Down {
  const void *in, *weight, *bias;
  void *z, *a;
  int64_t width, rank, begin;

  PETX_DEVICE Down(const GatedAdapterParams& p, const Hidden<T>& hidden, int64_t adapter_tiles, int columns) {
    const bool gate = block_y() >= adapter_tiles, reads_x = gate || p.reads_x_in_down();
    begin = (gate ? block_y() - adapter_tiles : block_y()) * columns;
    rank = gate ? p.r_g : p.r, width = reads_x ? p.d_x : p.d;
    in = reads_x ? p.x : p.h, weight = gate ? p.gate_down_weight : p.down_weight;
    bias = gate ? p.gate_down_bias : p.down_bias;
    z = gate ? p.gate_z : p.z, a = gate ? hidden.gate_a : hidden.a;
  }
};

template <class T, class TileType = TileOf<T>>
class Forward : Site<T, TileType> {
  using Base = Site<T, TileType>;
  using Base::kRun, Base::p, Base::token;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  using Base::Base;

  PETX_DEVICE void down(const Down<T>& of) const {
    Tile::multiply(0, this->block_rows(of.in, of.width), this->weight_rows(of.weight, of.begin, of.rank, of.width),
                   of.width);
    put_down(of, Tile::kN, [&](int c) { return this->result(0, c); });
  }
  // Of a wide tile's rows those of its `half`.
  template <class Wide>
  PETX_DEVICE void wide_down(const Down<T>& of, int half) const {
    put_down(of, Wide::kN, [&](int c) { return this->template wide_result<Wide>(half, c); });
  }

  // y = x + dropout(s G S); S where a token's gate, which follows from it, still misses.
  PETX_DEVICE void up(const Hidden<T>& hidden, const ColumnShares& shares, void* out) const {
    this->large() ? up_tiles<true>(hidden, shares, out) : up_tiles<false>(hidden, shares, out);
  }

 private:
  template <bool large>
  PETX_DEVICE void up_tiles(const Hidden<T>& hidden, const ColumnShares& shares, void* out) const {
    this->each_tile(shares, [&](int64_t, int head, int begin, int end) {
      const uint64_t seed = this->constants.dropout.seed_value();  // again, for want of registers
      typename Base::Products made;
      this->template multiply_up<large>(made, hidden, head, begin, end, seed);
      this->each_place(begin, end,
                       [&](int64_t column, int c, auto left) { put_up<large>(made, column, c, left, seed, out); });
    });
  }
  template <bool large, class Left>
  PETX_DEVICE void put_up(const typename Base::Products& made, int64_t column, int c, Left left, uint64_t seed,
                          void* out) const {
    const bool whole = large || !this->has_token_gate();
    Run of_column = {};
    if constexpr (!large) of_column = this->column_gate(column, left);
    Tile::each_row([&](int number, int row) {
      if (row >= this->rows) return;
      const int64_t i = (this->first + row) * p.d + column;
      Run y = this->modified(made, number, row, column, c, left);
      if (whole) {
        Run gate = of_column;
        if constexpr (large)
          gate = this->gate(made, number, row, column, c, seed, left);
        else
          this->drop(gate, i, seed, left);
        Base::multiply_by(y, gate);
        const Run residual = this->residual(i, left);
#pragma unroll
        for (int j = 0; j < kRun; ++j) y.value[j] = y.value[j] * this->constants.dropout.keep + residual.value[j];
      }
      this->store_stream(out, i, left, y);
    });
  }
  template <class Result>
  PETX_DEVICE void put_down(const Down<T>& of, int columns, const Result& result) const {
    auto put = [&](int64_t column, int c, int64_t left) {
      int64_t i = token * of.rank + column;
      Run run = result(c);
      if (of.bias) Base::add_to(run, Base::load_run(of.bias, column, left));
      Base::store_run(of.z, i, left, run);
      run = Base::rounded(run);  // as the backward will find it
      this->activate(run);
      Base::store_run(of.a, i, left, run);
    };
    this->each_run(of.begin, of.rank, put, columns);
  }
};

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_down(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden, int64_t adapter_tiles) {
  Forward<T>(p, constants).down(Down<T>(p, hidden, adapter_tiles, TileOf<T>::kN));
}

// The same by tiles of 128 x 32 n.
template <class T, int parts>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_down(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden, int64_t adapter_tiles) {
  using Wide = WideTile<T, parts>;
  const Down<T> of(p, hidden, adapter_tiles, Wide::kN);
  Wide::multiply_rows(of.in, of.width, p.rows, RowBlock<T>::weight_rows(of.weight, of.begin, of.rank, of.width),
                      of.width);
#pragma unroll 1
  for (int half = 0; half < 2; ++half)
    Forward<T>(p, constants, 2 * block_x() + half).template wide_down<Wide>(of, half);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_up(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden, ColumnShares shares, void* out) {
  Forward<T, RunTileOf<T>>(p, constants).up(hidden, shares, out);
}

// The same by tiles of 64 x 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    site_wide_up(GatedAdapterParams p, SiteConstants<T> constants, Hidden<T> hidden, ColumnShares shares, void* out) {
  Forward<T, RunTileOf<T, true>>(p, constants).up(hidden, shares, out);
}

template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    site_rows(GatedAdapterParams p, SiteConstants<T> constants, void* out, RowStage stage) {
  ForwardRow<T, false>(p, constants, out).run(stage);
}

// The same where the residual stream is wider than T.
template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    site_stream_rows(GatedAdapterParams p, SiteConstants<T> constants, void* out, RowStage stage) {
  ForwardRow<T, true>(p, constants, out).run(stage);
}

// One call: where everything lies, and the launches in their order.
template <class T>
class ForwardCall {
  using Tile = TileOf<T>;

 public:
  ForwardCall(Workspace& workspace, const GatedAdapterParams& params, void* out)
      : p(params),
        plan_(p),
        constants_(p, {out}),
        hidden_{workspace.take<T>(p.rows * p.r), workspace.take<T>(p.rows * p.r_g)},
        out_(out) {}

  int run(void* stream) const {
    if (int error = down(stream)) return error;
    if (int error = up(stream)) return error;
    const int passes = plan_.row_passes(p);
    if (passes == 2)
      if (int error = rows(RowStage::tokens, stream)) return error;
    return passes ? rows(RowStage::whole, stream) : 0;
  }

 private:
  int down(void* stream) const {
    const TileKind kind = plan_.down;
    auto start = [&](auto* kernel, int shared_bytes) {
      const int64_t tiles = kind.across(p.r);
      return launch(kernel, kind.down(p.rows), tiles + kind.across(p.r_g), Tile::kThreads, shared_bytes, stream, p,
                    constants_, hidden_, tiles);
    };
    if constexpr (sizeof(T) == 2) {
      if (kind.parts == 2) return start(site_wide_down<T, 2>, WideTile<T, 2>::kSharedBytes);
      if (kind.parts == 3) return start(site_wide_down<T, 3>, WideTile<T, 3>::kSharedBytes);
    }
    return start(site_down<T>, Tile::shared_bytes(1));
  }
  int up(void* stream) const {
    const int results = p.granularity == Granularity::large ? 2 : 1;
    auto start = [&](auto* kernel, int shared_bytes) {
      return launch(kernel, plan_.blocks, plan_.up.count, Tile::kThreads, shared_bytes, stream, p, constants_, hidden_,
                    ColumnShares(plan_.up), out_);
    };
    if constexpr (sizeof(T) == 2)
      if (plan_.up.wide()) return start(site_wide_up<T>, RunTileOf<T, true>::shared_bytes(results));
    return start(site_up<T>, RunTileOf<T>::shared_bytes(results));
  }
  int rows(RowStage stage, void* stream) const {
    auto kernel = site_rows<T>;
    if constexpr (sizeof(T) == 2)
      if (p.skip) kernel = site_stream_rows<T>;
    return launch(kernel, SiteRow<T>::blocks(p.rows), 1, kRowLaunch.threads, 0, stream, p, constants_, out_, stage);
  }

  const GatedAdapterParams& p;
  GatedAdapterPlan plan_;
  SiteConstants<T> constants_;
  Hidden<T> hidden_;
  void* out_;
};

}  // namespace

int64_t gated_adapter_fwd_workspace(const GatedAdapterParams& p) {
  return count_workspace<ForwardCall>(p.dtype, p, nullptr);
}

int gated_adapter_fwd(const GatedAdapterParams& p, void* out, void* workspace, void* stream) {
  return p.rows ? run_call<ForwardCall>(p.dtype, workspace, stream, p, out) : 0;
}

}  // namespace petx::cuda
