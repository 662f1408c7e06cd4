// How a call of gated_adapter is launched.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/gated_adapter.h"

namespace petx::cuda {

struct GatedAdapterPlan {
  int64_t blocks;  // of 64 rows
  bool two_steps;  // `small`: a gate that is a mean over its sample comes between the rows' two launches

  explicit GatedAdapterPlan(const GatedAdapterParams& p)
      : blocks(tiles_along(p.rows)), two_steps(p.granularity == Granularity::small) {}
};

}  // namespace petx::cuda
