// Forward of query_transformation on the CPU: one pass.

#include "cpu/query_transformation/call.h"

namespace petx::cpu {

void query_transformation_fwd(const QueryTransformationParams& p, void* y) {
  with_types(p.dtype, [&]<class T, class G>() {
    const QueryTransformationCall<T, G> call(p);
    const Division blocks = row_splits(p.rows, call.few());
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      call.each_sample(
          blocks.begin(begin), blocks.begin(end), [&](int64_t row, int64_t rows, int64_t sample, int64_t within) {
            call.loops.forward(call.at(p.x, sample, within), p.x.row, call.at(p.to, sample, within), p.to.row,
                               call.scale.get(), call.shift.get(), rows, p.width, static_cast<T*>(y) + row * p.width);
          });
    });
  });
}

}  // namespace petx::cpu
