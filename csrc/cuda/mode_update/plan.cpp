#include "cuda/mode_update/plan.h"

namespace petx::cuda {

static std::string splits_of(const char* product, const DepthSplits& splits) {
  return words_of(product, splits.kind) + " in " + std::to_string(splits.count) +
         (splits.count > 1 ? " splits of its depth" : " piece");
}

static const Planner planner("mode_update", {{"rows", 4112}, {"d_in", 768}, {"d_out", 768}, {"rank", 64}, {"count", 3}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               ModeUpdateParams p = {};
                               p.rows = sizes.at("rows"), p.d_out = sizes.at("d_out"), p.count = sizes.at("count");
                               p.d_in = sizes.at("d_in"), p.rank = sizes.at("rank"), p.x = &p;  // not read
                               p.dtype = dtype;
                               ModeUpdatePlan plan(p);
                               std::string why = rows_of(dtype, plan.blocks, plan.up.count);
                               why += ", for each of " + std::to_string(p.count) + " projections";
                               why += ", results by tiles of 64 x " + std::to_string(plan.up.width);
                               why += splits_of("x U^T", plan.down) + splits_of("dy V", plan.out);
                               return {plan.up.count > 1 ? "column shares" : "whole rows", why, plan.blocks,
                                       p.count * plan.up.count};
                             });

}  // namespace petx::cuda
