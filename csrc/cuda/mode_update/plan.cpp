#include "cuda/mode_update/plan.h"

namespace petx::cuda {

static const Planner planner("mode_update", {{"rows", 4112}, {"d_out", 768}, {"count", 3}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               ModeUpdateParams p = {};
                               p.rows = sizes.at("rows"), p.d_out = sizes.at("d_out"), p.count = sizes.at("count");
                               ModeUpdatePlan plan(p);
                               std::string why =
                                   units_of(dtype) + "; " + std::to_string(plan.blocks) + " blocks of 64 rows";
                               why += plan.shares > 1 ? ", too few for a large card, so " +
                                                            std::to_string(plan.shares) + " share the columns"
                                                      : ", enough for a large card";
                               return {plan.shares > 1 ? "column shares" : "whole rows", why, plan.blocks, plan.shares};
                             });

}  // namespace petx::cuda
