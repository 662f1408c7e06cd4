// Instantiates the VL-PET site's row loops for float32 and float64, for every instruction set.

#include "cpu/gated_adapter/loops.h"

namespace petx::cpu {

PETX_INSTANTIATE_WHOLE(GatedAdapterLoops, gated_adapter_loops)

}  // namespace petx::cpu
