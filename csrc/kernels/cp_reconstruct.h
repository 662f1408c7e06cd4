// PETAL's adapted weights written out: the interface between ops/ and the kernels (cpu/, cuda/).
//
//   W'_k = W_k + gate(scale V M_k^T U)   for K weights that share U and V
//
// Shapes stand beside each pointer; C = the compute type (double for f64, else float).
#pragma once

#include "kernels/threshold_gate.h"
#include "kernels/types.h"

namespace petx {

// Entries of the update whose sides one byte holds.
inline constexpr int64_t kSides = 4;

struct CpReconstructParams {
  DType dtype;
  int64_t modules;  // K
  int64_t d_out, d_in, rank;
  bool diagonal;
  Gate gate;
  int64_t thresholds;  // 0, 1 for all modules, or K
  double temperature, scale;

  const void* u;          // [R, d_in]
  const void* v;          // [d_out, R]
  const void* cores;      // [K, R, R], or the diagonals [K, R]
  const void* threshold;  // [thresholds]

  // On a CPU, or null: [K, d_out, ceil(d_in / kSides)], two bits for each entry of the update, whether it lies above
  // the threshold or below its negative. All that the backward of a soft or hard gate needs of the update.
  uint8_t* sides;

  PETX_HD int64_t threshold_of(int64_t module) const { return thresholds == 1 ? 0 : module; }
};

// In the factors' shapes, summed in C in an order fixed by the shape, and stored in C or where bit i of `narrow` is set
// in the storage type: i counts the gradients from u's, 0, on. A CPU stores C alone. Null if not wanted.
struct CpReconstructGrads {
  void* u;
  void* v;
  void* cores;
  void* threshold;
  int64_t narrow;
};

// Each pointer of weights, out and dout (K of them, in host memory) is [d_out, d_in].
namespace cpu {
void cp_reconstruct_fwd(const CpReconstructParams& p, const void* const* weights, void* const* out);
void cp_reconstruct_bwd(const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g);
}  // namespace cpu

namespace cuda {
// As for every operation: `stream` is a cudaStream_t, launchers return a cudaError_t, `workspace` has the bytes asked.
int64_t cp_reconstruct_fwd_workspace(const CpReconstructParams& p);
int cp_reconstruct_fwd(const CpReconstructParams& p, const void* const* weights, void* const* out, void* workspace,
                       void* stream);
int64_t cp_reconstruct_bwd_workspace(const CpReconstructParams& p, const CpReconstructGrads& g);
int cp_reconstruct_bwd(const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g,
                       void* workspace, void* stream);
}  // namespace cuda

}  // namespace petx
