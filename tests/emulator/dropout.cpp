// The kernels' dropout at a position, for Python: positions of tensors that no test can hold.

#include "cuda/common/dropout.cuh"

#include <algorithm>

extern "C" void simt_dropout_factors(double p, uint64_t seed, uint64_t element, float* to) {
  const int64_t any = 0;  // a seed to be there; its value is given
  const petx::cuda::Dropout<float> dropout(p, &any);
  float factors[8];
  dropout.factors(factors, element, seed);
  std::copy(factors, factors + 8, to);
}
