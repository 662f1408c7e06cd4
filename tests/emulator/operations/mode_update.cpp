// What Python calls (mode_update.py): numbers and pointers in the order of ModeUpdateParams' members.

#include "kernels/mode_update.h"

#include "cuda/mode_update/block.cuh"
#include "simt.h"

#include <initializer_list>

using namespace petx;

static ModeUpdateParams params(const int64_t* integers, const double* reals, void* const* tensors) {
  ModeUpdateParams p = {};
  p.dtype = static_cast<DType>(*integers++);
  for (int64_t* to : {&p.rows, &p.d_in, &p.d_out, &p.rank, &p.count}) *to = *integers++;
  p.diagonal = *integers++, p.shared_mask = *integers++;
  p.dropout = reals[0];
  for (const void** to : {&p.x, &p.u, &p.v, &p.cores}) *to = *tensors++;
  p.seed = static_cast<const int64_t*>(*tensors++);
  p.h = *tensors++;
  return p;
}

extern "C" int64_t mode_update_fwd_workspace(const int64_t* integers, const double* reals, void* const* tensors) {
  return cuda::mode_update_fwd_workspace(params(integers, reals, tensors));
}

// `results`: the bases, then y, four each. The last of `integers` is the bases' row stride.
extern "C" int mode_update_fwd(const int64_t* integers, const double* reals, void* const* tensors, void* const* results,
                               void* workspace) {
  ModeUpdateOutputs out = {};
  out.base_stride = integers[8];
  for (int k = 0; k < kMostModes; ++k) out.base[k] = results[k], out.y[k] = results[kMostModes + k];
  return cuda::mode_update_fwd(params(integers, reals, tensors), out, workspace, nullptr);
}

// The four dy, then the gradients of x, u, v and the cores.
static ModeUpdateGrads grads(const int64_t* integers, void* const* tensors) {
  ModeUpdateGrads g = {};
  g.narrow = integers[8];  // behind those of the parameters
  for (const void*& dy : g.dy) dy = *tensors++;
  for (void** to : {&g.dx, &g.du, &g.dv, &g.dcores}) *to = *tensors++;
  return g;
}

extern "C" int64_t mode_update_bwd_workspace(const int64_t* integers, const double* reals, void* const* tensors,
                                             void* const* gradients) {
  return cuda::mode_update_bwd_workspace(params(integers, reals, tensors), grads(integers, gradients));
}

extern "C" int mode_update_bwd(const int64_t* integers, const double* reals, void* const* tensors,
                               void* const* gradients, void* workspace) {
  return cuda::mode_update_bwd(params(integers, reals, tensors), grads(integers, gradients), workspace, nullptr);
}

// The factors that projection k's mask has for the first run of row 64 `block`: for rows of tensors that no test can
// hold.
extern "C" int mode_update_factors(const int64_t* integers, const double* reals, void* const* tensors, int64_t block,
                                   int64_t k, float* to) {
  using Block = cuda::ModeBlock<float>;
  const cuda::ModeCall<float> call(params(integers, reals, tensors));
  const bool right = simt::launch(1, 1, Block::Tile::kThreads, 0, [&] {
    const Block rows(call, block);
    if (cuda::thread_index()) return;
    Block::Run run;
    for (float& value : run.value) value = 1;
    rows.drop(run, k, 0);
    for (int j = 0; j < Block::kRun; ++j) cuda::write(to + j, run.value[j]);
  });
  return right ? 0 : 1;
}
