// Torch's GEMM on memory that kernels know by address, on any device: for launchers that leave GEMMs to torch.
#pragma once

#include "kernels/host.h"
#include "ops/torch.h"

namespace petx {

// out = a b on the current stream; `device` is a torch::stable::Device. Returns 0: torch's errors are exceptions.
inline int multiply_on_device(void* device, DType dtype, const host::Matrix& a, const host::Matrix& b,
                              const host::Matrix& out) {
  auto borrowed = [&](const host::Matrix& m) {
    return torch::stable::from_blob(m.data, {m.rows, m.cols}, {m.row_stride, m.col_stride},
                                    *static_cast<torch::stable::Device*>(device), scalar_type(dtype));
  };
  std::array<StableIValue, 3> stack{torch::stable::detail::from(borrowed(a)), torch::stable::detail::from(borrowed(b)),
                                    torch::stable::detail::from(borrowed(out))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the result's handle is ours to let go
  return 0;
}

}  // namespace petx
