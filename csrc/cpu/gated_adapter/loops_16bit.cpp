// Instantiates the VL-PET site's row loops for the 16-bit types, for every instruction set. A file of its own, so
// that two cores share the compilation.

#include "cpu/gated_adapter/loops.h"

namespace petx::cpu {

PETX_INSTANTIATE_16BIT(GatedAdapterLoops, gated_adapter_loops)

}  // namespace petx::cpu
