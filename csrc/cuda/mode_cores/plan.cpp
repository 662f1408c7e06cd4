#include "cuda/mode_cores/plan.h"

namespace petx::cuda {

static const Planner planner("mode_cores", {{"modes", 54}, {"rank", 64}, {"diagonal", 0}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               ModeCoresParams p = {};
                               p.modes = sizes.at("modes"), p.rank = sizes.at("rank");
                               if (sizes.at("diagonal"))
                                 return {"diagonal", "a thread per value", (p.modes * p.rank + 255) / 256, 1};
                               ModeCoresPlan plan(p);
                               return {"full", units_of(dtype) + "; the gate is taken while an operand is read",
                                       plan.blocks(), 1};
                             });

}  // namespace petx::cuda
