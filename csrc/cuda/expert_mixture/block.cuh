// The expert mixture as a block of rows sees it: what forward and backward, fused and hybrid, compute alike.
//
// Products as wide as the experts' rank are made by the whole block, a tile of columns at a time; what follows a
// product is done by the four threads that own a row, in runs of sixteen bytes. What needs a whole row between two
// products (gates, and all that is K wide) has a launch of its own, eight lanes a row.
#pragma once

#include "cuda/common/row_block.cuh"
#include "cuda/expert_mixture/plan.h"
#include "kernels/expert_mixture.h"

namespace petx::cuda {

// The call as kernels see it: constants in the type that they are used in, so that no kernel computes in double.
template <class C>
struct MixtureCall : ExpertMixtureParams {
  C alpha, beta, equal_gate;
  int64_t expert_rank;

  explicit MixtureCall(const ExpertMixtureParams& p)
      : ExpertMixtureParams(p),
        alpha(C(p.alpha)),
        beta(C(p.beta)),
        equal_gate(C(1) / C(p.experts)),
        expert_rank(p.rank()) {}

  PETX_DEVICE bool in_scope(int64_t t) const { return !scope || read(scope + t); }
  PETX_DEVICE bool in_pool(int64_t t) const { return !pool || read(pool + t); }
  // The gates of a token, null where all are equal.
  PETX_DEVICE C* gates_of(int64_t t) const {
    return gated() ? static_cast<C*>(gates) + gate_row(t) * experts : nullptr;
  }
};

// Calls f.operator()<kind>() with an activation known when running, so that the choice stays outside a run's values.
template <class F>
PETX_DEVICE void with_activation(ExpertActivation kind, const F& f) {
  switch (kind) {
    case ExpertActivation::relu:
      return f.template operator()<ExpertActivation::relu>();
    case ExpertActivation::gelu:
      return f.template operator()<ExpertActivation::gelu>();
    case ExpertActivation::gelu_tanh:
      return f.template operator()<ExpertActivation::gelu_tanh>();
    default:
      return f.template operator()<ExpertActivation::none>();
  }
}

// scale act(u) of a run.
template <class Run, class C>
PETX_DEVICE Run scaled_activation(ExpertActivation kind, Run u, C scale) {
  with_activation(kind, [&]<ExpertActivation kind>() {
#pragma unroll
    for (C& value : u.value) value = scale * expert_activation<kind>(value);
  });
  return u;
}

// du of a value whose gate, times beta, is `scale`, from q.
template <ExpertActivation kind, class C>
PETX_DEVICE C hidden_grad(C q, C u, C scale) {
  // What relu cuts off gets zero whatever comes.
  if constexpr (kind == ExpertActivation::relu) return u <= C(0) ? C(0) : scale * q;
  return q * (scale * expert_activation_slope<kind>(u));
}
// The same of a run.
template <class Run, class C>
PETX_DEVICE Run hidden_grads(ExpertActivation kind, Run q, const Run& u, C scale) {
  with_activation(kind, [&]<ExpertActivation kind>() {
#pragma unroll
    for (int j = 0; j < static_cast<int>(sizeof(Run) / sizeof(C)); ++j)
      q.value[j] = hidden_grad<kind>(q.value[j], u.value[j], scale);
  });
  return q;
}

// Adds weight(k) vectors[k, column...] for all experts to a run.
template <class T, class Weight>
PETX_DEVICE void add_vectors(const MixtureCall<Compute<T>>& p, RunOf<T>& to, const void* vectors, int64_t column,
                             int64_t left, const Weight& weight) {
#pragma unroll 1
  for (int64_t k = 0; k < p.experts; ++k) {
    const Compute<T> by = weight(k);
    const RunOf<T> vector = RowBlock<T>::load_run(vectors, k * p.d + column, left);
#pragma unroll
    for (int j = 0; j < RowBlock<T>::kRun; ++j) to.value[j] += by * vector.value[j];
  }
}

// gates [K] = the softmax of the top_k largest of logit(k), of equal ones the first; the others are left out. Of K
// values this thread writes each `step`-th from `begin` on.
template <class C, class Logit>
PETX_DEVICE void softmax(const Logit& logit, int64_t experts, int64_t top_k, C* gates, int64_t begin, int64_t step) {
  C most = logit(0);
#pragma unroll 1
  for (int64_t k = 1; k < experts; ++k) {
    C value = logit(k);
    most = value > most ? value : most;
  }
  int64_t last = experts - 1;  // the smallest that is kept
#pragma unroll 1
  for (int64_t k = 0; top_k < experts && k < experts; ++k) {
    int64_t larger = 0;
#pragma unroll 1
    for (int64_t j = 0; j < experts; ++j) larger += taken_before(logit(j), j, logit(k), k);
    if (larger == top_k - 1) last = k;
  }
  C least = logit(last), sum = 0;
  auto kept = [&](int64_t k) { return top_k == experts || k == last || taken_before(logit(k), k, least, last); };
#pragma unroll 1
  for (int64_t k = 0; k < experts; ++k)
    if (kept(k)) sum += exponential(logit(k) - most);
#pragma unroll 1
  for (int64_t k = begin; k < experts; k += step)
    write(gates + k, kept(k) ? exponential(logit(k) - most) / sum : gate_left_out(sum));
}

// 64 rows, four threads each: what a product's columns become.
template <class S, class TileType = TileOf<S>>
class Mixture : public RowBlock<S, TileType> {
  using Base = RowBlock<S, TileType>;

