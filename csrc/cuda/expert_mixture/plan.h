// How a call of expert_mixture is launched: fused, or hybrid with the wide products made by torch (cuBLAS).
#pragma once

#include "cuda/common/wide_plan.h"
#include "kernels/expert_mixture.h"

namespace petx::cuda {

struct ExpertMixturePlan {
  int64_t blocks;       // of 64 rows
  ColumnShares shares;  // of the blocks, for y's and dx's columns where torch makes the products
  TiledColumns up;      // the same where they are made here
  bool hybrid;
  std::string why;

  explicit ExpertMixturePlan(const ExpertMixtureParams& p);
};

}  // namespace petx::cuda
