// The forward's pass over rows: a token's gate, and out with its norm.
#pragma once

#include "cuda/gated_adapter/block.cuh"

namespace petx::cuda {

// Of the passes: small's first leaves the tokens' gates alone, since its own is their mean over a sample.
enum class RowStage { tokens, whole };

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

  PETX_DEVICE void run(RowStage stage) {
    const bool small = p.granularity == Granularity::small, token_gate = this->has_token_gate();
    if (token_gate && small == (stage == RowStage::tokens)) find_gate();
    if (stage == RowStage::tokens) return;
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

}  // namespace petx::cuda
