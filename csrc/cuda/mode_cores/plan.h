// How a call of mode_cores is launched: 64 modes by 64 of the core's rows per block, along one axis of the grid, since
// the other ends at 65,535 and there may be more modes than so many tiles have.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/mode_cores.h"

namespace petx::cuda {

struct ModeCoresPlan {
  int64_t across, down;  // tiles of the core's rows and of modes

  explicit ModeCoresPlan(const ModeCoresParams& p) : across(tiles_along(p.slices())), down(tiles_along(p.modes)) {}
  int64_t blocks() const { return across * down; }
};

}  // namespace petx::cuda
