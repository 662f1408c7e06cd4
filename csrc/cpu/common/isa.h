// Which instruction sets the CPU kernels are compiled for, and which of them this machine runs, so that a wheel built
// on one machine is fast on another. foreach_isa.h does the compiling.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PETX_X86 1
#else
#define PETX_X86 0
#endif

namespace petx::cpu {

enum class Isa { baseline, avx2, avx512 };

inline Isa best_isa() {
#if PETX_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

}  // namespace petx::cpu
