// The CPU's body of csrc/cuda/common/primitives.cuh: the same names, each checked by the emulator.
//
// `line` is where the kernel calls from; no kernel passes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/types.h"
#include "simt.h"

#define PETX_KERNEL
#define PETX_DEVICE inline
#define __launch_bounds__(...)

namespace petx::cuda {

PETX_DEVICE int thread_index() { return simt::thread_index(); }
PETX_DEVICE int64_t block_x() { return simt::block_x(); }
PETX_DEVICE int64_t block_y() { return simt::block_y(); }
PETX_DEVICE int opaque(int i) { return i; }

constexpr uint32_t kWholeWarp = simt::kWholeWarp;

PETX_DEVICE void sync_block(simt::Line line = simt::Line::current()) { simt::block_barrier(line); }

PETX_DEVICE void sync_group(int barrier, int threads, simt::Line line = simt::Line::current()) {
  simt::group_barrier(barrier, threads, line);
}
PETX_DEVICE void sync_warp(uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  simt::warp_rendezvous("a warp barrier", nullptr, [](void* const*) {}, lanes, true, line);
}

// What `source(lane, ...)` makes of each lane's value; the lane it names must take part.
template <class T, class Source>
PETX_DEVICE T shuffle_from(T value, const Source& source, uint32_t lanes, simt::Line line) {
  struct Lane {
    T given, got;
  } mine{value, value};
  auto exchange = [&](void* const* all) {
    for (int i = 0; i < 32; ++i) {
      if (!all[i]) continue;
      int from = source(i);
      if (!all[from]) simt::fault("shuffles from lane " + std::to_string(from) + ", which does not take part", line);
      static_cast<Lane*>(all[i])->got = static_cast<Lane*>(all[from])->given;
    }
  };
  simt::warp_rendezvous("a shuffle", &mine, exchange, lanes, false, line);
  return mine.got;
}
template <class T>
PETX_DEVICE T shuffle_xor(T value, int mask, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  return shuffle_from(value, [mask](int lane) { return (lane ^ mask) & 31; }, lanes, line);
}
template <class T>
PETX_DEVICE T shuffle_up(T value, int by, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  return shuffle_from(value, [by](int lane) { return lane < by ? lane : lane - by; }, lanes, line);
}
template <class T>
PETX_DEVICE T shuffle_down(T value, int by, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  return shuffle_from(value, [by](int lane) { return lane + by > 31 ? lane : lane + by; }, lanes, line);
}
// `from` may differ from lane to lane, so the source is brought along.
template <class T>
PETX_DEVICE T shuffle(T value, int from, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  struct Lane {
    T given, got;
    int from;
  } mine{value, value, from & 31};
  auto exchange = [&](void* const* all) {
    for (int i = 0; i < 32; ++i) {
      if (!all[i]) continue;
      Lane& to = *static_cast<Lane*>(all[i]);
      if (!all[to.from])
        simt::fault("shuffles from lane " + std::to_string(to.from) + ", which does not take part", line);
      to.got = static_cast<Lane*>(all[to.from])->given;
    }
  };
  simt::warp_rendezvous("a shuffle", &mine, exchange, lanes, false, line);
  return mine.got;
}

PETX_DEVICE uint32_t ballot(bool vote, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  struct Lane {
    bool vote;
    uint32_t all;
  } mine{vote, 0};
  auto count = [](void* const* all) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i)
      if (all[i]) votes |= static_cast<uint32_t>(static_cast<Lane*>(all[i])->vote) << i;
    for (int i = 0; i < 32; ++i)
      if (all[i]) static_cast<Lane*>(all[i])->all = votes;
  };
  simt::warp_rendezvous("a vote", &mine, count, lanes, false, line);
  return mine.all;
}
PETX_DEVICE bool any_of_warp(bool vote, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  return ballot(vote, lanes, line) != 0;
}
PETX_DEVICE bool all_of_warp(bool vote, uint32_t lanes = kWholeWarp, simt::Line line = simt::Line::current()) {
  return ballot(vote, lanes, line) == lanes;
}

template <class T>
PETX_DEVICE T read(const T* from, simt::Line line = simt::Line::current()) {
  return *static_cast<const T*>(simt::global(simt::Access::read, from, sizeof(T), line));
}
template <class T>
PETX_DEVICE void write(T* to, T value, simt::Line line = simt::Line::current()) {
  *static_cast<T*>(simt::global(simt::Access::write, to, sizeof(T), line)) = value;
}

PETX_DEVICE void write_pair(float* to, float first, float second, simt::Line line = simt::Line::current()) {
  auto* at = static_cast<float*>(simt::global(simt::Access::write, to, 2 * sizeof(float), line));
  at[0] = first, at[1] = second;
}

template <class T>
class Shared {
 public:
  explicit Shared(int bytes) : bytes_(bytes) {}
  T get(int i, simt::Line line = simt::Line::current()) const { return *at(simt::Access::read, i, line); }
  void set(int i, T value, simt::Line line = simt::Line::current()) const { *at(simt::Access::write, i, line) = value; }
  T get_exchanged(int i, int exchanged, simt::Line line = simt::Line::current()) const {
    return *at(simt::Access::read, i ^ exchanged, line);
  }
  void set_exchanged(int i, int exchanged, int further, T value, simt::Line line = simt::Line::current()) const {
    *at(simt::Access::write, (i ^ exchanged) + further, line) = value;
  }
  int64_t address(int i) const { return bytes_ + int64_t(i) * sizeof(T); }

