#include "cuda/expert_mixture/plan.h"

#include <cstdlib>
#include <cstring>

namespace petx::cuda {

DownTiles::DownTiles(const ExpertMixtureParams& p, int64_t experts, bool may_split) : depth(p.d) {
  int64_t least = INT64_MAX;
  auto consider = [&](TileKind of, bool together, int64_t tiles) {
    // Of both kinds that there are beside 64 x 64, PETX_CUDA_WIDE=2 asks for the narrower.
    if (!may_take({of.parts == 1 ? 2 : of.parts}, p.dtype, p.rows)) return;
    const int64_t cost = tile_cycles(of, of.down(p.rows) * tiles, p.d, 4 * of.rows() * of.columns());
    if (cost < least) least = cost, kind = of, joined = together, depth = p.d, splits = 1;
    if (of.parts != 1 || !may_split) return;
    // Parts are written, read and added, which takes about as long as a third transfer.
    const int64_t part = 3 * 4 * p.rows * (p.stacked + experts) / (24 * kMultiprocessors);
    for (int64_t wanted = 2; wanted <= kMostSplits; ++wanted) {
      const int64_t each = (tiles_along(p.d) + wanted - 1) / wanted * kTile, count = (p.d + each - 1) / each;
      const int64_t of_parts =
          tile_cycles(of, of.down(p.rows) * tiles * count, each, 4 * of.rows() * of.columns()) + part * count;
      if (count > 1 && of_parts < least) least = of_parts, kind = of, joined = together, depth = each, splits = count;
    }
  };
  for (int parts : {0, 1, 3})
    consider({parts}, false, TileKind{parts}.across(p.stacked) + TileKind{parts}.across(experts));
  if (experts && p.stacked <= 64 && experts <= 32) consider({3}, true, 1);
}

// cuBLAS' larger tiles make more operations per byte of shared memory than 64 x 64 do; the fused kernel
// spares launches and passes over x, y and u. So cuBLAS wins if operations bound the whole (a rank of 192 and
// more) and there are rows enough that launches do not count: 4096 for the released K r = 384, more for a lower rank.
// From a model of bytes and operations; no card has measured it yet.
ExpertMixturePlan::ExpertMixturePlan(const ExpertMixtureParams& p)
    : blocks(tiles_along(p.rows)),
      shares(blocks, tiles_along(p.d)),
      up(p.dtype, p.rows, p.stacked, {{p.d}}),
      strip_shares(blocks, shares.tiles) {
  choose_path(p);
  // Gates that are equal leave no launch between the products, which could make the images. Of fewer rows than that
  // there are too few strips.
  constexpr int64_t kFewestStripRows = 2048;
  strips =
      !hybrid && p.gated() && may_take_strips(p.dtype, p.stacked) && (wanted_parts() || p.rows >= kFewestStripRows);
}

void ExpertMixturePlan::choose_path(const ExpertMixtureParams& p) {
  const char* wanted = std::getenv("PETX_EXPERT_MIXTURE");
  if (wanted && (!std::strcmp(wanted, "hybrid") || !std::strcmp(wanted, "fused"))) {
    hybrid = !std::strcmp(wanted, "hybrid");
    why = "PETX_EXPERT_MIXTURE says so";
    return;
  }
  constexpr int64_t kRank = 192, kRowsTimesRank = 4096 * 384;
  hybrid = p.stacked >= kRank && p.rows >= kRowsTimesRank / p.stacked;
  if (p.stacked < kRank) {
    why = "the experts' ranks together, " + std::to_string(p.stacked) + ", are below " + std::to_string(kRank);
  } else {
    why = std::to_string(p.rows) + " rows are " + (hybrid ? "at least " : "fewer than ") +
          std::to_string(kRowsTimesRank / p.stacked);
  }
}

bool expert_mixture_hybrid(const ExpertMixtureParams& p) { return ExpertMixturePlan(p).hybrid; }

static const Planner planner(
    "expert_mixture", {{"rows", 4112}, {"stacked", 384}, {"d", 768}, {"gated", 0}},
    [](DType dtype, const Sizes& sizes) -> Plan {
      ExpertMixtureParams p = {};
      p.dtype = dtype, p.rows = sizes.at("rows"), p.stacked = sizes.at("stacked"), p.d = sizes.at("d");
      if (sizes.at("gated")) p.gate = ExpertGate::token;
      ExpertMixturePlan plan(p);
      const std::string y =
          plan.strips ? "y by strips of 64 rows" : "y by tiles of 64 x " + std::to_string(plan.up.width);
      return {plan.hybrid ? "hybrid" : "fused",
              plan.why + "; " + (plan.hybrid ? "wide products by cuBLAS" : units_of(dtype) + ", " + y), plan.blocks,
              plan.hybrid   ? plan.shares.count
              : plan.strips ? plan.strip_shares.count
                            : plan.up.count};
    });

}  // namespace petx::cuda
