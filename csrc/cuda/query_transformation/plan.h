// How a call of query_transformation is launched: one pass over the rows (common/column_pass.h).
#pragma once

#include "cuda/common/column_pass.h"
#include "kernels/query_transformation.h"

namespace petx::cuda {

struct QueryTransformationPlan : ColumnPass {
  explicit QueryTransformationPlan(const QueryTransformationParams& p)
      : ColumnPass(p.dtype, p.rows, p.width, kSumLaunch.blocks) {}
};

}  // namespace petx::cuda
