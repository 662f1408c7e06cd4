// What the driver (gated_adapter/forward.cpp) and the row loops (gated_adapter/rows.inl) agree on.
//
// T is the storage type of the tensors, G the type that GEMMs run in (T, or float if the CPU multiplies T
// slowly), C the compute type. A block is `rows` consecutive tokens, its scratch row-major and dense.
#pragma once

#include "kernels/gated_adapter.h"

namespace petx::cpu {

// Vectors of one call, converted to C once. Null if absent.
template <class C>
struct GatedAdapterVectors {
  const C* down_bias;
  const C* up_bias;
  const C* gate_down_bias;
  const C* gate_bias;     // large: [d]
  const C* gate_x;        // middle_x, small: weights of x [d]
  const C* gate_s;        // middle_x, small: weights of S or H [d]
  const C* gate_z;        // small: gate_s folded through the up projection [r], so that pass 1 needs no S
  C gate_constant;        // middle_x, small: bias (small, modified: plus gate_s . up_bias)
  const C* channel_gate;  // middle_y: G [d]
  const C* norm_weight;
  const C* norm_bias;
};

template <class T, class G>
struct GatedAdapterBlock {
  using C = Compute<T>;
  const GatedAdapterParams* p;
  const GatedAdapterVectors<C>* v;
  int64_t first, rows;
  const T* h;      // [rows, d]
  const T* x;      // [rows, d_x] or null
  const C* skip;   // [rows, d] or null: with it, wide_out and wide_dout take the places of out and dout
  const G* up;     // [rows, d] up projection without bias
  const G* gate;   // [rows, d] large: the gate's last product without bias
  const C* token;  // [rows] middle_x, small: gate per token (small: the sample's)
  C* work;         // of the calling thread: [3 (d + 8)] in the forward, [5 (d + 8)] in the backward
  // forward
  T* out;       // [rows, d]
  C* wide_out;  // [rows, d]
  // backward
  const T* dout;       // [rows, d]
  const C* wide_dout;  // [rows, d]
  G* ds;               // [rows, d] gradient of S
  G* dgate;            // [rows, d] large: gradient of the gate's last product
  T* dx;               // [rows, d_x] or null: the part that does not go through a product
  C* dskip;            // [rows, d] or null
  C* dlogit;           // [rows] middle_x (out), small (in)
  C* dot;              // [rows] small, pass 1 (out): dY . S
  // sums over rows, added to; null if not wanted
  C* sum_up_bias;
  C* sum_gate_bias;    // [d] large, [1] middle_x and small
  C* sum_gate_weight;  // [d] middle_x and middle_y, [2 d] small
  C* sum_norm_weight;
  C* sum_norm_bias;
};

template <class T, class G>
struct GatedAdapterLoops {
  using C = Compute<T>;
  // z = product + bias, saved in T; a = gelu(z).
  void (*activate)(const G* product, const C* bias, Activation activation, int64_t rows, int64_t r, T* z, G* a);
  // a = gelu(z) of a saved z.
  void (*reactivate)(const T* z, Activation activation, int64_t count, G* a);
  // da becomes dz = da * gelu'(z); its column sums are added to sum (may be null).
  void (*activate_bwd)(const T* z, Activation activation, int64_t rows, int64_t r, G* da, C* sum);
  // small, pass 1: sigma of each token's logit, from h, x and a only.
  void (*token_gate)(const GatedAdapterBlock<T, G>& b, const G* a, C* token);
  void (*forward)(const GatedAdapterBlock<T, G>& b);
  void (*backward_dots)(const GatedAdapterBlock<T, G>& b);
  void (*backward)(const GatedAdapterBlock<T, G>& b);
  // dh = ds + dlogit * gate_s (if `original`) + product; product, dlogit may be null.
  void (*finish_dh)(const GatedAdapterBlock<T, G>& b, const G* product, T* dh);
};

}  // namespace petx::cpu
