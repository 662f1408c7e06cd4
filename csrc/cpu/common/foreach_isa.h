// Compiles the file named by PETX_ISA_BODY once per instruction set, each time in a namespace of its own. No include
// guard: a translation unit may do it for several bodies.

#include "cpu/common/isa.h"

namespace petx::cpu::baseline {
#include PETX_ISA_BODY
}

#if PETX_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
namespace petx::cpu::avx2 {
#include PETX_ISA_BODY
}
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
namespace petx::cpu::avx512 {
#include PETX_ISA_BODY
}
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace petx::cpu::avx2 {
#include PETX_ISA_BODY
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
namespace petx::cpu::avx512 {
#include PETX_ISA_BODY
}
#pragma GCC pop_options
#endif
#endif

#undef PETX_ISA_BODY
