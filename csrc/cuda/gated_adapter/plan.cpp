#include "cuda/gated_adapter/plan.h"

#include <stdexcept>

namespace petx::cuda {

static const Planner planner("gated_adapter",
                             {{"rows", 28000},
                              {"d", 768},
                              {"r", 96},
                              {"r_g", 96},
                              {"heads", 1},
                              {"granularity", int64_t(Granularity::large)},
                              {"norm", 1}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               GatedAdapterParams p = {};
                               p.rows = sizes.at("rows"), p.d = sizes.at("d"), p.heads = sizes.at("heads");
                               p.granularity = static_cast<Granularity>(sizes.at("granularity"));
                               p.norm = static_cast<Norm>(sizes.at("norm"));
                               p.r = sizes.at("r"), p.r_g = p.granularity == Granularity::large ? sizes.at("r_g") : 0,
                               p.dtype = dtype;
                               if (p.heads < 1)
                                 throw std::invalid_argument("gated_adapter's heads must be at least 1, got 0");
                               GatedAdapterPlan plan(p);
                               std::string why = rows_of(dtype, plan.blocks, plan.up.count);
                               why += ", up by tiles of 64 x " + std::to_string(plan.up.width);
                               why += words_of("down", plan.down) + words_of("dS up", plan.hidden_grad) +
                                      words_of("gradients", plan.grads(p).kind);
                               const int passes = plan.row_passes(p);
                               if (passes == 1) why += "; then a pass over rows, whose norm or gate needs all columns";
                               if (passes == 2)
                                 why += "; then two passes over rows, because granularity small takes a sample's mean";
                               return {plan.up.count > 1 ? "column shares" : "whole rows", why, plan.blocks,
                                       plan.up.count};
                             });

}  // namespace petx::cuda
