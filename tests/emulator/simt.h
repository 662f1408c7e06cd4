// Runs CUDA kernels on a CPU, one fiber a thread, and stops with a report where a kernel does what a GPU would leave
// undefined: a barrier that some threads miss, an index out of bounds, a race, a value read before it was written.
//
// A kernel is compiled with tests/emulator/cuda/primitives.cuh in place of csrc/cuda/primitives.cuh and ends up here.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

namespace simt {

using Line = std::source_location;

// The order in which warps, lanes and blocks get their turn. A warp runs until all its lanes wait, so that in each
// order some warps are as far ahead of the others as the barriers let them.
enum class Order { ascending, descending, random };

struct Counters {
  int64_t launches, barriers, global_read, global_written, matrix_products, bank_conflicts;
};

// --- around a launch

void set_order(Order order, uint64_t seed);
// Global memory that kernels may use from now on. What is not writable is not watched for races.
void add_buffer(const char* name, void* data, int64_t bytes, bool writable);
void clear_buffers();
Counters counters();
void reset_counters();

// Runs grid_x * grid_y blocks; false where a fault was found, which report() then describes.
bool launch(int64_t grid_x, int64_t grid_y, int threads, int64_t shared_bytes, const std::function<void()>& kernel);
const std::string& report();

// --- inside a kernel

int thread_index();
int64_t block_x();
int64_t block_y();

void block_barrier(Line line);
// Blocks until every lane of the warp has come to `line`, then `run` sees what each lane brought. With `orders`, what a
// lane wrote before is visible to the others after.
void warp_rendezvous(const char* what, void* brought, const std::function<void(void* const* lanes)>& run, bool orders,
                     Line line);

enum class Access { read, write };
// Checks an access to shared memory, `at` bytes from its start, or to global memory; returns where the bytes lie.
void* shared(Access access, int64_t at, int64_t bytes, Line line);
void* global(Access access, const void* address, int64_t bytes, Line line);

// cp.async: the destination is garbage from the issue on and filled only by the wait that covers its group.
void copy_async(int64_t to, const void* from, int64_t bytes, Line line);
void commit_copies();
void wait_copies(int newest_left);

void count_matrix_product();
void count_bank_conflicts(int64_t count);
[[noreturn]] void fault(const std::string& what, Line line);

}  // namespace simt
