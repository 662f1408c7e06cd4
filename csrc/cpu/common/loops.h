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

// Defines `function<T, G>()`, a table of loops that lives as long as the program: `rows_for<T, G>()` of the best
// instruction set.
#define PETX_LOOPS(Rows, function)                              \
  template <class T, class G>                                   \
  const Rows<T, G>& function() {                                \
    static const Rows<T, G> chosen = PETX_BEST(rows_for<T, G>); \
    return chosen;                                              \
  }
// The same where the loops call functions of math.h. Those of double are libm's, which no vector unit speeds up: they
// are compiled for the baseline alone.
#define PETX_LOOPS_WITH_MATH(Rows, function)     \
  template <class T, class G>                    \
  const Rows<T, G>& function() {                 \
    static const Rows<T, G> chosen = [] {        \
      if constexpr (std::is_same_v<T, double>) { \
        return baseline::rows_for<T, G>();       \
      } else {                                   \
        return PETX_BEST(rows_for<T, G>);        \
      }                                          \
    }();                                         \
    return chosen;                               \
  }

// The pairs of a storage type and the type that its products run in, as with_types (products.h) calls for them. In two
// halves, so that two cores can share the compilation.
#define PETX_INSTANTIATE_WHOLE(Rows, function)     \
  template const Rows<double, double>& function(); \
  template const Rows<float, float>& function();
#define PETX_INSTANTIATE_16BIT(Rows, function)         \
  template const Rows<BFloat16, BFloat16>& function(); \
  template const Rows<BFloat16, float>& function();    \
  template const Rows<Half, float>& function();
