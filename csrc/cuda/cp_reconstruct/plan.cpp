#include "cuda/cp_reconstruct/plan.h"

namespace petx::cuda {

static const Planner planner("cp_reconstruct", {{"modules", 48}, {"d_out", 768}, {"d_in", 768}, {"rank", 64}},
                             [](DType dtype, const Sizes& sizes) -> Plan {
                               CpReconstructParams p = {};
                               p.dtype = dtype, p.rank = sizes.at("rank");
                               p.modules = sizes.at("modules"), p.d_out = sizes.at("d_out"), p.d_in = sizes.at("d_in");
                               CpReconstructPlan plan(p);
                               int64_t tables = (p.modules + kTableModules - 1) / kTableModules;
                               std::string why = units_of(dtype) + "; " + std::to_string(plan.shares.each) + " of " +
                                                 std::to_string(plan.shares.tiles) + " tiles of columns per block; " +
                                                 std::to_string(tables) + (tables == 1 ? " launch" : " launches") +
                                                 " for up to 240 modules each";
                               if (plan.strips) why += ", behind one that makes what their rows keep in registers";
                               return {"table of pointers", why, plan.blocks_a_module(),
                                       p.modules < kTableModules ? p.modules : kTableModules};
                             });

}  // namespace petx::cuda
