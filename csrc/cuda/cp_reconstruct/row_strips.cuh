// The rows' launch of cp_reconstruct's backward by strips (common/strip.cuh): D, dA and the threshold's gradient.
#pragma once

#include "cuda/cp_reconstruct/finish.cuh"
#include "cuda/cp_reconstruct/strips.cuh"

namespace petx::cuda {

// dW' of a launch's modules.
struct DoutTable {
  const void* dout[kTableModules];
};

// What row_blocks does, by strips: block (row tile, module). D goes to `stored`, and as it is made into dA. Each value
// of dA is summed in one float over all of d_in, where other kernels add up pieces of 512: sums of pieces would take 32
// registers more, of 128.
template <class T>
PETX_KERNEL void __launch_bounds__(kStripLaunch.threads, kStripLaunch.blocks)
    row_strips(ReconstructCall<Compute<T>> p, DoutTable table, int64_t first_module, const T* images,
               Intermediate<T> to) {
  using Tile = Strip<T>;
  const int64_t module = first_module + block_y(), row_tile = block_x();
  const UpdateStrip<T> strip(p, module, row_tile);
  const bool gated = p.gate != Gate::none;
  const typename Tile::KeptRows low(mixed_rows(p, gated ? to.mixed.low : nullptr, module, row_tile));
  const auto high = mixed_rows(p, gated ? to.mixed.high : nullptr, module, row_tile);
  const T* dout = static_cast<const T*>(table.dout[block_y()]);
  T* stored = to.stored ? to.stored + block_y() * p.d_out * to.stride : nullptr;
  typename Tile::DepthSums sums;
  float dthreshold = 0;
  Tile::each_half(images, 0, tiles_of(p.d_in), [&](int64_t column, const Shared<Pack<T>>& in, int half) {
    const auto rows = strip.rows();
    Pack<T> packs[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) packs[n] = read_pack(dout + rows.index(n, column), rows.count(n, column));
    if (gated) {
      typename Tile::Sums update;
      Tile::multiply(update, in, half, low, high);
      with_gate(p.gate, [&]<Gate kind>() {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float d[8];
          unpack(d, packs[n]);  // zeros outside the matrix
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const GateSlopes<float> slopes = strip.template slopes<kind>(update.value(n, j));
            dthreshold += d[j] * slopes.threshold, d[j] *= slopes.value;
          }
          packs[n] = pack<T>(d);
        }
      });
      if (stored)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          if (rows.valid(n)) write(reinterpret_cast<Pack<T>*>(stored + rows.row(n) * to.stride + column), packs[n]);
    }
    if (to.dmixed) Tile::multiply_turned(sums, packs, in, half);
  });
  const auto rows = strip.rows();
  if (to.dmixed)
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int64_t rank = thread_index() % 4 * 16 + n % 2 * 8;
      float values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = sums.value(n / 2, n % 2 * 8 + j);
      if (rows.valid(n / 2))
        write_pack(to.dmixed + (rows.row(n / 2) * p.modules + module) * p.rank + rank, pack<T>(values), p.rank - rank);
    }
  if (!to.dthreshold) return;
  for (int mask = 16; mask > 0; mask /= 2) dthreshold += shuffle_xor(dthreshold, mask);
  sync_block();  // of the last stage, which others may still be reading
  const Shared<float> warps(0);
  if (thread_index() % 32 == 0) warps.set(thread_index() / 32, dthreshold);
  sync_block();
  if (thread_index() != 0) return;
  for (int warp = 1; warp < Tile::kThreads / 32; ++warp) dthreshold += warps.get(warp);
  write(to.dthreshold + module * tiles_of(p.d_out) + row_tile, dthreshold);
}

}  // namespace petx::cuda
