#include "cuda/gated_adapter/plan.h"

namespace petx::cuda {

static const Planner planner("gated_adapter", {{"rows", 28000}, {"granularity", int64_t(Granularity::large)}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               GatedAdapterParams p = {};
                               p.rows = sizes.at("rows");
                               p.granularity = static_cast<Granularity>(sizes.at("granularity"));
                               GatedAdapterPlan plan(p);
                               std::string why = units_of(dtype) + "; a block for each 64 rows, whose norm and gate " +
                                                 "need a whole row";
                               if (plan.two_steps)
                                 why += "; two launches, because granularity small takes a sample's mean";
                               return {plan.two_steps ? "two steps" : "one step", why, plan.blocks, 1};
                             });

}  // namespace petx::cuda
