// Instantiates the VL-PET site's row loops for float32 and float64, for every instruction set.

#include "cpu/gated_adapter/loops.h"

namespace petx::cpu {

template const SiteRows<double, double>& site_rows();
template const SiteRows<float, float>& site_rows();

}  // namespace petx::cpu
