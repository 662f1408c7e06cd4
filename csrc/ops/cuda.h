// Launches on the device and stream that torch's caller is on. Included only where CUDA kernels are built.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "kernels/cuda.h"
#include "ops/torch.h"

namespace petx {

// launch(stream) returns a cudaError_t; it is queued, never waited for.
template <class Launch>
void on_current_stream(const char* op, const Tensor& like, const Launch& launch) {
  torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  if (int error = launch(stream)) fail(op, "the CUDA kernel could not be launched: ", cuda::error_text(error));
}

}  // namespace petx
