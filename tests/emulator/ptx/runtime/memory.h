// Memory of translated PTX: the emulator's, with its checks.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "simt.h"

namespace ptx {

template <class To, class From>
To bits(From from) {
  return std::bit_cast<To>(from);
}

// What libstdc++'s source_location points to, so that a report can name a place that PTX gives in numbers. `column` is
// the number of the instruction in its entry: each is a place of its own where lanes are looked at together.
struct Place {
  const char* file;
  const char* function;
  unsigned line, column;
};
static_assert(sizeof(simt::Line) == sizeof(const Place*));
inline simt::Line line(const Place& place) { return std::bit_cast<simt::Line>(&place); }

// Generic addresses of shared memory lie where no tensor does; the lower word of one is no address in the window.
constexpr uint64_t kSharedWindow = 0x7000000100800000u;
inline uint64_t shared_of_generic(uint64_t at) { return at - kSharedWindow; }
inline uint64_t generic_of_shared(uint64_t at) { return kSharedWindow + static_cast<uint32_t>(at); }

template <class T, size_t n>
void load_param(T (&to)[n], uint64_t at, simt::Line) {
  std::memcpy(to, reinterpret_cast<const void*>(at), sizeof(to));
}
template <class T, size_t n>
void load_global(T (&to)[n], uint64_t at, simt::Line line) {
  std::memcpy(to, simt::global(simt::Access::read, reinterpret_cast<const void*>(at), sizeof(to), line), sizeof(to));
}
template <class T, size_t n>
void store_global(const T (&from)[n], uint64_t at, simt::Line line) {
  const void* address = reinterpret_cast<const void*>(at);
  std::memcpy(simt::global(simt::Access::write, address, sizeof(from), line), from, sizeof(from));
}
// Addresses of the shared window are 32 bits wide.
template <class T, size_t n>
void load_shared(T (&to)[n], uint64_t at, simt::Line line) {
  std::memcpy(to, simt::shared(simt::Access::read, static_cast<uint32_t>(at), sizeof(to), line), sizeof(to));
}
template <class T, size_t n>
void store_shared(const T (&from)[n], uint64_t at, simt::Line line) {
  std::memcpy(simt::shared(simt::Access::write, static_cast<uint32_t>(at), sizeof(from), line), from, sizeof(from));
}
template <class T, size_t n>
void load_generic(T (&to)[n], uint64_t at, simt::Line line) {
  at >= kSharedWindow ? load_shared(to, shared_of_generic(at), line) : load_global(to, at, line);
}
template <class T, size_t n>
void store_generic(const T (&from)[n], uint64_t at, simt::Line line) {
  at >= kSharedWindow ? store_shared(from, shared_of_generic(at), line) : store_global(from, at, line);
}

// cp.async of `bytes`, of which the first `given` come from memory and the rest are zeros.
inline void copy_async(uint64_t to, uint64_t from, int64_t bytes, uint32_t given, simt::Line line) {
  if (given > bytes) simt::fault("copies " + std::to_string(given) + " of " + std::to_string(bytes) + " bytes", line);
  simt::copy_async(static_cast<uint32_t>(to), reinterpret_cast<const void*>(from), bytes, line, given);
}

}  // namespace ptx
