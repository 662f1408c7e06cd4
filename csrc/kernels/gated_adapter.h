// VL-PET's granularity-controlled adapter site: the interface between ops/ and the kernels (cpu/, cuda/).
//
//   z = down(h or x);  S = h + up(gelu(z));  Y = s * G * S;  out = norm(x + dropout(Y))
//
// Shapes stand beside each pointer; N = rows, C = the compute type (double for f64, else float). Mixed precision keeps
// the residual stream in C beside layers in 16 bits: with `skip`, out = norm(skip + dropout(Y)), and what follows the
// sum is in C, too.
#pragma once

#include "kernels/math.h"
#include "kernels/types.h"

namespace petx {

enum class Granularity : int32_t { none, large, middle_x, middle_y, small };
enum class GateInput : int32_t { modified, original };
enum class MiddleY : int32_t { linear, sigmoid };
enum class Placement : int32_t { sequential, parallel };
enum class Norm : int32_t { none, layer, rms };

struct GatedAdapterParams {
  DType dtype;
  int64_t rows, length;    // N tokens, in samples of `length`
  int64_t d, d_x, r, r_g;  // widths of h and x, ranks of adapter and gate
  int64_t heads;           // diagonal blocks of the up projection
  Granularity granularity;
  Activation activation;
  GateInput gate_input;
  MiddleY middle_y;
  Placement placement;
  Norm norm;
  bool residual;
  double scale, dropout, eps;

  const void* h;                 // [N, d]
  const void* x;                 // [N, d_x] or null
  const void* down_weight;       // [r, d or d_x]
  const void* down_bias;         // [r] or null
  const void* up_weight;         // [d, r / heads]
  const void* up_bias;           // [d] or null
  const void* gate_down_weight;  // [r_g, d_x]  large
  const void* gate_down_bias;    // [r_g] or null
  const void* gate_weight;       // [d, r_g] large, [d] middle_x and middle_y, [2 d] small
  const void* gate_bias;         // [d] large, [1] middle_x and small, or null
  const void* norm_weight;       // [d], in C with `skip`
  const void* norm_bias;         // [d] or null, likewise
  const void* skip;              // C [N, d] or null: added in place of x; out and dout are C [N, d] then
  const bool* mask;              // [N] or null: tokens that count in `small`'s mean
  const int64_t* seed;           // [1], read if dropout > 0

  // Saved by the forward for the backward: rank-wide or narrower, but for the last two.
  void* z;             // [N, r]
  void* gate_z;        // [N, r_g]  large
  void* token_gate;    // C [N]     middle_x, small: sigma of each token's logit
  void* norm_stats;    // C [N, 2]  mean (0 for rms), 1 / std
  void* up_product;    // [N, d]  f32, f64 on a CPU if asked for, else null: gelu(z) times the up projection
  void* gate_product;  // [N, d]  the same for large: the gate's last product

  PETX_HD bool reads_x_in_down() const { return placement == Placement::parallel; }
  PETX_HD int64_t down_width() const { return reads_x_in_down() ? d_x : d; }
};

struct GatedAdapterGrads {
  const void* dout;  // [N, d]
  void* dh;          // [N, d] or null if not wanted, as every pointer below
  void* dx;          // [N, d_x]
  void* skip;        // C [N, d]
  // Parameters' gradients, in the parameters' shapes, summed in C in an order fixed by the shape, and stored in C or
  // where bit i of `narrow` is set in the storage type: i counts the gradients from dh, 0, on. A CPU stores C alone.
  void* down_weight;
  void* down_bias;
  void* up_weight;
  void* up_bias;
  void* gate_down_weight;
  void* gate_down_bias;
  void* gate_weight;
  void* gate_bias;
  void* norm_weight;
  void* norm_bias;
  int64_t narrow;
};

namespace cpu {
void gated_adapter_fwd(const GatedAdapterParams& p, void* out);
void gated_adapter_bwd(const GatedAdapterParams& p, const GatedAdapterGrads& g);
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the launchers return a cudaError_t.
// `workspace` has as many bytes as the function of that name asks for, which reads shapes and which pointers are null.
int64_t gated_adapter_fwd_workspace(const GatedAdapterParams& p);
int gated_adapter_fwd(const GatedAdapterParams& p, void* out, void* workspace, void* stream);
int64_t gated_adapter_bwd_workspace(const GatedAdapterParams& p, const GatedAdapterGrads& g);
int gated_adapter_bwd(const GatedAdapterParams& p, const GatedAdapterGrads& g, void* workspace, void* stream);
}  // namespace cuda

}  // namespace petx
