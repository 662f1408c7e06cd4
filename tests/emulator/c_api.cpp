// The emulator's controls for Python, by ctypes.

#include "machine.h"

extern "C" {
void simt_set_order(int order, uint64_t seed) { simt::set_order(static_cast<simt::Order>(order), seed); }
void simt_set_watching(int on) { simt::set_watching(on != 0); }
void simt_add_buffer(const char* name, void* data, int64_t bytes, int contents) {
  simt::add_buffer(name, data, bytes, static_cast<simt::Contents>(contents));
}
void simt_clear_buffers() { simt::clear_buffers(); }
void simt_counters(simt::Counters* to) { *to = simt::counters(); }
void simt_reset_counters() { simt::reset_counters(); }
const char* simt_conflicts() { return simt::conflicts().c_str(); }
// Rows, depth and columns of product number `i` that was left to torch since the counters' reset; 0 past the last.
int simt_product(int64_t i, int64_t* to) {
  if (3 * i >= static_cast<int64_t>(simt::m.products.size())) return 0;
  for (int n = 0; n < 3; ++n) to[n] = simt::m.products[3 * i + n];
  return 1;
}
void simt_set_sample(int64_t blocks) { simt::set_sample(blocks); }
void simt_set_find_body(simt::FindBody find) { simt::set_find_body(find); }
// Launches a body that belongs to no kernel of this library.
int simt_run(simt::Body body, void* const* parameters, int64_t grid_x, int64_t threads, int64_t shared_bytes) {
  return simt::launch(grid_x, 1, static_cast<int>(threads), shared_bytes, [&] { body(parameters); }) ? 0 : 1;
}
const char* simt_report() { return simt::report().c_str(); }
}
