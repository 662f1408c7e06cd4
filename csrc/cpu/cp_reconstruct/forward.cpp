// Forward of cp_reconstruct on the CPU: for each tile of a weight, the update by one GEMM, then gate and sum in one
// pass. Weights are read and results written once; in between nothing of their size reaches memory, but two bits per
// entry if the caller asks for them.

#include "cpu/cp_reconstruct/call.h"

namespace petx::cpu {
namespace {

template <class T>
void forward(const CpReconstructParams& p, const void* const* weights, void* const* out) {
  using C = Compute<T>;
  const CpReconstructCall<T> call(p);
  const Tiles& tiles = call.tiles;
  host::parallel(tiles.items(), [&](int64_t begin, int64_t end) {
    Buffer<C> mixed = buffer<C>(tiles.blocks.size * p.rank);
    Buffer<C> update = buffer<C>(tiles.blocks.size * tiles.panels.size);
    for (int64_t item = begin; item < end; ++item) {
      int64_t module = tiles.module(item), rows = tiles.rows(item);
      C threshold = call.threshold(module), inverse_temperature = call.inverse_temperature();
      call.mix(item, mixed.get());
      for (int64_t panel = 0; panel < tiles.panels.parts(); ++panel) {
        int64_t first = tiles.panels.begin(panel), columns = tiles.panels.begin(panel + 1) - first;
        gemm<C>(host::matrix(mixed.get(), rows, p.rank), call.u_panel(first, columns),
                host::matrix(update.get(), rows, columns));
        for (int64_t i = 0; i < rows; ++i) {
          int64_t row = tiles.first_row(item) + i, at = row * p.d_in + first;
          if (p.sides) {
            cp_reconstruct_loops<T>().sides(p.gate, update.get() + i * columns, columns, threshold,
                                            call.sides(module, row, first));
          }
          cp_reconstruct_loops<T>().forward(p.gate, static_cast<const T*>(weights[module]) + at,
                                            update.get() + i * columns, columns, threshold, inverse_temperature,
                                            static_cast<T*>(out[module]) + at);
        }
      }
    }
  });
}

}  // namespace

void cp_reconstruct_fwd(const CpReconstructParams& p, const void* const* weights, void* const* out) {
  with_storage_type(p.dtype, [&]<class T>() { forward<T>(p, weights, out); });
}

}  // namespace petx::cpu
