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

// The upper half of a product: by itself, which spares a GPU taking 64 bits apart.
PETX_INLINE uint32_t upper_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
#endif
}

PETX_INLINE Philox4 philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 7; ++round) {
    uint32_t n0 = upper_product(c2, 0xCD9E8D57u) ^ c1 ^ k0, n2 = upper_product(c0, 0xD2511F53u) ^ c3 ^ k1;
    c1 = c2 * 0xCD9E8D57u, c3 = c0 * 0xD2511F53u, c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

PETX_INLINE uint32_t dropout_threshold(double p) { return static_cast<uint32_t>(p * 16777216.0); }

}  // namespace petx
