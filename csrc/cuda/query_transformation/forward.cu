// Forward of query_transformation on the GPU: y = to + f (x a + b).
//
// Bytes: x, to and y once. A thread keeps f a and f b of its columns for all its rows.

#include "cuda/query_transformation/block.cuh"

namespace petx::cuda {
namespace {

template <class T, class Left>
PETX_DEVICE void transform(const TransformationCall<T>& call, T* y, TransformationThread<T>& thread, Left left) {
  using Block = RowBlock<T>;
  constexpr int kRun = Block::kRun;
  typename Block::Run scale = Block::load_run(call.scale, thread.column, left);
  typename Block::Run shift = Block::load_run(call.shift, thread.column, left);
#pragma unroll
  for (int j = 0; j < kRun; ++j) scale.value[j] *= call.factor, shift.value[j] *= call.factor;
  const T *x = thread.first(call.read), *to = call.other.data ? thread.first(call.other) : nullptr;
  y += thread.row * call.width + thread.column;
#pragma unroll 1
  for (int more = thread.count; more > 0; --more) {
    const Pack<T> read = load_pack(x, left), other = to ? load_pack(to, left) : Pack<T>{};
    typename Block::Run sum, added;
    unpack<T>(sum.value, read);
    unpack<T>(added.value, other);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum.value[j] = added.value[j] + (sum.value[j] * scale.value[j] + shift.value[j]);
    Block::store_run(y, 0, left, sum);
    y += QueryTransformationPlan::kRowsAtOnce * call.width;
    thread.next();
    thread.on(x, call.read);
    if (to) thread.on(to, call.other);
  }
}

template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    transformed_rows(TransformationCall<T> call, T* y) {
  TransformationThread<T> thread(call);
  const int64_t left = call.width - thread.column;
  if (left <= 0) return;
  if (call.whole)
    transform(call, y, thread, WholeRuns{});
  else
    transform(call, y, thread, left);
}

}  // namespace

int query_transformation_fwd(const QueryTransformationParams& p, void* y, void* stream) {
  if (p.rows == 0) return 0;
  return with_storage(p.dtype, [&]<class T>() {
    const QueryTransformationPlan plan(p);
    const TransformationCall<T> call(p, p.to, y);
    return launch(transformed_rows<T>, plan.blocks(), 1, kSumLaunch.threads, 0, stream, call, static_cast<T*>(y));
  });
}

}  // namespace petx::cuda
