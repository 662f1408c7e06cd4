// The choice among the loops that foreach_isa.h has compiled once per instruction set, and the pairs of types that they
// are instantiated for. Included only where they are instantiated.
#pragma once

#include <type_traits>

#include "cpu/common/isa.h"
#include "kernels/types.h"

// The value of the function template `...`, compiled for this machine's best instruction set.
#if PETX_X86
#define PETX_BEST(...)                               \
  (best_isa() == Isa::avx512 ? avx512::__VA_ARGS__() \
   : best_isa() == Isa::avx2 ? avx2::__VA_ARGS__()   \
                             : baseline::__VA_ARGS__())
#else
#define PETX_BEST(...) (baseline::__VA_ARGS__())
#endif

// Defines `function<T, G>()`, a table of loops that lives as long as the program: `loops_for<T, G>()` of the best
// instruction set.
#define PETX_LOOPS(Loops, function)                               \
  template <class T, class G>                                     \
  const Loops<T, G>& function() {                                 \
    static const Loops<T, G> chosen = PETX_BEST(loops_for<T, G>); \
    return chosen;                                                \
  }
// The same for loops that call functions of math.h. Those of double are libm's, which no vector unit speeds up: they
// are compiled for the baseline alone.
#define PETX_LOOPS_WITH_MATH(Loops, function)    \
  template <class T, class G>                    \
  const Loops<T, G>& function() {                \
    static const Loops<T, G> chosen = [] {       \
      if constexpr (std::is_same_v<T, double>) { \
        return baseline::loops_for<T, G>();      \
      } else {                                   \
        return PETX_BEST(loops_for<T, G>);       \
      }                                          \
    }();                                         \
    return chosen;                               \
  }

// The pairs of a storage type and the type that its GEMMs run in, as with_types (products.h) names them. In two halves,
// so that two cores can share the compilation.
#define PETX_INSTANTIATE_WHOLE(Loops, function)     \
  template const Loops<double, double>& function(); \
  template const Loops<float, float>& function();
#define PETX_INSTANTIATE_16BIT(Loops, function)         \
  template const Loops<BFloat16, BFloat16>& function(); \
  template const Loops<BFloat16, float>& function();    \
  template const Loops<Half, float>& function();
