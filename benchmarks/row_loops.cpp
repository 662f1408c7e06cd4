// Calls the row loops of VL-PET's site in float32, compiled for AVX2, so that valgrind's callgrind can count them:
// row_loops WHAT ROWS, where WHAT names the loop and what goes with it (row_loops.py). valgrind knows no AVX-512.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/gated_adapter/loops.h"

using namespace petx;
using namespace petx::cpu;
using Values = std::vector<float>;

static Values values(int64_t count, float scale) {
  Values made(count + 64);  // loops may read and discard a vector past the end
  for (int64_t i = 0; i < count; ++i) made[i] = scale * ((i * 2654435761u % 1000) / 500.f - 1);
  return made;
}

int main(int argc, char** argv) {
  if (argc != 3) return std::puts("row_loops WHAT ROWS"), 2;
  const std::string what = std::string("-") + argv[1] + "-";
  const auto has = [&](const char* word) { return what.find(std::string("-") + word + "-") != std::string::npos; };
  const int64_t rows = std::atoi(argv[2]), d = 768, r = has("t5") ? 192 : 96, seed = 12345;

  Values h = values(rows * d, 1), x = values(rows * d, 1.1), up = values(rows * d, .3), gate = values(rows * d, .5);
  Values work = values(5 * (d + 8), 0), out = values(rows * d, 0), dout = values(rows * d, .7);
  Values ds = values(rows * d, 0), dgate = values(rows * d, 0), dx = values(rows * d, 0), stats = values(2 * rows, 1);
  Values up_bias = values(d, .1), gate_bias = values(d, .1), norm_weight = values(d, .9), norm_bias = values(d, .1);
  Values sums[4] = {values(d, 0), values(d, 0), values(d, 0), values(d, 0)};
  Values z = values(rows * r, 1), a = values(rows * r, 1), down_bias = values(r, .1);

  GatedAdapterParams p = {};
  p.dtype = DType::f32, p.rows = p.length = rows, p.d = p.d_x = d, p.r = p.r_g = r, p.heads = 4;
  p.granularity = Granularity::large, p.scale = has("t5") ? 0.3 : 1.0;
  p.dropout = has("tail") ? 0.1 : 0, p.seed = &seed, p.residual = has("tail");
  p.norm = has("norm") ? Norm::layer : Norm::none, p.eps = 1e-5, p.norm_stats = stats.data();

  GatedAdapterVectors<float> vectors = {};
  vectors.down_bias = vectors.gate_down_bias = down_bias.data();
  vectors.up_bias = up_bias.data(), vectors.gate_bias = gate_bias.data();
  vectors.norm_weight = norm_weight.data(), vectors.norm_bias = norm_bias.data();

  GatedAdapterBlock<float, float> block = {};
  block.p = &p, block.v = &vectors, block.rows = rows, block.h = h.data(), block.x = x.data();
  block.up = up.data(), block.gate = gate.data(), block.work = work.data(), block.out = out.data();
  block.dout = dout.data(), block.ds = ds.data(), block.dgate = dgate.data(), block.dx = dx.data();
  block.sum_up_bias = sums[0].data(), block.sum_gate_bias = sums[1].data();
  if (p.norm != Norm::none) block.sum_norm_weight = sums[2].data(), block.sum_norm_bias = sums[3].data();

  const auto loops = avx2::loops_for<float, float>();
  if (has("forward")) loops.forward(block);
  if (has("backward")) {
    loops.backward(block);
    loops.finish_dh(block, up.data(), out.data());
  }
  if (has("activation")) loops.activate(a.data(), down_bias.data(), Activation::gelu_tanh, rows, r, z.data(), a.data());
  if (has("recomputed")) loops.reactivate(z.data(), Activation::gelu_tanh, rows * r, a.data());
  if (has("derivative")) loops.activate_bwd(z.data(), Activation::gelu_tanh, rows, r, a.data(), sums[0].data());
  if (has("mask"))
    for (int64_t i = 0; i < rows; ++i) out[i] = avx2::dropout_mask<float>(seed, i * d, d, 0.1, work.data())[3];

  double sum = 0;  // so that nothing is left out as unused
  for (const Values* made : {&out, &ds, &dgate, &dx, &a, &z})
    for (float value : *made) sum += value;
  std::printf("%.9g\n", sum);
}
