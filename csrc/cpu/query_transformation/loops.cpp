// Instantiates the row loops of query_transformation for every pair of types and every instruction set.

#include "cpu/common/loops.h"
#include "cpu/query_transformation/rows.h"

#define PETX_ISA_BODY "cpu/query_transformation/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS(QueryTransformationLoops, query_transformation_loops)
PETX_INSTANTIATE_WHOLE(QueryTransformationLoops, query_transformation_loops)
PETX_INSTANTIATE_16BIT(QueryTransformationLoops, query_transformation_loops)

}  // namespace petx::cpu
