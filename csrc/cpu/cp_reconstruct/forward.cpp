// Forward of cp_reconstruct on the CPU: for each tile of a weight, the update by one product, then gate and sum in one
// pass. Weights are read and results written once, and nothing of their size lies in between but, where the caller asks
// for them, two bits for each entry.

#include "cpu/cp_reconstruct/call.h"

namespace petx::cpu {
namespace {

template <class T>
void forward(const CpReconstructParams& p, const void* const* weights, void* const* out) {
  using C = Compute<T>;
  const ReconstructFactors<T> factors(p);
  const Tiles& tiles = factors.tiles;
  host::parallel(tiles.items(), [&](int64_t begin, int64_t end) {
    Buffer<C> mixed = buffer<C>(tiles.blocks.size * p.rank);
    Buffer<C> update = buffer<C>(tiles.blocks.size * tiles.panels.size);
    for (int64_t item = begin; item < end; ++item) {
      int64_t module = tiles.module(item), rows = tiles.rows(item);
      C threshold = factors.threshold(module), inverse_temperature = factors.inverse_temperature();
      factors.mix(item, mixed.get());
      for (int64_t panel = 0; panel < tiles.panels.parts(); ++panel) {
        int64_t first = tiles.panels.begin(panel), columns = tiles.panels.begin(panel + 1) - first;
        gemm<C>(host::matrix(mixed.get(), rows, p.rank), factors.u_panel(first, columns),
                host::matrix(update.get(), rows, columns));
        for (int64_t i = 0; i < rows; ++i) {
          int64_t row = tiles.first_row(item) + i, at = row * p.d_in + first;
          if (p.sides) {
            reconstruct_rows<T>().sides(update.get() + i * columns, columns, threshold,
                                        factors.sides(module, row, first));
          }
          reconstruct_rows<T>().forward(p.gate, static_cast<const T*>(weights[module]) + at, update.get() + i * columns,
                                        columns, threshold, inverse_temperature, static_cast<T*>(out[module]) + at);
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
