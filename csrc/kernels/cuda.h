// What the host needs of the CUDA runtime, without its headers.
#pragma once

namespace petx::cuda {

// The runtime's words for a launcher's non-zero result.
const char* error_text(int code);

}  // namespace petx::cuda
