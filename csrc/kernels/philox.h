// Philox4x32 with 7 rounds (Salmon et al., SC'11), counter-based: a dropout mask is a function of seed and position.
//
// Element e of a tensor is word e % 4 of counter e / 4 and is dropped if its upper 24 bits are below
// floor(p * 2^24). reference.philox_uniform is the same function in torch.
#pragma once

#include "kernels/types.h"

namespace petx {

struct Philox4 {
  uint32_t word[4];
};

PETX_INLINE Philox4 philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 7; ++round) {
    uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1), c3 = static_cast<uint32_t>(p0), c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

PETX_INLINE uint32_t dropout_threshold(double p) { return static_cast<uint32_t>(p * 16777216.0); }

}  // namespace petx
