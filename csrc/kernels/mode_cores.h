// The cores of all mode vectors, behind PETAL's threshold: the interface between ops/ and the kernels (cpu/, cuda/).
//
//   full      M_n[i, j] = sum_k gate(C)[i, j, k] P[n, k]
//   diagonal  M_n[j] = gate(lambda)[j] P[n, j]
//
// Shapes stand beside each pointer; R = rank, C = the compute type (double for f64, else float). Kernels see a full
// core as a matrix of S = R^2 rows (`slices`) by R columns; a diagonal core is a vector.
#pragma once

#include "kernels/threshold_gate.h"
#include "kernels/types.h"

namespace petx {

struct ModeCoresParams {
  DType dtype;
  int64_t modes, rank;  // n, R
  bool diagonal;
  Gate gate;
  bool each;  // a threshold for each index k, not one for all
  double temperature;

  const void* core;       // [R, R, R] or [R]
  const void* vectors;    // P [n, R]
  const void* threshold;  // [R], [1], or null with no gate

  PETX_HD int64_t slices() const { return rank * rank; }
  PETX_HD int64_t thresholds() const { return each ? rank : 1; }
};

// Summed in C in an order fixed by the shape, and stored in C or where bit i of `narrow` is set in the storage type: i
// counts the gradients from dcore, 0, on. A CPU stores C alone. Null if not wanted.
struct ModeCoresGrads {
  const void* dcores;  // [n, R, R] or [n, R]
  void* dcore;         // like core
  void* dvectors;      // [n, R]
  void* dthreshold;    // like threshold
  int64_t narrow;
};

namespace cpu {
void mode_cores_fwd(const ModeCoresParams& p, void* cores);
void mode_cores_bwd(const ModeCoresParams& p, const ModeCoresGrads& g);
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the launchers return a cudaError_t.
int mode_cores_fwd(const ModeCoresParams& p, void* cores, void* stream);
int64_t mode_cores_bwd_workspace(const ModeCoresParams& p, const ModeCoresGrads& g);
int mode_cores_bwd(const ModeCoresParams& p, const ModeCoresGrads& g, void* workspace, void* stream);
}  // namespace cuda

}  // namespace petx
