// Words for the codes that launchers return (kernels/cuda.h).

#include "kernels/cuda.h"

#include "cuda/common/primitives.cuh"

namespace petx::cuda {

const char* error_text(int code) { return runtime_error_text(code); }

}  // namespace petx::cuda