 public:
  using Base::first, Base::rows, Base::row, Base::sharer, Base::token, Base::valid, Base::block_rows, Base::weight_rows,
      Base::each_run, Base::each_tile, Base::load_run, Base::store_run, Base::result;
  using typename Base::C, typename Base::Run, typename Base::T, typename Base::Tile;
  static constexpr int kRun = Base::kRun;

  PETX_DEVICE Mixture(const MixtureCall<C>& call, int64_t block)
      : Base(call.rows, block),
        p(call),
        mixed(valid() && call.in_scope(token)),
        gates(valid() ? call.gates_of(token) : nullptr) {}

  const MixtureCall<C>& p;
  const bool mixed;  // whether this thread's row is
  C* const gates;    // its own
};

// Rows without a product, eight lanes each, which take an expert's runs of sixteen bytes in turns.
template <class S>
class MixtureRow {
 public:
  using T = S;
  using C = Compute<T>;
  using Run = typename RowBlock<T>::Run;
  static constexpr int kRun = RowBlock<T>::kRun, kLanes = 8, kRows = kRowLaunch.threads / kLanes;
  PETX_HD static int64_t blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }

  PETX_DEVICE explicit MixtureRow(const MixtureCall<C>& call)
      : p(call),
        lane(thread_index() % kLanes),
        token(block_x() * kRows + thread_index() / kLanes),
        valid(token < call.rows),
        mixed(valid && call.in_scope(token)),
        gates(valid ? call.gates_of(token) : nullptr) {}

  PETX_DEVICE C gate(int64_t k) const { return gates ? read(gates + k) : p.equal_gate; }

  // Calls visit(position in [N, K r], column, columns of the expert left) for this lane's runs of expert k.
  template <class Visit>
  PETX_DEVICE void each_run(int64_t k, const Visit& visit) const {
    if (!valid) return;
    const int64_t begin = k * p.expert_rank;
#pragma unroll 1
    for (int64_t c = kRun * lane; c < p.expert_rank; c += kRun * kLanes)
      visit(token * p.stacked + begin + c, begin + c, p.expert_rank - c);
  }
  PETX_DEVICE static Run load_run(const void* data, int64_t i, int64_t left) {
    return RowBlock<T>::load_run(data, i, left);
  }
  PETX_DEVICE static void store_run(void* data, int64_t i, int64_t left, const Run& run) {
    RowBlock<T>::store_run(data, i, left, run);
  }
  // The sum of `count` parts (plan.h's DownTiles) at value i, in their order, all of which are asked for together; each
  // has `size` values.
  PETX_DEVICE static Run sum_of_parts(const C* parts, int64_t count, int64_t size, int64_t i, int64_t left) {
    Run sum = {};
    if constexpr (sizeof(T) == 2) {
      Run part[DownTiles::kMostSplits];
#pragma unroll
      for (int n = 0; n < DownTiles::kMostSplits; ++n)
        if (n < count) part[n] = RowBlock<T>::load_wide_run(parts + n * size, i, left);
#pragma unroll
      for (int n = 0; n < DownTiles::kMostSplits; ++n)
        if (n < count) RowBlock<T>::add_to(sum, part[n]);
    }
    return sum;
  }
  // The same of one value.
  PETX_DEVICE static C sum_of_values(const C* parts, int64_t count, int64_t size, int64_t i) {
    C sum = 0;
    for (int64_t n = 0; n < count; ++n) sum += read(parts + n * size + i);
    return sum;
  }
  // The sum of a row's lanes, in all of them.
  PETX_DEVICE static C row_sum(C value) {
    for (int mask = 1; mask < kLanes; mask *= 2) value += shuffle_xor(value, mask);
    return value;
  }

  const MixtureCall<C>& p;
  const int lane;
  const int64_t token;
  const bool valid, mixed;
  C* const gates;
};

// Sums over a sample's tokens, one block a sample: a warp's lanes take neighbouring columns, its eight warps every
// eighth token, so that the order depends on the shape alone.
class SampleSums {
 public:
  static constexpr int kThreads = kSumLaunch.threads, kColumns = 32, kWarps = kThreads / kColumns;
  template <class C>
  static constexpr int shared_bytes() {
    return 2 * kThreads * sizeof(C);
  }

  // Calls visit(column, sum over tokens of value(token, column), number of tokens that count) for `width` columns, by
  // one thread each; value is not asked for tokens for which only(token) is false.
  template <class C, class Only, class Counts, class Value, class Visit>
  PETX_DEVICE static void run(int64_t sample, int64_t length, int64_t width, const Only& only, const Counts& counts,
                              const Value& value, const Visit& visit) {
    int lane = thread_index() % kColumns, warp = thread_index() / kColumns;
    Shared<C> sums(0), sizes(kThreads * sizeof(C));
    for (int64_t begin = 0; begin < width; begin += kColumns) {
      int64_t column = begin + lane;
      C sum = 0, size = 0;
      for (int64_t t = sample * length + warp; t < (sample + 1) * length; t += kWarps) {
        if (column < width && only(t)) sum += value(t, column);
        if (counts(t)) size += C(1);
      }
      sums.set(thread_index(), sum), sizes.set(thread_index(), size);
      sync_block();
      if (warp == 0 && column < width) {
        for (int k = 1; k < kWarps; ++k) {
          sum += sums.get(k * kColumns + lane);
          size += sizes.get(k * kColumns + lane);
        }
        visit(column, sum, size);
      }
      sync_block();
    }
  }
};

}  // namespace petx::cuda
