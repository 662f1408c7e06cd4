// cp_reconstruct by strips (common/strip.cuh): the launch that makes A of all modules and the images of U, and the
// update of a strip of 64 rows, half a tile of columns at a time.
#pragma once

#include "cuda/common/strip.cuh"
#include "cuda/cp_reconstruct/block.cuh"

namespace petx::cuda {

// Blocks of 64 rows of all modules, whose A they make, `rows` of them, and behind these one for each image of U.
template <class T>
PETX_KERNEL void __launch_bounds__(kTileLaunch.threads, kTileLaunch.blocks)
    mix_all(ReconstructCall<Compute<T>> p, Mixed<T> mixed, int64_t rows, T* images) {
  if (block_x() < rows) {
    const int64_t module = block_x() / tiles_of(p.d_out);
    const ReconstructTile<T> tile(p, module, block_x() % tiles_of(p.d_out));
    tile.mix(mixed.from((module * p.d_out + tile.first) * p.rank));
    return;
  }
  if constexpr (sizeof(T) == 2) {
    const int64_t tile = block_x() - rows, column = tile * Strip<T>::kColumns;
    const Columns<T> u{static_cast<const T*>(p.u) + column, p.d_in, p.d_in - column};
    Strip<T>::template make_image<kTileLaunch.threads>(u, p.rank, images + tile * Strip<T>::kImage);
  }
}

template <class T>
int launch_mix(const ReconstructCall<Compute<T>>& p, const Mixed<T>& mixed, bool needs_mixed, T* images, void* stream) {
  const int64_t rows = needs_mixed ? p.modules * tiles_of(p.d_out) : 0;
  return launch(mix_all<T>, rows + (images ? tiles_of(p.d_in) : 0), 1, kTileLaunch.threads, TileOf<T>::shared_bytes(1),
                stream, p, mixed, rows, images);
}

// A strip of one module's weight as its lanes see it.
template <class T>
class UpdateStrip {
 public:
  using C = Compute<T>;

  PETX_DEVICE UpdateStrip(const ReconstructCall<C>& call, int64_t module, int64_t row_tile)
      : p(call), first_(row_tile * Strip<T>::kRows) {
    if (p.threshold) threshold_ = at<T>(p.threshold, p.threshold_of(module));
  }

  // This lane's two rows. Made where they are asked for, since registers are short.
  struct LaneRows {
    int64_t first, d_out, d_in;

    PETX_DEVICE int64_t row(int n) const { return first + 8 * n; }
    PETX_DEVICE bool valid(int n) const { return row(n) < d_out; }
    // The packs of row n, and how many of their values are the matrix's.
    PETX_DEVICE int64_t index(int n, int64_t column) const { return row(n) * d_in + column; }
    PETX_DEVICE int64_t count(int n, int64_t column) const { return valid(n) ? d_in - column : 0; }
  };
  PETX_DEVICE LaneRows rows() const { return {first_ + Strip<T>::row(opaque(thread_index())), p.d_out, p.d_in}; }

  template <Gate kind>
  PETX_DEVICE C gate(C update) const {
    return gated<kind>(p.scale * update, threshold_, p.inverse_temperature);
  }
  template <Gate kind>
  PETX_DEVICE GateSlopes<C> slopes(C update) const {
    return gate_slopes<kind>(p.scale * update, threshold_, p.inverse_temperature);
  }

 private:
  const ReconstructCall<C>& p;
  int64_t first_;
  C threshold_ = 0;
};

// A of a strip's rows, or what its rounding left, as an operand; zeros where there is none.
template <class T>
PETX_DEVICE typename Strip<T>::Rows mixed_rows(const ReconstructCall<Compute<T>>& p, const T* all, int64_t module,
                                               int64_t row_tile) {
  const int64_t first = row_tile * Strip<T>::kRows;
  return {all + (module * p.d_out + first) * p.rank, p.rank, all ? p.d_out - first : 0, p.rank};
}

}  // namespace petx::cuda
