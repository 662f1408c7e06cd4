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

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {
namespace {

enum class Stage { tokens, whole };

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

// What follows from all columns of a row. A lane has the same columns in every pass, so what it left in out it finds
// again without a barrier.
template <class T, bool wide>
class ForwardRow : SiteRow<T> {
  using Base = SiteRow<T>;
  using Block = RowBlock<T>;
  using Base::constants, Base::kRun, Base::lane, Base::p, Base::token, Base::valid;
  using typename Base::C;
  using typename Base::Run;

 public:
  PETX_DEVICE ForwardRow(const GatedAdapterParams& params, const SiteConstants<T>& constants, void* out)
      : Base(params, constants), out_(out), seed_(constants.dropout.seed_value()) {}

  PETX_DEVICE void run(Stage stage) {
    const bool small = p.granularity == Granularity::small, token_gate = this->has_token_gate();
    if (token_gate && small == (stage == Stage::tokens)) find_gate();
    if (stage == Stage::tokens) return;
    if (!token_gate && p.d <= kKept * kRun * Base::kLanes) {
      if (constants.whole)
        normalise_kept([](int64_t) { return typename Block::Whole{}; });
      else
        normalise_kept([&](int64_t column) { return p.d - column; });
      return;
    }
    if (small) gate_ = this->sample_mean(p.token_gate, true);
    this->each_run([&](int64_t column, auto left) {
      const int64_t i = token * p.d + column;
      Run y = load_stream(out_, i, left);
      if (token_gate) put_result(y, i, left);
      if (p.norm != Norm::none) join(y, count_of(left));
    });
    if (p.norm == Norm::none) return;
    finish_statistics();
    normalise();
  }

 private:
  template <class Left>
  PETX_DEVICE static Run load_stream(const void* data, int64_t i, Left left) {
    if constexpr (wide)
      return Block::load_wide_run(data, i, left);
    else
      return Block::load_run(data, i, left);
  }
  template <class Left>
  PETX_DEVICE static void store_stream(void* data, int64_t i, Left left, const Run& run) {
    if constexpr (wide)
      Block::store_wide_run(data, i, left, run);
    else
      Block::store_run(data, i, left, run);
  }

  // middle_x's gate is a token's own; small's is the mean of these, taken by the second launch.
  PETX_DEVICE void find_gate() {
    C logit = 0;
    this->each_run([&](int64_t column, auto left) {
      const int64_t i = token * p.d + column;
      const Run s = p.gate_input == GateInput::modified ? load_stream(out_, i, left) : Block::load_run(p.h, i, left);
      const Run x = Block::load_run(p.x, i, left), of_x = Block::load_run(p.gate_weight, column, left);
      const Run of_s = Block::load_run(this->gate_of_s(), column, left);
#pragma unroll
      for (int j = 0; j < kRun; ++j) logit += x.value[j] * of_x.value[j] + s.value[j] * of_s.value[j];
    });
    gate_ = sigmoid(Base::row_sum(logit) + at_or_zero<T>(p.gate_bias, 0));
    if (lane == 0 && valid) write(static_cast<C*>(p.token_gate) + token, gate_);
  }

  // y of S, which it takes the place of.
  template <class Left>
  PETX_DEVICE void put_result(Run& y, int64_t i, Left left) const {
    Run gate;
#pragma unroll
    for (int j = 0; j < kRun; ++j) gate.value[j] = gate_;
    this->drop(gate, i, seed_, left);
    Run residual = {};
    if (wide || p.skip || p.residual) residual = load_stream(p.skip ? p.skip : p.x, i, left);
#pragma unroll
    for (int j = 0; j < kRun; ++j) y.value[j] = y.value[j] * gate.value[j] * constants.dropout.keep + residual.value[j];
    store_stream(out_, i, left, y);
    if (!wide) y = Block::rounded(y);
  }

  PETX_DEVICE static int count_of(int64_t left) { return left < kRun ? static_cast<int>(left) : kRun; }
  PETX_DEVICE static int count_of(typename Block::Whole) { return kRun; }
  // Mean and squared deviations of a run of `count` values, joined with those before it.
  PETX_DEVICE void join(const Run& y, int count) {
    C sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum += j < count ? y.value[j] : C(0);
    C mean = sum / C(count);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      C apart = j < count ? y.value[j] - mean : C(0);
      squares += apart * apart;
    }
    C all = seen_ + C(count), apart = mean - mean_, part = C(count) / all;
    squares_ += squares + apart * apart * seen_ * part;
    mean_ += apart * part;
    seen_ = all;
  }

  // Each lane has mean and squared deviations of its own columns; together they are the row's.
  PETX_DEVICE void finish_statistics() {
    C mean = p.norm == Norm::layer ? Base::row_sum(seen_ * mean_) / C(p.d) : C(0);
    C apart = mean_ - mean;
    leave_statistics(mean, squares_ + seen_ * apart * apart);
  }
  // `squares`: this lane's part.
  PETX_DEVICE void leave_statistics(C mean, C squares) {
    mean_ = mean, rstd_ = C(1) / sqrt(Base::row_sum(squares) / C(p.d) + constants.eps);
    if (lane != 0 || !valid) return;
    C* stats = static_cast<C*>(p.norm_stats) + 2 * token;
    write(stats, mean_);
    write(stats + 1, rstd_);
  }

  // All of it where a lane can keep its part of the row, which is read once then.
  template <class LeftOf>
  PETX_DEVICE void normalise_kept(const LeftOf& left_of) {
    Run y[kKept];
    C sum = 0, squares = 0;
    each_kept([&](int n, int64_t column) {
      y[n] = load_stream(out_, token * p.d + column, left_of(column));
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum += y[n].value[j];
    });
    const C mean = p.norm == Norm::layer ? Base::row_sum(sum) / C(p.d) : C(0);
    each_kept([&](int n, int64_t column) {
      const int count = count_of(left_of(column));
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        C& apart = y[n].value[j];
        apart = j < count ? apart - mean : C(0), squares += apart * apart;
      }
    });
    leave_statistics(mean, squares);
    each_kept([&](int n, int64_t column) {
      const auto left = left_of(column);
      const Run weight = load_stream(p.norm_weight, column, left);
      const Run bias = p.norm_bias ? load_stream(p.norm_bias, column, left) : Run{};
#pragma unroll
      for (int j = 0; j < kRun; ++j) y[n].value[j] = y[n].value[j] * rstd_ * weight.value[j] + bias.value[j];
      store_stream(out_, token * p.d + column, left, y[n]);
    });
  }
  // Calls visit(n, column) for this lane's runs of a row, kKept at most.
  template <class Visit>
  PETX_DEVICE void each_kept(const Visit& visit) const {
#pragma unroll
    for (int n = 0; n < kKept; ++n) {
      const int64_t column = kRun * (lane + n * Base::kLanes);
      if (valid && column < p.d) visit(n, column);
    }
  }

  PETX_DEVICE void normalise() const {
    this->each_run([&](int64_t column, auto left) {
      int64_t i = token * p.d + column;
      Run y = load_stream(out_, i, left), weight = load_stream(p.norm_weight, column, left);
#pragma unroll
      for (int j = 0; j < kRun; ++j) y.value[j] = (y.value[j] - mean_) * rstd_ * weight.value[j];
      if (p.norm_bias) Block::add_to(y, load_stream(p.norm_bias, column, left));
      store_stream(out_, i, left, y);
    });
  }

  static constexpr int kKept = 8;  // runs

  void* out_;
  uint64_t seed_;
  C gate_ = 1;
  C seen_ = 0, mean_ = 0, squares_ = 0, rstd_ = 0;
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
    site_rows(GatedAdapterParams p, SiteConstants<T> constants, void* out, Stage stage) {
  ForwardRow<T, false>(p, constants, out).run(stage);
}

// The same where the residual stream is wider than T.
template <class T>
PETX_KERNEL void __launch_bounds__(kRowLaunch.threads, kRowLaunch.blocks)
    site_stream_rows(GatedAdapterParams p, SiteConstants<T> constants, void* out, Stage stage) {
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
      if (int error = rows(Stage::tokens, stream)) return error;
    return passes ? rows(Stage::whole, stream) : 0;
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
  int rows(Stage stage, void* stream) const {
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
