// Tiny kernels with one mistake each, which the emulator must find (tests/test_emulator_faults.py).
//
// `fault` picks the mistake; 0 is the kernel as it should be. Each reverses or sums 64 numbers by way of shared memory.

#include <memory>

#include "cuda/common/primitives.cuh"

namespace petx::cuda {
namespace {

enum Fault {
  none,
  missing_barrier,        // between a write to shared memory and another thread's read
  missing_reuse_barrier,  // between a read and another thread's write to the same place
  divergent_barrier,      // two different barriers
  missed_barrier,         // some threads leave before it
  shared_out_of_bounds,
  shared_misaligned,
  shared_never_written,
  global_out_of_bounds,
  global_before_begin,
  writes_input,
  global_race,        // two threads of a block write one value
  reads_other_block,  // what another block of the same launch writes
  divergent_shuffle,
  lonely_shuffle,
  reads_unwritten,  // of a result, before anyone wrote it
  global_misaligned,
};

PETX_KERNEL void reverse(const float* in, float* out, int fault) {
  int t = thread_index();
  int64_t first = block_x() * 64;
  Shared<float> values(0);
  if (fault == missed_barrier && t == 40) return;
  if (fault != shared_never_written || t != 5)
    values.set(fault == shared_out_of_bounds ? t + 1 : t, read(in + first + t));
  if (fault == divergent_barrier && t >= 32) {
    sync_block();
  } else if (fault != missing_barrier) {
    sync_block();
  }
  float value = values.get(63 - t);
  if (fault == shared_misaligned) value = Shared<float>(2).get(t);
  // A second use of the same words, for the row's sum.
  if (fault != missing_reuse_barrier) sync_block();
  values.set(t, value);
  sync_block();
  if (fault != divergent_shuffle || t % 2)
    value += shuffle_xor(value, 1);
  else
    value += shuffle_xor(value, 1);
  if (fault == lonely_shuffle && t < 32 && t % 4 == 0) value += shuffle_xor(value, 2);
  if (fault == reads_other_block) value += read(out + (first + 64) % 128 + t);
  if (fault == reads_unwritten) value += read(out + first + t);
  if (fault == global_misaligned) value = read(reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + 2));
  if (fault == writes_input) write(const_cast<float*>(in) + first + t, value);
  int64_t at = first + (fault == global_race ? t / 2 : t);
  if (fault == global_out_of_bounds) ++at;
  if (fault == global_before_begin) --at;
  write(out + at, value);
}

// Copies 32 packs by cp.async in two groups, then has each thread read its neighbour's.
enum CopyFault { copies_right, no_wait, one_group_too_few, no_commit, no_barrier, overwritten_in_flight };

PETX_KERNEL void copy(const float* in, float* out, int fault) {
  using Packed = Pack<float>;
  int t = thread_index(), neighbour = (t + 1) % 32;
  Shared<Packed> packs(0);
  for (int group = 0; group < 2; ++group) {
    copy_async(packs, group * 32 + t, in + (group * 32 + t) * 4, true);
    if (fault != no_commit) commit_copies();
  }
  if (fault == overwritten_in_flight) packs.set(t, Packed{});
  if (fault == one_group_too_few)
    wait_copies<1>();
  else if (fault != no_wait)
    wait_copies<0>();
  if (fault != no_barrier) sync_block();
  for (int group = 0; group < 2; ++group) {
    Packed pack = packs.get(group * 32 + neighbour);
    write(reinterpret_cast<Packed*>(out) + group * 32 + t, pack);
  }
  wait_copies<0>();
}

// out [16, 8] = a [16, 16] b [8, 16]^T by the matrix unit, b stored by columns.
enum MatrixFault { matrices_right, swapped_halves, not_transposed, swapped_rows };

PETX_KERNEL void matrices(const BFloat16* a, const BFloat16* b, float* out, int fault) {
  using Packed = Pack<BFloat16>;
  int t = thread_index();
  Shared<Packed> left(0), right(512);  // [16, 2] packs: 16 values a row; [16, 1] packs: 8 values a depth, twice
  left.set(t, read(reinterpret_cast<const Packed*>(a) + t));
  right.set(t, read(reinterpret_cast<const Packed*>(b) + t % 16));
  sync_block();
  uint32_t rows[4], columns[4];
  load_matrices<false>(rows, left, (t % 16) * 2 + t / 16);
  if (fault == not_transposed)
    load_matrices<false>(columns, right, t);
  else
    load_matrices<true>(columns, right, t);
  if (fault == swapped_rows) {
    uint32_t keep = rows[1];
    rows[1] = rows[2], rows[2] = keep;
  }
  float sum[4] = {};
  multiply_matrices(sum, rows, columns[fault == swapped_halves], columns[fault != swapped_halves], BFloat16{});
  for (int e = 0; e < 4; ++e) write(out + (t / 4 + e / 2 * 8) * 8 + t % 4 * 2 + e % 2, sum[e]);
}

// Four warps hand numbers to their neighbours: 0 to 1 and 2 to 3 by barriers of their own, and lanes to lanes.
enum WarpFault {
  warps_right,
  no_group_barrier,
  group_of_others,  // warp 2 reads what warp 0 wrote, after a barrier of warps 0 and 1
  group_sizes_differ,
  group_incomplete,
  group_of_lanes,  // two halves of warps
  group_unnamed,
  no_warp_barrier,
  warp_barrier_of_half,  // between lanes of both halves
  mask_without_self,
  masks_differ,
  shuffle_from_absent,
  divergent_vote,
};

PETX_KERNEL void warps(const float* in, float* out, int fault) {
  int t = thread_index(), warp = t / 32, lane = t % 32, pair = warp / 2;
  Shared<float> values(0);
  values.set(t, read(in + t));
  if (fault == group_sizes_differ && warp == 1)
    sync_group(1, 96);
  else if (fault == group_incomplete && pair == 0)
    sync_group(1, 96);
  else if (fault == group_unnamed)
    sync_group(16, 64);
  else if (fault == group_of_lanes && lane < 16)
    sync_group(1 + pair, 32);
  else if (fault != no_group_barrier)
    sync_group(1 + pair, 64);
  int from = (warp ^ 1) * 32 + lane;
  if (fault == group_of_others) from = (warp ^ 2) * 32 + lane;
  float value = values.get(from);
  sync_block();
  values.set(t, value);
  if (fault == warp_barrier_of_half)
    sync_warp(lane < 16 ? 0xffffu : 0xffff0000u);
  else if (fault != no_warp_barrier)
    sync_warp();
  value = values.get(t ^ 16);
  uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (fault == mask_without_self && lane == 3) half = 0xffff0000u;
  if (fault == masks_differ && lane == 3) half = 0xffu;
  value = shuffle(value, lane / 16 * 16 + (fault == shuffle_from_absent ? 16 : 1), half);
  if (shuffle_up(lane, 1) != (lane ? lane - 1 : 0) || shuffle_down(lane, 2) != (lane < 30 ? lane + 2 : lane)) value = 0;
  bool few;
  if (fault == divergent_vote && lane == 9)
    few = any_of_warp(lane < 3);
  else
    few = any_of_warp(lane < 3) && !all_of_warp(lane < 3);
  if (!few || ballot(lane % 16 < 2, half) != (0x30003u & half)) value = 0;
  write(out + t, value);
}

// Mistakes beside the memory that the emulator watches, for the sanitizers.
enum PlainFault { plain_right, register_array, table, overflow };

PETX_KERNEL void plain(const int* table, int fault) {
  int four[4] = {1, 2, 3, 4}, index = thread_index() % 4 + (fault == PlainFault::register_array);
  int large = 0x7fffffff - four[index] + (fault == PlainFault::overflow ? 5 : 0);
  if (table[fault == PlainFault::table ? 4 : 0] == large) sync_warp(1u << thread_index());
}

}  // namespace
}  // namespace petx::cuda

using namespace petx::cuda;

extern "C" int run_reverse(const float* in, float* out, int fault) {
  return launch(reverse, 2, 1, 64, 64 * sizeof(float), nullptr, in, out, fault);
}
extern "C" int run_warps(const float* in, float* out, int fault) {
  return launch(warps, 1, 1, 128, 128 * sizeof(float), nullptr, in, out, fault);
}
extern "C" int run_plain(int fault) {
  std::unique_ptr<int[]> table(new int[4]{});
  return launch(plain, 1, 1, 32, 0, nullptr, table.get(), fault);
}
extern "C" int run_copy(const float* in, float* out, int fault) {
  return launch(copy, 1, 1, 32, 64 * 16, nullptr, in, out, fault);
}
extern "C" int run_matrices(const petx::BFloat16* a, const petx::BFloat16* b, float* out, int fault) {
  return launch(matrices, 1, 1, 32, 1024, nullptr, a, b, out, fault);
}
