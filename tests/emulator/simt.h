// Runs CUDA kernels on a CPU, one fiber a thread, and stops with a report where a kernel does what a GPU would leave
// undefined: a barrier that some threads miss, an index out of bounds, a race, a value read before it was written.
//
// A kernel is compiled with tests/emulator/cuda/common/primitives.cuh in place of csrc/cuda/common/primitives.cuh and
// ends up here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "shadow.h"

namespace simt {

// The order in which warps, lanes and blocks get their turn. A warp runs until all its lanes wait, so that in each
// order some warps are as far ahead of the others as the barriers let them.
enum class Order { ascending, descending, random };

struct Counters {
  int64_t launches, barriers, global_read, global_written, matrix_products, bank_conflicts;
  // Only while watching: bytes of the 32-byte sectors that a launch touched at all, and of those that its warps asked
  // for, access by access.
  int64_t distinct_read, distinct_written, sectors_read, sectors_written;
};

// --- around a launch

void set_order(Order order, uint64_t seed);
// Whether to look at what the lanes of a warp do together: bank conflicts of plain accesses, sectors. Slow.
void set_watching(bool on);
// Global memory that kernels may use from now on: inputs, results that hold something, results that hold nothing yet.
// An input is not watched for races.
enum class Contents { input, updated, unwritten };
void add_buffer(const char* name, void* data, int64_t bytes, Contents contents);
void clear_buffers();
Counters counters();
void reset_counters();
// "file:line: count" of each place with bank conflicts since the counters were reset.
const std::string& conflicts();

// Of each launch only so many blocks are run from now on, spread over the grid; 0 is all of them, fewer
// none. For counts alone.
void set_sample(int64_t blocks);

// Runs grid_x * grid_y blocks; false where a fault was found, which report() then describes.
bool launch(int64_t grid_x, int64_t grid_y, int threads, int64_t shared_bytes, const std::function<void()>& kernel);
const std::string& report();

// Other bodies of the kernels (tests/emulator/ptx): functions that take the addresses of the parameters. `find` is
// asked at each launch; null brings the kernels' own back.
using Body = void (*)(void* const* parameters);
struct Launch {
  const void* kernel;
  int64_t grid_x, grid_y, threads, shared_bytes;
};
using FindBody = Body (*)(const Launch* launch);
void set_find_body(FindBody find);
// Null where the kernel itself is to run.
Body other_body(const Launch& launch);

// --- inside a kernel

int thread_index();
int64_t block_x();
int64_t block_y();

constexpr uint32_t kWholeWarp = 0xffffffffu;

void block_barrier(Line line);
// Barrier number `name` of `threads` threads, which are whole warps.
void group_barrier(int name, int threads, Line line);

using Run = void (*)(const void* f, void* const* lanes);
void rendezvous(const char* what, void* brought, Run run, const void* f, uint32_t mask, bool orders, Line line);
// Blocks until every lane of `mask` has come to `line`, then `run` sees what each lane brought; null of the others.
// With `orders`, what a lane wrote before is visible to the others after (which is known of whole warps only).
template <class F>
void warp_rendezvous(const char* what, void* brought, const F& run, uint32_t mask, bool orders, Line line) {
  auto call = [](const void* f, void* const* lanes) { (*static_cast<const F*>(f))(lanes); };
  rendezvous(what, brought, call, &run, mask, orders, line);
}

enum class Access { read, write };
// Checks an access to shared memory, `at` bytes from its start, or to global memory; returns where the bytes lie.
// Bank conflicts of an access that is not `watched` are counted by the caller.
void* shared(Access access, int64_t at, int64_t bytes, Line line, bool watched = true);
void* global(Access access, const void* address, int64_t bytes, Line line);

// cp.async: the destination is garbage from the issue on and filled only by the wait that covers its group, with the
// first `given` bytes from memory and zeros behind them.
void copy_async(int64_t to, const void* from, int64_t bytes, Line line, int64_t given);
void commit_copies();
void wait_copies(int newest_left);

void count_matrix_product();
void count_bank_conflicts(int64_t count, Line line);
[[noreturn]] void fault(const std::string& what, Line line);

}  // namespace simt
