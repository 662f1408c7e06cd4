// Translated PTX in which the lanes of a warp meet.
//
// ldmatrix and mma are written from the tables of the PTX ISA (fragments of mma.m16n8k16), element by element, and not
// from tests/emulator/cuda/primitives.cuh: two readings that have to agree.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "kernels/types.h"
#include "simt.h"

namespace ptx {

inline void warp_barrier(uint32_t lanes, simt::Line line) {
  simt::warp_rendezvous("a warp barrier", nullptr, [](void* const*) {}, lanes, true, line);
}

enum class Shuffle { up, down, bfly, idx };

// shfl.sync: bits 0-4 of `clamp` bound the source lane, bits 8-12 cut the warp into segments.
template <Shuffle mode>
uint32_t shuffle(uint32_t value, uint32_t by, uint32_t clamp, uint32_t lanes, bool& valid, simt::Line line) {
  struct Lane {
    uint32_t given, got;
    int by, clamp, segment;
    bool valid;
  } mine{value, value, int(by & 31), int(clamp & 31), int(clamp >> 8 & 31), true};
  auto exchange = [line](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!all[lane]) continue;
      Lane& to = *static_cast<Lane*>(all[lane]);
      int last = (lane & to.segment) | (to.clamp & ~to.segment), from = lane;
      if (mode == Shuffle::up) from = lane - to.by, to.valid = from >= last;
      if (mode == Shuffle::down) from = lane + to.by, to.valid = from <= last;
      if (mode == Shuffle::bfly) from = lane ^ to.by, to.valid = from <= last;
      if (mode == Shuffle::idx) from = (lane & to.segment) | (to.by & ~to.segment), to.valid = from <= last;
      if (!to.valid) from = lane;
      if (!all[from]) simt::fault("shuffles from lane " + std::to_string(from) + ", which does not take part", line);
      to.got = static_cast<Lane*>(all[from])->given;
    }
  };
  simt::warp_rendezvous("a shuffle", &mine, exchange, lanes, false, line);
  valid = mine.valid;
  return mine.got;
}

inline uint32_t ballot(bool vote, uint32_t lanes, simt::Line line) {
  struct Lane {
    bool vote;
    uint32_t all;
  } mine{vote, 0};
  auto count = [](void* const* all) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i)
      if (all[i]) votes |= uint32_t(static_cast<Lane*>(all[i])->vote) << i;
    for (int i = 0; i < 32; ++i)
      if (all[i]) static_cast<Lane*>(all[i])->all = votes;
  };
  simt::warp_rendezvous("a vote", &mine, count, lanes, false, line);
  return mine.all;
}

// ldmatrix: lanes 8 i to 8 i + 7 give the rows of matrix i. Lane l receives elements 2 (l % 4) and its successor of row
// l / 4; with .trans of the matrix turned.
template <int count, bool turned>
void load_matrices(uint32_t (&to)[4], uint64_t at, simt::Line line) {
  struct Lane {
    int64_t at;
    uint32_t* to;
  } mine{static_cast<uint32_t>(at), to};
  auto load = [line](void* const* lanes) {
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t value[8][8];
      int in_bank[8] = {};
      for (int row = 0; row < 8; ++row) {
        int64_t from = static_cast<Lane*>(lanes[8 * matrix + row])->at;
        std::memcpy(value[row], simt::shared(simt::Access::read, from, 16, line, false), 16);
        ++in_bank[from / 16 % 8];
      }
      simt::count_bank_conflicts(*std::max_element(in_bank, in_bank + 8) - 1, line);
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t word = 0;
        for (int half = 0; half < 2; ++half) {
          int row = lane / 4, column = lane % 4 * 2 + half;
          word |= uint32_t(turned ? value[column][row] : value[row][column]) << 16 * half;
        }
        static_cast<Lane*>(lanes[lane])->to[matrix] = word;
      }
    }
  };
  simt::warp_rendezvous("a load of matrices", &mine, load, simt::kWholeWarp, false, line);
}

// mma.m16n8k16, row.col, float32 sums: with group = lane / 4 and member = lane % 4,
//   a_i: row = group for i < 2 or 4 <= i < 6, else group + 8; column = 2 member + (i & 1), + 8 for i >= 4
//   b_i: row = 2 member + (i & 1), + 8 for i >= 2; column = group
//   c_i: row = group for i < 2, else group + 8; column = 2 member + (i & 1)
template <class T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Line line) {
  struct Lane {
    float* sum;
    const uint32_t *a, *b;
  } mine{sum, a, b};
  auto run = [](void* const* lanes) {
    auto element = [](const uint32_t* words, int i) {
      return petx::load(T{static_cast<uint16_t>(words[i / 2] >> 16 * (i & 1))});
    };
    float A[16][16], B[16][8], C[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Lane& from = *static_cast<Lane*>(lanes[lane]);
      int group = lane / 4, member = lane % 4;
      for (int i = 0; i < 8; ++i)
        A[i % 4 < 2 ? group : group + 8][2 * member + (i & 1) + (i < 4 ? 0 : 8)] = element(from.a, i);
      for (int i = 0; i < 4; ++i) B[2 * member + (i & 1) + (i < 2 ? 0 : 8)][group] = element(from.b, i);
      for (int i = 0; i < 4; ++i) C[i < 2 ? group : group + 8][2 * member + (i & 1)] = from.sum[i];
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 16; ++k)
        for (int column = 0; column < 8; ++column) C[row][column] += A[row][k] * B[k][column];
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        static_cast<Lane*>(lanes[lane])->sum[i] = C[i < 2 ? lane / 4 : lane / 4 + 8][2 * (lane % 4) + (i & 1)];
    simt::count_matrix_product();
  };
  simt::warp_rendezvous("a matrix product", &mine, run, simt::kWholeWarp, false, line);
}

}  // namespace ptx
