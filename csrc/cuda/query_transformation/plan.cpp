#include "cuda/query_transformation/plan.h"

namespace petx::cuda {

static const Planner planner("query_transformation", {{"rows", 4112}, {"width", 768}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               QueryTransformationParams p = {};
                               p.dtype = dtype, p.rows = sizes.at("rows"), p.width = sizes.at("width");
                               const QueryTransformationPlan plan(p);
                               return {"one pass",
                                       "no products: " + std::to_string(plan.across) +
                                           " blocks along the columns, splits of " + std::to_string(plan.size) +
                                           " rows",
                                       plan.blocks(), 1};
                             });

}  // namespace petx::cuda
