// Compiles a file of row loops once per instruction set and picks one at run time, so that a wheel built on one
// machine is fast on another. Usage: define PETX_ISA_BODY to the file's path and include this header; the body
// defines templates in the namespace that PETX_ISA names, and `pick(baseline, avx2, avx512)` chooses among them.
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
