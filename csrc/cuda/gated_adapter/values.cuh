// The passes of the VL-PET site's backward that make dS, and the gradients of vectors as wide as h.
#pragma once

#include "cuda/gated_adapter/grads.cuh"

namespace petx::cuda {

// What is known of a block's rows, in shared memory, value by value.
enum RowValue { kTokenGate, kDlogit, kMean, kRstd, kShift, kSlope, kRowValues };

// Where a pass of tiles has what besides lies in shared memory: sums of columns in the place of the products' operands,
// and behind the products the rows' values.
template <class T, class Tile, SiteStage stage>
struct PassMemory {
  using C = Compute<T>;
  static constexpr bool products = stage != SiteStage::pass;
  static constexpr int kPack = 16 / sizeof(C), kSums = products ? kUpBias : kVectorGrads;
  static constexpr int kStride = Tile::kN / kPack + 1;  // packs: neighbouring groups in other banks
  static constexpr int kSumBytes = kSums * Tile::kColumnGroups * kStride * 16;
  static constexpr int kRowsAt = products ? Tile::shared_bytes(2) : kSumBytes;
  static constexpr int kBytes = kRowsAt + kRowValues * Tile::kM * sizeof(C);
  static_assert(kSumBytes <= kRowsAt);

  PETX_DEVICE static Shared<Pack<C>> sums() { return Shared<Pack<C>>(0); }
  PETX_DEVICE static int place(int sum, int group, int pack) {
    return (sum * Tile::kColumnGroups + group) * kStride + pack;
  }
  PETX_DEVICE static C row_value(RowValue which, int row) { return Shared<C>(kRowsAt).get(which * Tile::kM + row); }
  PETX_DEVICE static void set_row_value(RowValue which, int row, C value) {
    Shared<C>(kRowsAt).set(which * Tile::kM + row, value);
  }
};

// A block's rows and its share of the columns: dS and what else follows from a value's own gradient.
template <class T, class Tile, SiteStage stage>
class SiteValues : Site<T, Tile> {
  using Base = Site<T, Tile>;
  using Base::constants, Base::kRun, Base::p;
  using Memory = PassMemory<T, Tile, stage>;
  static constexpr bool products = Memory::products, looks = stage == SiteStage::look;
  using typename Base::C, typename Base::Run, typename Base::Products;

 public:
  PETX_DEVICE SiteValues(const GatedAdapterParams& params, const SiteConstants<T>& constants,
                         const GatedAdapterGrads& grads, const SiteIntermediate<T>& to)
      : Base(params, constants), g(grads), to_(to) {}

  PETX_DEVICE void run(const ColumnShares& shares) const {
    if constexpr (stage != SiteStage::direct) find_rows();
    this->large() ? tiles<true>(shares) : tiles<false>(shares);
  }

 private:
  // Of a row: of a norm dout w . hat and dout w, and for a token's gate three more; without a norm dY . S.
  template <bool large>
  struct RowSums {
    C first, second, dots[large ? 1 : 3];
  };
  // Of a tile's columns, for all rows: the norm's weights, and the gate.
  struct Vectors {
    Run weight, gate;
  };

  template <bool large>
  PETX_DEVICE void tiles(const ColumnShares& shares) const {
    this->each_tile(shares, [&](int64_t tile, int head, int begin, int end) {
      const uint64_t seed = constants.dropout.seed_value();  // again, for want of registers
      Products made;
      if constexpr (products) this->template multiply_up<large>(made, to_.hidden, head, begin, end, seed);
      const bool adds_columns = !looks && has_vector_grads();
      if (products && adds_columns) sync_block();  // their place may still be read
      Tile::each_place([&](int c) {
        Columns columns = {};
        Vectors vectors = {};
        this->of_place(begin, end, c, [&](int64_t column, int, auto left) {
          if (p.norm != Norm::none) vectors.weight = this->load_stream(p.norm_weight, column, left);
          if constexpr (!large) vectors.gate = this->column_gate(column, left);
        });
        const auto at_row = [&](int number, int row) {
          RowSums<large> sums = {};
          if (row < this->rows)
            this->of_place(begin, end, c, [&](int64_t column, int, auto left) {
              of_run<large>(made, number, row, column, c, left, seed, vectors, sums, columns);
            });
          if constexpr (looks) leave_row<large>(tile * Tile::kRowSums + Tile::part(c), row, sums);
        };
        if constexpr (products)
          Tile::each_row(at_row);
        else
          Tile::each_row_in_turn([&](int row) { at_row(0, row); });
        if (adds_columns) leave_columns(c, columns);
      });
      if (adds_columns) finish_columns(begin, end);
    });
  }

