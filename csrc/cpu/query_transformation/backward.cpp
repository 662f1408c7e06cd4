// Backward of query_transformation on the CPU: dx = f a dout, da = f sum dout x, db = f sum dout, in one pass over
// the rows. The sums are split as sums over tokens are (split_sums.h).

#include "cpu/common/split_sums.h"
#include "cpu/query_transformation/call.h"

namespace petx::cpu {

void query_transformation_bwd(const QueryTransformationParams& p, const QueryTransformationGrads& g) {
  with_types(p.dtype, [&]<class T, class G>() {
    using C = Compute<T>;
    const QueryTransformationCall<T, G> call(p);
    SplitSums<T, G> sums;
    const auto dscale = sums.add(g.dscale, p.width), dshift = sums.add(g.dshift, p.width);
    T* dx = static_cast<T*>(g.dx);
    sums.run(
        p.rows, [](int64_t) { return 0; },
        [&](int, int64_t begin, int64_t end, C* into) {
          call.each_sample(begin, end, [&](int64_t row, int64_t rows, int64_t sample, int64_t within) {
            call.loops.backward(call.at(g.dout, sample, within), g.dout.row, call.at(p.x, sample, within), p.x.row,
                                call.scale.get(), rows, p.width, dx ? dx + row * p.width : nullptr, dscale.in(into),
                                dshift.in(into));
          });
        },
        call.few());
    for (void* sum : {g.dscale, g.dshift})
      for (int64_t j = 0; sum && j < p.width; ++j) static_cast<C*>(sum)[j] *= C(p.factor);
  });
}

}  // namespace petx::cpu
