// What forward and backward of query_transformation share: f a and f b in the compute type, and rows that lie evenly
// apart taken together.
#pragma once

#include "cpu/common/products.h"
#include "cpu/query_transformation/rows.h"
#include "kernels/query_transformation.h"

namespace petx::cpu {

template <class T, class G>
class QueryTransformationCall {
  using C = Compute<T>;

 public:
  explicit QueryTransformationCall(const QueryTransformationParams& p)
      : loops(query_transformation_loops<T, G>()), scale(scaled(p, p.scale)), shift(scaled(p, p.shift)), p_(p) {}

  // Below so many rows a call takes one thread: another would take longer to wake than these take.
  int64_t few() const { return kFewValues / p_.width + 1; }

  // Calls visit(first row, rows, its number among its sample's, the sample) for parts of [begin, end) that lie in one
  // sample each.
  template <class Visit>
  void each_sample(int64_t begin, int64_t end, const Visit& visit) const {
    for (int64_t row = begin; row < end;) {
      const int64_t sample = row / p_.length, within = row % p_.length;
      const int64_t count = std::min(end - row, p_.length - within);
      visit(row, count, sample, within);
      row += count;
    }
  }
  static const T* at(const RowPlaces& places, int64_t sample, int64_t within) {
    return places.data ? static_cast<const T*>(places.data) + places.of(sample, within) : nullptr;
  }

  const QueryTransformationLoops<T, G>& loops;
  const Buffer<C> scale, shift;

 private:
  static constexpr int64_t kFewValues = 1 << 17;

  static Buffer<C> scaled(const QueryTransformationParams& p, const void* from) {
    if (!from) return nullptr;
    Buffer<C> to = buffer<C>(p.width);
    for (int64_t j = 0; j < p.width; ++j) to[j] = C(p.factor) * C(load(static_cast<const T*>(from)[j]));
    return to;
  }

  const QueryTransformationParams& p_;
};

}  // namespace petx::cpu
