// Compiles the file named by PETX_ISA_BODY once per instruction set, each time in a namespace of its own. No include
// guard: a translation unit may do it for several bodies. Where the compiler needs to be told how, a body asks
// PETX_ISA_IS(avx2), as with #if.

#include "cpu/common/isa.h"

#if PETX_X86
#include <immintrin.h>
#endif

#define PETX_ISA_baseline 0
#define PETX_ISA_avx2 1
#define PETX_ISA_avx512 2
#define PETX_ISA_IS(name) (PETX_ISA == PETX_ISA_##name)

#define PETX_ISA PETX_ISA_baseline
namespace petx::cpu::baseline {
#include PETX_ISA_BODY
}
#undef PETX_ISA

#if PETX_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#define PETX_ISA PETX_ISA_avx2
namespace petx::cpu::avx2 {
#include PETX_ISA_BODY
}
#undef PETX_ISA
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
#define PETX_ISA PETX_ISA_avx512
namespace petx::cpu::avx512 {
#include PETX_ISA_BODY
}
#undef PETX_ISA
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define PETX_ISA PETX_ISA_avx2
namespace petx::cpu::avx2 {
#include PETX_ISA_BODY
}
#undef PETX_ISA
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
#define PETX_ISA PETX_ISA_avx512
namespace petx::cpu::avx512 {
#include PETX_ISA_BODY
}
#undef PETX_ISA
#pragma GCC pop_options
#endif
#endif

#undef PETX_ISA_IS
#undef PETX_ISA_avx512
#undef PETX_ISA_avx2
#undef PETX_ISA_baseline
#undef PETX_ISA_BODY
