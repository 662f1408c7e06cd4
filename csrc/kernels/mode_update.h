// PETAL's update beside the K frozen projections of one input: the interface between ops/ and the kernels
// (cpu/, cuda/).
//
//   h = x U^T;  g_k = drop_k(h) M_k;  y_k = base_k + g_k V^T
//
// Shapes stand beside each pointer; N = rows, R = rank, C = the compute type (double for f64, else float).
#pragma once

#include "kernels/types.h"

namespace petx {

inline constexpr int kMostModes = 4;

struct ModeUpdateParams {
  DType dtype;
  int64_t rows, d_in, d_out, rank;
  int64_t count;  // K
  bool diagonal;  // the cores are given by their diagonals
  bool shared_mask;
  double dropout;

  const void* x;        // [N, d_in]; null if x comes projected, which is then h
  const void* u;        // [R, d_in] or null with x
  const void* v;        // [d_out, R]
  const void* cores;    // [K, R, R] or [K, R]
  const int64_t* seed;  // [1], read if dropout > 0
  void* h;              // [N, R]: written by the forward (only read if x comes projected), read by the backward

  // Element of a mask that belongs to row 0, rank 0 of projection k.
  PETX_HD uint64_t mask_begin(int64_t k) const { return shared_mask ? 0 : static_cast<uint64_t>(k) * rows * rank; }
  PETX_HD int64_t core_size() const { return diagonal ? rank : rank * rank; }
};

struct ModeUpdateOutputs {
  const void* base[kMostModes];  // [N, d_out] each, or all null
  int64_t base_stride;           // values between two rows of a base: d_out, or more if bases lie side by side
  void* y[kMostModes];           // [N, d_out]
};

struct ModeUpdateGrads {
  const void* dy[kMostModes];  // [N, d_out]; null if none came
  void* dx;                    // like x (of the projected x if there is no u); null if not wanted, as below
  // In the parameters' shapes, summed in C in an order fixed by the shape, and stored in C or where bit i of `narrow`
  // is set in the storage type: i counts the gradients from dx, 0, on. A CPU stores C alone. The cores of projections
  // without a dy are left alone.
  void* du;
  void* dv;
  void* dcores;
  int64_t narrow;
};

namespace cpu {
void mode_update_fwd(const ModeUpdateParams& p, const ModeUpdateOutputs& out);
void mode_update_bwd(const ModeUpdateParams& p, const ModeUpdateGrads& g);
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the launchers return a cudaError_t.
// `workspace` has as many bytes as the function of that name asks for, which reads shapes and which pointers are null.
int64_t mode_update_fwd_workspace(const ModeUpdateParams& p);
int mode_update_fwd(const ModeUpdateParams& p, const ModeUpdateOutputs& out, void* workspace, void* stream);
int64_t mode_update_bwd_workspace(const ModeUpdateParams& p, const ModeUpdateGrads& g);
int mode_update_bwd(const ModeUpdateParams& p, const ModeUpdateGrads& g, void* workspace, void* stream);
}  // namespace cuda

}  // namespace petx
