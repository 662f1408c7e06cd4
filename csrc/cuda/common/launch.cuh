// How the kernels are launched: one table, the rule for token splits, and what experiments may override.
//
// Nothing here asks which GPU it is, so every card gets the same launches and the same order of sums. Bits are the same
// on every card in fp32 and fp64; matrix units add up 16-bit products differently from one architecture to the next, so
// 16-bit results have the same bits from run to run on one architecture.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "kernels/types.h"

namespace petx::cuda {

struct Launch {
  int threads;  // of a block
  int blocks;   // that a multiprocessor is to hold at a time
  static constexpr int kRegisters = 64 * 1024;
  // What ptxas may give a thread, in its steps of eight.
  PETX_HD constexpr int registers() const { return kRegisters / (threads * blocks) / 8 * 8; }
};

// Products by tiles: 16 results per thread of 64 x 64, so 256 threads. Two blocks: one multiplies while the other waits
// at a barrier or for its copies, and 128 registers per thread are what a fragment's loop needs without spills.
constexpr Launch kTileLaunch = {256, 2};
// Sums over tokens: a few instructions between two loads, so as many threads as there are; 256 because the last step
// adds up eight warps. Four blocks leave 64 registers.
constexpr Launch kSumLaunch = {256, 4};
// Rows without a product: eight lanes per row and eight rows per block (sixteen and four in gated_adapter), so that
// 1,024 rows are 128 blocks or more; six of them leave the 168 registers that a run of doubles wants.
constexpr Launch kRowLaunch = {64, 6};
// Products of 64 rows that stay in registers (strip.cuh): four warps of 16 rows. Four blocks leave the 128 registers
// that their operands and sums want.
constexpr Launch kStripLaunch = {128, 4};
static_assert(kTileLaunch.threads == kSumLaunch.threads, "one launcher serves the tables of both (token_sums.cuh)");

// Blocks of `kSumLaunch` that give each of `count` values a thread.
PETX_HD constexpr int64_t sum_blocks(int64_t count) { return (count + kSumLaunch.threads - 1) / kSumLaunch.threads; }

// Shared memory of a multiprocessor of sm_80. sm_90 and sm_100 have 228 KB; sm_86, sm_89 and sm_120 have 100 KB, which
// hold two blocks of 64 x 64 16-bit tiles with one result (mma_tile.cuh), but one block with more, and one of the other
// 16-bit tiles (wide_tile.cuh, turned_tile.cuh, run_tile.cuh), which take 56 to 80 KB however many results they have.
constexpr int kSharedMemory = 164 * 1024, kSharedMemoryOfSystem = 1024;  // a block

constexpr bool fits(Launch launch, int shared_bytes) {
  return launch.blocks * (shared_bytes + kSharedMemoryOfSystem) <= kSharedMemory;
}

// The environment's number if it is set, else `usual`; for experiments, bits may differ.
inline int64_t env_int_or(const char* name, int64_t usual, int64_t most) {
  const char* text = std::getenv(name);
  int64_t value = text ? std::atoll(text) : usual;
  return value < 1 ? usual : value > most ? most : value;
}

// Splits of at least 512 tokens, at most 16: enough blocks for every multiprocessor beside some 50 tiles a weight,
// and partial sums that stay in the second-level cache. PETX_CUDA_SPLITS overrides.
inline int64_t token_splits(int64_t tokens) {
  int64_t wanted = (tokens + 511) / 512;
  int64_t splits = env_int_or("PETX_CUDA_SPLITS", wanted > 16 ? 16 : wanted, 65535);
  return splits > tokens ? tokens : splits;
}

// Multiprocessors of an H100. Grids are cut for it, but are the same on every card.
constexpr int64_t kMultiprocessors = 132;

// What a multiprocessor takes for `blocks` of a kernel of tiles, in sixths of what one takes by itself: it runs two at
// a time, of which one computes while the other waits, so that a pair takes a sixth longer than one.
constexpr int64_t turns(int64_t blocks) { return blocks / 2 * 7 + blocks % 2 * 6; }
// The same of the busiest of an H100's multiprocessors, in 24ths of a tile (sixths of its quarters): a block costs a
// quarter before it begins.
constexpr int64_t busiest(int64_t blocks, int64_t tiles) {
  return turns((blocks + kMultiprocessors - 1) / kMultiprocessors) * (4 * tiles + 1);
}

// How many of `tiles` a block takes where `most` blocks at most share them, and there are `blocks` such groups: the
// number that leaves the busiest multiprocessor least to do; `again` are tiles that each recomputes.
inline int64_t tiles_of_a_share(int64_t blocks, int64_t tiles, int64_t again, int64_t most) {
  int64_t least = INT64_MAX, best = tiles;
  for (int64_t shares = 1; shares <= tiles && shares <= most; ++shares) {
    int64_t each = (tiles + shares - 1) / shares;
    int64_t cost = busiest(blocks * ((tiles + each - 1) / each), each + again);
    if (cost < least) least = cost, best = each;
  }
  return best;
}

// How blocks of rows share the tiles of a result's columns: `count` blocks a block of rows, `each` tiles a block.
// PETX_CUDA_SHARES overrides the count.
struct ColumnShares {
  int64_t tiles, each, count;

  ColumnShares(int64_t blocks, int64_t tiles, int64_t again = 0) : tiles(tiles), count(1) {
    const int64_t wanted = env_int_or("PETX_CUDA_SHARES", 0, tiles);
    each = wanted ? (tiles + wanted - 1) / wanted : tiles_of_a_share(blocks, tiles, again, 2 * kMultiprocessors);
    if (each) count = (tiles + each - 1) / each;
  }
};

}  // namespace petx::cuda
