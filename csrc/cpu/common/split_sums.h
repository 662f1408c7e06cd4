// Gradients that are sums over tokens, in an order that the shape alone fixes.
//
// Tokens are cut into splits (row_splits). One thread sums a split, block after block, into accumulators of its own
// (the first split into the result itself); the splits are then added up in their order. So the bits do not depend on
// the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "cpu/common/products.h"

namespace petx::cpu {

template <class T, class G>
class SplitSums {
 public:
  using C = Compute<T>;

  // One sum: `count` values at `offset` of every split's accumulators, for the caller's `to`, null if not wanted.
  struct Sum {
    void* to;
    int64_t offset, count;
    bool overwritten;
    // This sum inside a split's accumulators. A null `split` is split 0, which adds into the caller's result itself.
    C* in(C* split) const { return !to ? nullptr : split ? split + offset : static_cast<C*>(to); }
  };

  // Accumulators start as zeros, or are left as they are if the first block's `product` overwrites them.
  Sum add(void* to, int64_t count, bool overwritten = false) {
    Sum s{to, count_, to ? count : 0, overwritten};
    count_ += ceil_div(s.count, 16) * 16;  // 64-byte aligned: a product's rounding can depend on its result's address
    if (to) all_.at(wanted_++) = s;
    return s;
  }

  // Scratch values that `product` needs for the largest of `sums`.
  int64_t scratch(std::initializer_list<Sum> sums) const {
    int64_t most = 0;
    if (!std::is_same_v<G, C>)
      for (const Sum& s : sums) most = std::max(most, s.count);
    return most;
  }

  // Calls body(split's first row, its end, its accumulators) for every split, then adds the splits up.
  // make_scratch(rows of the longest split) is called once per thread, and body gets its result first. Rows below `few`
  // are one split.
  template <class MakeScratch, class Body>
  void run(int64_t rows, const MakeScratch& make_scratch, const Body& body, int64_t few = kFewRows) const {
    Division splits = row_splits(rows, few);
    if (splits.parts() == 1) {
      clear(nullptr);
      host::parallel(1, [&](int64_t, int64_t) {
        auto scratch = make_scratch(rows);
        body(scratch, 0, rows, static_cast<C*>(nullptr));
      });
      return;
    }
    Buffer<C> sums = buffer<C>((splits.parts() - 1) * count_);
    host::parallel(splits.parts(), [&](int64_t begin, int64_t end) {
      auto scratch = make_scratch(std::min(splits.size, rows));
      for (int64_t split = begin; split < end; ++split) {
        C* into = split ? sums.get() + (split - 1) * count_ : nullptr;
        clear(into);
        body(scratch, splits.begin(split), splits.begin(split + 1), into);
      }
    });
    constexpr int64_t kChunk = 16384;
    for (const Sum& s : wanted())
      host::parallel(ceil_div(s.count, kChunk), [&](int64_t begin, int64_t end) {
        int64_t from = begin * kChunk, count = std::min(end * kChunk, s.count) - from;
        vectors<T, G>().reduce(sums.get() + s.offset + from, splits.parts() - 1, count_, count, true,
                               static_cast<C*>(s.to) + from);
      });
  }

  // Adds a block's product to a split's sum, or overwrites that unless `more`: inside the GEMM if it runs in C,
  // else by a separate float sum, so that no sum over blocks is kept in 16 bits. product(to, accumulate) multiplies
  // into G.
  template <class Product>
  static void product(const Sum& s, const Buffer<G>& scratch, C* into, bool more, const Product& product) {
    if (!s.to) return;
    if constexpr (std::is_same_v<G, C>) {
      product(s.in(into), more);
    } else {
      product(scratch.get(), false);
      if (!more) std::fill_n(s.in(into), s.count, C(0));
      vectors<T, G>().accumulate(scratch.get(), s.count, s.in(into));
    }
  }

 private:
  std::span<const Sum> wanted() const { return {all_.data(), wanted_}; }

  void clear(C* split) const {
    for (const Sum& s : wanted())
      if (!s.overwritten) std::fill_n(s.in(split), s.count, C(0));
  }

  int64_t count_ = 0;
  std::array<Sum, 16> all_ = {};  // the first wanted_; more than any operation has
  size_t wanted_ = 0;
};

// Calls body(first row, rows) for consecutive blocks of [begin, end).
template <class G, class Body>
void each_block(int64_t begin, int64_t end, const Body& body) {
  Division blocks = divide(end - begin, ceil_div(end - begin, kMostRows<G>), kMostRows<G>);
  for (int64_t k = 0; k < blocks.parts(); ++k) body(begin + blocks.begin(k), blocks.begin(k + 1) - blocks.begin(k));
}

}  // namespace petx::cpu