  struct Columns {
    Run of[Memory::kSums];

    PETX_DEVICE void add(VectorGrad which, const Run& run) { Base::add_to(of[which], run); }
    PETX_DEVICE void add(VectorGrad which, const Run& run, C times) { add_times(of[which], times, run); }
    PETX_DEVICE void add(VectorGrad which, const Run& run, const Run& times) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) of[which].value[j] += run.value[j] * times.value[j];
    }
  };

  // What the launches before have found for the block's rows.
  PETX_DEVICE void find_rows() const {
    const bool valid = this->valid(), norm = p.norm != Norm::none;
    const int64_t token = this->token;
    C mean = 0, rstd = 0, along = 0, mean_part = 0;
    if (norm && valid) {
      const C* stats = static_cast<const C*>(p.norm_stats) + 2 * token;
      mean = read(stats), rstd = read(stats + 1);
    }
    if (norm && !looks) {
      if (valid) {
        const int64_t step = Base::kSharers * p.rows;
        int64_t i = this->sharer * p.rows + token;
#pragma unroll 1
        for (int part = this->sharer; part < to_.parts; part += Base::kSharers, i += step)
          along += read(to_.along + i), mean_part += read(to_.mean_part + i);
      }
      along = Base::row_sum(along) / C(p.d);
      mean_part = p.norm == Norm::layer ? Base::row_sum(mean_part) / C(p.d) : C(0);
    }
    if (this->sharer == 0) {
      Memory::set_row_value(kTokenGate, this->row, valid && to_.gate ? read(to_.gate + token) : C(1));
      Memory::set_row_value(kDlogit, this->row, valid && to_.dlogit && !looks ? read(to_.dlogit + token) : C(0));
      Memory::set_row_value(kMean, this->row, mean);
      Memory::set_row_value(kRstd, this->row, rstd);
      Memory::set_row_value(kShift, this->row, -rstd * mean_part);
      Memory::set_row_value(kSlope, this->row, -rstd * rstd * along);
    }
    sync_block();
  }
  template <bool large, class Left>
  PETX_DEVICE void of_run(const Products& made, int number, int row, int64_t column, int c, Left left, uint64_t seed,
                          const Vectors& vectors, RowSums<large>& sums, Columns& columns) const {
    const int64_t i = (this->first + row) * p.d + column;
    Run s_or_y, gate = vectors.gate;
    if constexpr (products) {
      s_or_y = this->modified(made, number, row, column, c, left);
      if constexpr (large) {
        gate = this->gate(made, number, row, column, c, seed, left);
        Base::multiply_by(s_or_y, gate);
      }
      if constexpr (looks) {
        Base::store_run(to_.ds, i, left, s_or_y);
        if constexpr (large) Base::store_run(to_.dgate, i, left, gate);
      }
    } else {
      s_or_y = Base::load_run(to_.ds, i, left);
      if constexpr (large) gate = Base::load_run(to_.dgate, i, left);
    }
    values<large>(row, i, column, left, seed, vectors.weight, s_or_y, gate, sums, columns);
  }

  // Of a run: of a large gate y and `gate`, G S and G after dropout but for its factor; of others S and the gate of the
  // columns.
  template <bool large, class Left>
  PETX_DEVICE void values(int row, int64_t i, int64_t column, Left left, uint64_t seed, const Run& weight,
                          const Run& s_or_y, Run gate, RowSums<large>& sums, Columns& columns) const {
    const bool token_gate = !large && stage == SiteStage::pass && this->has_token_gate();
    const C keep = constants.dropout.keep;
    if constexpr (looks) return add_to_sums<large>(row, i, left, seed, weight, s_or_y, gate, sums);
    const Run& s = s_or_y;
    Run y = s_or_y;
    KeptRun<kRun> kept;
    if constexpr (!large) {
      kept = this->kept(i, seed, left);
      const C of_token = products ? C(1) : Memory::row_value(kTokenGate, row);
#pragma unroll
      for (int j = 0; j < kRun; ++j) gate.value[j] = kept.keeps(j) ? gate.value[j] * of_token : C(0);
      Base::multiply_by(y, gate);
    }
    Run dy = this->load_stream(g.dout, i, left);
    if (!products && p.norm != Norm::none) {
      const Run apart = apart_from_mean(row, i, left, y, keep);
      const C rstd = Memory::row_value(kRstd, row), shift = Memory::row_value(kShift, row);
      const C slope = Memory::row_value(kSlope, row);
      columns.add(kNormBias, dy);
#pragma unroll
      for (int j = 0; j < kRun; ++j) dy.value[j] *= rstd;
      columns.add(kNormWeight, dy, apart);
#pragma unroll
      for (int j = 0; j < kRun; ++j) dy.value[j] = dy.value[j] * weight.value[j] + (apart.value[j] * slope + shift);
    }
    if (g.skip) Base::store_wide_run(g.skip, i, left, dy);
    const C dlogit = token_gate ? Memory::row_value(kDlogit, row) : C(0);
    if constexpr (large) {
      if (g.dx && begins_dx(p)) Base::store_run(g.dx, i, left, dy);
    } else if (g.dx && begins_dx(p)) {
      Run dx = p.residual ? dy : Run{};
      if (token_gate) add_times(dx, dlogit, Base::load_run(p.gate_weight, column, left));
      Base::store_run(g.dx, i, left, dx);
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) dy.value[j] *= keep;
    if constexpr (large) {
      Run dgate;
#pragma unroll
      for (int j = 0; j < kRun; ++j) dgate.value[j] = dy.value[j] * (y.value[j] - y.value[j] * gate.value[j]);
      Base::store_run(to_.dgate, i, left, dgate);
      if constexpr (!products) columns.add(kGate, dgate);
    } else if (to_.columns[kGate]) {
      if (token_gate) {  // what the gate reads times its gradient
        Run read = p.gate_input == GateInput::modified ? s : Base::load_run(p.h, i, left);
        if (p.granularity == Granularity::middle_x) Base::add_to(read, Base::load_run(p.x, i, left));
        columns.add(kGate, read, dlogit);
      } else {
        Run kept_dy = dy;
#pragma unroll
        for (int j = 0; j < kRun; ++j) kept_dy.value[j] = kept.keeps(j) ? dy.value[j] : C(0);
        columns.add(kGate, kept_dy, s);
      }
    }
    Base::multiply_by(dy, gate);
    if (token_gate && p.gate_input == GateInput::modified)
      add_times(dy, dlogit, Base::load_run(this->gate_of_s(), column, left));
    Base::store_run(to_.ds, i, left, dy);
    if constexpr (!products) columns.add(kUpBias, dy);
  }

  // What the norm takes, less its mean.
  template <class Left>
  PETX_DEVICE Run apart_from_mean(int row, int64_t i, Left left, const Run& y, C times) const {
    Run apart = this->residual(i, left);
    const C mean = Memory::row_value(kMean, row);
#pragma unroll
    for (int j = 0; j < kRun; ++j) apart.value[j] = y.value[j] * times + (apart.value[j] - mean);
    return apart;
  }
  // Of y, which for other gates than the large one is S until it is multiplied by that of the columns; a token's gate
  // is a factor besides.
  template <bool large, class Left>
  PETX_DEVICE void add_to_sums(int row, int64_t i, Left left, uint64_t seed, const Run& weight, Run y, Run gate,
                               RowSums<large>& sums) const {
    C times = constants.dropout.keep;
    if constexpr (!large) {
      this->drop(gate, i, seed, left);
      Base::multiply_by(y, gate);
      times *= Memory::row_value(kTokenGate, row);
    }
    Run dy = this->load_stream(g.dout, i, left);
    if (p.norm != Norm::none) {
      const Run apart = apart_from_mean(row, i, left, y, times);
      Base::multiply_by(dy, weight);
#pragma unroll
      for (int j = 0; j < kRun; ++j) sums.first += dy.value[j] * apart.value[j], sums.second += dy.value[j];
      if constexpr (!large) {
        if (!this->has_token_gate()) return;
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          sums.dots[0] += dy.value[j] * y.value[j], sums.dots[1] += y.value[j];
          sums.dots[2] += apart.value[j] * y.value[j];
        }
      }
    } else if constexpr (!large) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) sums.first += dy.value[j] * y.value[j];
    }
  }

  // The sums of a row's runs that lie side by side in four threads, a part of the row's.
  template <bool large>
  PETX_DEVICE void leave_row(int64_t part, int row, const RowSums<large>& sums) const {
    const bool norm = large || p.norm != Norm::none, writes = thread_index() % 4 == 0 && row < this->rows;
    const C first = Base::row_sum(sums.first), second = Base::row_sum(sums.second);
    const C rstd = Memory::row_value(kRstd, row), keep = constants.dropout.keep;
    const int64_t i = part * p.rows + this->first + row;
    if (writes && !norm) write(to_.dots + i, first * keep);
    if (writes && norm) write(to_.along + i, first * rstd), write(to_.mean_part + i, second);
    if constexpr (!large) {
      if (!norm || !this->has_token_gate()) return;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const C sum = Base::row_sum(sums.dots[k]) * keep;
        if (writes) write(to_.dots + k * to_.parts * p.rows + i, k == 2 ? sum * rstd : sum);
      }
    }
  }

  PETX_DEVICE bool has_vector_grads() const {
    bool any = false;
#pragma unroll
    for (int sum = 0; sum < Memory::kSums; ++sum) any = any || to_.columns[sum];
    return any;
  }
  // The sums of this thread's rows, beside those of the others that have these columns.
  PETX_DEVICE void leave_columns(int c, Columns& columns) const {
    constexpr int kPack = Memory::kPack;
#pragma unroll
    for (int sum = 0; sum < Memory::kSums; ++sum) {
      if (!to_.columns[sum]) continue;
      Run& run = columns.of[sum];
      Tile::join_rows(run);
      if (!Tile::leaves_columns()) continue;
#pragma unroll
      for (int at = 0; at < kRun; at += kPack) {
        Pack<C> pack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) pack.value[j] = run.value[at + j];
        Memory::sums().set(Memory::place(sum, Tile::column_group(), (c + at) / kPack), pack);
      }
    }
  }
  PETX_DEVICE void finish_columns(int begin, int end) const {
    constexpr int kPack = Memory::kPack, kPacks = Tile::kN / kPack;
    sync_block();
#pragma unroll 1
    for (int job = thread_index(); job < Memory::kSums * kPacks; job += Tile::kThreads) {
      const int sum = job / kPacks, pack = job % kPacks, left = end - begin - pack * kPack;
      if (!to_.columns[sum] || left <= 0) continue;
      typename RowBlock<C>::Run whole = {};
#pragma unroll
      for (int group = 0; group < Tile::kColumnGroups; ++group) {
        const Pack<C> part = Memory::sums().get(Memory::place(sum, group, pack));
#pragma unroll
        for (int j = 0; j < kPack; ++j) whole.value[j] += part.value[j];
      }
      RowBlock<C>::store_run(to_.columns[sum], block_x() * p.d + begin + pack * kPack, int64_t(left), whole);
    }
    sync_block();  // others write the next tile's there
  }

  PETX_DEVICE static void add_times(Run& run, C factor, const Run& other) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.value[j] += factor * other.value[j];
  }

  const GatedAdapterGrads& g;
  const SiteIntermediate<T>& to_;
};

}  // namespace petx::cuda
