// Torch's threads and matrix products for the CPU kernels (kernels/host.h).

#include "kernels/host.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "ops/torch.h"

namespace petx::host {
namespace {

class Borrowed {
 public:
  Borrowed(const Matrix& m, ScalarType dtype) {
    int64_t sizes[2] = {m.rows, m.cols}, strides[2] = {m.row_stride, m.col_stride};
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(m.data, 2, sizes, strides, 0, static_cast<int32_t>(dtype),
                                                              aoti_torch_device_type_cpu(), 0, &handle_));
  }
  ~Borrowed() { aoti_torch_delete_tensor_object(handle_); }
  Borrowed(const Borrowed&) = delete;
  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_;
};

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ScalarType::Double;
    case DType::bf16:
      return ScalarType::BFloat16;
    case DType::f16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

}  // namespace

void parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
  if (tasks == 0) return;
  // at::parallel_for opens no parallel region for a single task, and a product outside one would use all threads:
  // a second, empty task keeps the arithmetic the same whatever the number of threads.
  torch::stable::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
    end = std::min(end, tasks);
    if (begin < end) body(begin, end);
  });
}

void gemm(DType dtype, const Matrix& a, const Matrix& b, const Matrix& out, bool accumulate) {
  ScalarType type = scalar_type(dtype);
  Borrowed left(a, type), right(b, type), to(out, type);
  if (accumulate) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(to.get(), to.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), left.get(), right.get()));
  }
}

bool has_fast_bf16_gemm() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool fast = __builtin_cpu_supports("avx512bf16");  // every CPU with AMX has it too
  return fast;
#else
  return false;
#endif
}

}  // namespace petx::host
