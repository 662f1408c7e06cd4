// Instantiates the loops of vectors.inl for every pair of types and every instruction set.

#include "cpu/common/vectors.h"

#include "cpu/common/loops.h"

#define PETX_ISA_BODY "cpu/common/vectors.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS(Vectors, vectors)
PETX_INSTANTIATE_WHOLE(Vectors, vectors)
PETX_INSTANTIATE_16BIT(Vectors, vectors)

}  // namespace petx::cpu
