// Backward of query_transformation on the GPU: dx = f a dout, da = f sum dout x, db = f sum dout.
//
// Bytes: dout and x once, dx once.
// Launches: two. In the first a block makes dx of its rows and columns and leaves their sums; the second adds up the
// splits' in their order.

#include "cuda/common/token_sums.cuh"
#include "cuda/query_transformation/block.cuh"

namespace petx::cuda {
namespace {

// What a block leaves to be added up.
template <class T>
struct SplitSums {
  Compute<T>*scale, *shift;  // [splits, stride], null if not wanted
  int64_t stride;            // the width in whole runs
};

template <class T, class Left>
PETX_DEVICE void rows_gradient(const TransformationCall<T>& call, T* dx, const SplitSums<T>& sums,
                               TransformationThread<T>& thread, RunOf<T>& by_scale, RunOf<T>& by_shift, Left left) {
  using Block = RowBlock<T>;
  constexpr int kRun = Block::kRun;
  typename Block::Run scale = {};
  if (dx) scale = Block::load_run(call.scale, thread.column, left);
#pragma unroll
  for (int j = 0; j < kRun; ++j) scale.value[j] *= call.factor;
  const T *x = thread.first(call.read), *dout = thread.first(call.other);
  dx = dx ? dx + thread.row * call.width + thread.column : nullptr;
#pragma unroll 1
  for (int more = thread.count; more > 0; --more) {
    const Pack<T> grads = load_pack(dout, left), read = sums.scale ? load_pack(x, left) : Pack<T>{};
    typename Block::Run grad, value;
    unpack<T>(grad.value, grads);
    unpack<T>(value.value, read);
#pragma unroll
    for (int j = 0; j < kRun; ++j) by_scale.value[j] += grad.value[j] * value.value[j];
    Block::add_to(by_shift, grad);
    if (dx) {
      Block::multiply_by(grad, scale);
      Block::store_run(dx, 0, left, grad);
      dx += QueryTransformationPlan::kRowsAtOnce * call.width;
    }
    thread.next();
    thread.on(x, call.read);
    thread.on(dout, call.other);
  }
}

template <class T>
PETX_KERNEL void __launch_bounds__(kSumLaunch.threads, kSumLaunch.blocks)
    transformed_rows_backward(TransformationCall<T> call, T* dx, SplitSums<T> sums) {
  using C = Compute<T>;
  using Parts = ColumnParts<T>;
  using Thread = TransformationThread<T>;
  Thread thread(call);
  RunOf<T> by_scale = {}, by_shift = {};
  const int64_t left = call.width - thread.column;
  if (left > 0) {
    if (call.whole)
      rows_gradient(call, dx, sums, thread, by_scale, by_shift, WholeRuns{});
    else
      rows_gradient(call, dx, sums, thread, by_scale, by_shift, left);
  }
  if (!sums.scale && !sums.shift) return;
  const Parts of_scale(0), of_shift(Parts::kSharedBytes);
  of_scale.set(by_scale);
  of_shift.set(by_shift);
  sync_block();
  const int c = thread_index();
  const int64_t column = Thread::first_column(call) + c, place = Thread::split_of(call) * sums.stride + column;
  if (c >= ColumnSum<T>::kColumns || column >= call.width) return;
  const C factor = call.factor;
  if (sums.scale) write(sums.scale + place, factor * of_scale.whole(c));
  if (sums.shift) write(sums.shift + place, factor * of_shift.whole(c));
}

// One call: its workspace, and the launches in their order.
template <class T>
class BackwardCall {
  using C = Compute<T>;

 public:
  BackwardCall(Workspace& workspace, const QueryTransformationParams& params, const QueryTransformationGrads& grads)
      : p(params), g(grads), plan_(p), sums_{} {
    constexpr int kRun = Reduction<T>::kRun;
    sums_.stride = (p.width + kRun - 1) / kRun * kRun;
    sums_.scale = workspace.take<C>(g.dscale ? plan_.splits * sums_.stride : 0);
    sums_.shift = workspace.take<C>(g.dshift ? plan_.splits * sums_.stride : 0);
  }

  int run(void* stream) const {
    const TransformationCall<T> call(p, g.dout, g.dx);
    int error = launch(transformed_rows_backward<T>, plan_.blocks(), 1, kSumLaunch.threads,
                       2 * ColumnParts<T>::kSharedBytes, stream, call, static_cast<T*>(g.dx), sums_);
    if (error) return error;
    Reductions<T, kFewReductions> sums = {};
    auto add = [&](void* to, int leaf, const C* from) {
      if (!to) return;
      sums.each[sums.count++] = {from, GradTo<T>::of(to, g.narrow, leaf), plan_.splits, sums_.stride, p.width, nullptr};
    };
    add(g.dscale, 1, sums_.scale);
    add(g.dshift, 2, sums_.shift);
    return launch_reductions(sums, stream);
  }

 private:
  const QueryTransformationParams& p;
  const QueryTransformationGrads& g;
  const QueryTransformationPlan plan_;
  SplitSums<T> sums_;
};

}  // namespace

int64_t query_transformation_bwd_workspace(const QueryTransformationParams& p, const QueryTransformationGrads& g) {
  return p.rows ? count_workspace<BackwardCall>(p.dtype, p, g) : 0;
}

int query_transformation_bwd(const QueryTransformationParams& p, const QueryTransformationGrads& g, void* workspace,
                             void* stream) {
  return p.rows ? run_call<BackwardCall>(p.dtype, workspace, stream, p, g) : 0;
}

}  // namespace petx::cuda