 private:
  T* at(simt::Access access, int i, simt::Line line) const {
    return static_cast<T*>(simt::shared(access, address(i), sizeof(T), line));
  }
  int64_t bytes_;
};

template <class T>
struct alignas(16) Pack {
  T value[16 / sizeof(T)];
};

struct FourWords {
  uint32_t word[4];
};
template <class T>
struct alignas(8) HalfPack {
  T value[8 / sizeof(T)];
};
struct TwoWords {
  uint32_t word[2];
};
template <class T>
PETX_DEVICE uint32_t pair_of(float first, float second, T) {
  T low, high;
  store(low, first), store(high, second);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}
template <class T>
PETX_DEVICE float lower(uint32_t pair, T) {
  return load(T{static_cast<uint16_t>(pair)});
}
template <class T>
PETX_DEVICE float upper(uint32_t pair, T) {
  return load(T{static_cast<uint16_t>(pair >> 16)});
}

template <class T>
PETX_DEVICE void copy_async(Shared<Pack<T>> to, int i, const T* from, bool wanted,
                            simt::Line line = simt::Line::current()) {
  simt::copy_async(to.address(i), from, 16, line, wanted ? 16 : 0);
}
PETX_DEVICE void commit_copies() { simt::commit_copies(); }
template <int newest>
PETX_DEVICE void wait_copies() {
  simt::wait_copies(newest);
}

template <bool transposed, class T>
PETX_DEVICE void load_matrices(uint32_t (&to)[4], Shared<Pack<T>> from, int i, int exchanged = 0, int further = 0,
                               simt::Line line = simt::Line::current()) {
  struct Lane {
    int64_t address;
    uint32_t* to;
  } mine{from.address((i ^ exchanged) + further), to};
  auto load = [line](void* const* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t value[8][8];
      int in_bank[8] = {};  // rows that start in each group of four banks: one pass of the memory takes one of each
      for (int row = 0; row < 8; ++row) {
        int64_t at = static_cast<Lane*>(lanes[8 * matrix + row])->address;
        std::memcpy(value[row], simt::shared(simt::Access::read, at, 16, line, false), 16);
        ++in_bank[at / 16 % 8];
      }
      simt::count_bank_conflicts(*std::max_element(in_bank, in_bank + 8) - 1, line);
      for (int lane = 0; lane < 32; ++lane) {
        int row = lane / 4, column = lane % 4 * 2;
        uint32_t low = transposed ? value[column][row] : value[row][column];
        uint32_t high = transposed ? value[column + 1][row] : value[row][column + 1];
        static_cast<Lane*>(lanes[lane])->to[matrix] = low | high << 16;
      }
    }
  };
  simt::warp_rendezvous("a load of matrices", &mine, load, kWholeWarp, false, line);
}

template <class T>
PETX_DEVICE void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T,
                                   simt::Line line = simt::Line::current()) {
  struct Lane {
    float* sum;
    const uint32_t* a;
    uint32_t b[2];
  } mine{sum, a, {b0, b1}};
  auto multiply = [](void* const* lanes) {
    auto half = [](uint32_t word, int which) { return load(T{static_cast<uint16_t>(word >> 16 * which)}); };
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Lane& from = *static_cast<Lane*>(lanes[lane]);
      int row = lane / 4, column = lane % 4 * 2;
      for (int part = 0; part < 4; ++part)
        for (int k = 0; k < 2; ++k) left[row + part % 2 * 8][column + part / 2 * 8 + k] = half(from.a[part], k);
      for (int part = 0; part < 2; ++part)
        for (int k = 0; k < 2; ++k) right[column + part * 8 + k][row] = half(from.b[part], k);
    }
    for (int row = 0; row < 16; ++row) {
      float total[8];
      float* to[8];
      for (int n = 0; n < 8; ++n) {
        to[n] = static_cast<Lane*>(lanes[row % 8 * 4 + n / 2])->sum + row / 8 * 2 + n % 2;
        total[n] = *to[n];
      }
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 8; ++n) total[n] += left[row][k] * right[k][n];
      for (int n = 0; n < 8; ++n) *to[n] = total[n];
    }
    simt::count_matrix_product();
  };
  simt::warp_rendezvous("a matrix product", &mine, multiply, kWholeWarp, false, line);
}

inline const char* runtime_error_text(int) { return simt::report().c_str(); }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, void*,
           Arguments... arguments) {
  auto launched = [&](Parameters... values) {
    void* addresses[] = {&values...};
    simt::Body other = simt::other_body({reinterpret_cast<const void*>(kernel), grid_x, grid_y, threads, shared_bytes});
    auto run = [&] { other ? other(addresses) : kernel(values...); };
    return simt::launch(grid_x, grid_y, threads, shared_bytes, run);
  };
  return launched(arguments...) ? 0 : 1;
}

}  // namespace petx::cuda
