// The emulator's controls for Python, by ctypes.

#include "simt.h"

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
const char* simt_report() { return simt::report().c_str(); }
}
