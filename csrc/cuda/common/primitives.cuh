// Everything a kernel asks of the GPU that C++ has no word for: indices, memory, barriers, launches.
//
// Kernels use these names and nothing below them, so that the same source runs on a CPU under tests/emulator, whose
// header of this name has the other body of each: one that checks bounds, barriers and races.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "kernels/types.h"

#define PETX_KERNEL __global__
#define PETX_DEVICE __device__ __forceinline__

namespace petx::cuda {

PETX_DEVICE int thread_index() { return threadIdx.x; }
PETX_DEVICE int64_t block_x() { return blockIdx.x; }
PETX_DEVICE int64_t block_y() { return blockIdx.y; }

// Optimisation barrier: an opaque copy of i, so that values derived from it are recomputed where they are used instead
// of living in registers across a loop.
PETX_DEVICE int opaque(int i) {
  asm volatile("" : "+r"(i));
  return i;
}

PETX_DEVICE void sync_block() { __syncthreads(); }
// Barrier 1 to 15 for `threads` threads of the block, which are whole warps.
PETX_DEVICE void sync_group(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Below, `lanes` names those of the warp that take part: each of them must call, with the same `lanes`.
constexpr uint32_t kWholeWarp = 0xffffffffu;

PETX_DEVICE void sync_warp(uint32_t lanes = kWholeWarp) { __syncwarp(lanes); }

// The value of the lane whose number differs in the bits of `mask`, is lower or higher by `by`, or is `from`; at the
// warp's ends a lane's own.
template <class T>
PETX_DEVICE T shuffle_xor(T value, int mask, uint32_t lanes = kWholeWarp) {
  return __shfl_xor_sync(lanes, value, mask);
}
template <class T>
PETX_DEVICE T shuffle_up(T value, int by, uint32_t lanes = kWholeWarp) {
  return __shfl_up_sync(lanes, value, by);
}
template <class T>
PETX_DEVICE T shuffle_down(T value, int by, uint32_t lanes = kWholeWarp) {
  return __shfl_down_sync(lanes, value, by);
}
template <class T>
PETX_DEVICE T shuffle(T value, int from, uint32_t lanes = kWholeWarp) {
  return __shfl_sync(lanes, value, from);
}

// One bit a lane: who votes yes.
PETX_DEVICE uint32_t ballot(bool vote, uint32_t lanes = kWholeWarp) { return __ballot_sync(lanes, vote); }
PETX_DEVICE bool any_of_warp(bool vote, uint32_t lanes = kWholeWarp) { return __any_sync(lanes, vote); }
PETX_DEVICE bool all_of_warp(bool vote, uint32_t lanes = kWholeWarp) { return __all_sync(lanes, vote); }

// Global memory.
template <class T>
PETX_DEVICE T read(const T* from) {
  return *from;
}
template <class T>
PETX_DEVICE void write(T* to, T value) {
  *to = value;
}

extern __shared__ __align__(128) unsigned char dynamic_shared[];

// A window on the block's shared memory, `bytes` from its start.
template <class T>
class Shared {
 public:
  PETX_DEVICE explicit Shared(int bytes) : data_(reinterpret_cast<T*>(dynamic_shared + bytes)) {}
  PETX_DEVICE T get(int i) const { return data_[i]; }
  PETX_DEVICE void set(int i, T value) const { data_[i] = value; }
  // The value whose number within 128 bytes is exchanged with i's by an exclusive or, and `further` behind that.
  PETX_DEVICE T get_exchanged(int i, int exchanged) const { return *at(i, exchanged, 0); }
  PETX_DEVICE void set_exchanged(int i, int exchanged, int further, T value) const {
    *at(i, exchanged, further) = value;
  }
  // For the instructions below, which take an address in the shared window.
  PETX_DEVICE uint32_t address(int i) const { return static_cast<uint32_t>(__cvta_generic_to_shared(data_ + i)); }

 private:
  // On the address, so that one is kept for many values: an exclusive or, and a constant of the instruction.
  PETX_DEVICE T* at(int i, int exchanged, int further) const {
    const uint32_t to = (address(i) ^ exchanged * sizeof(T)) + further * sizeof(T);
    return static_cast<T*>(__cvta_shared_to_generic(to));
  }
  T* data_;
};

// Sixteen bytes, what one thread moves at a time.
template <class T>
struct alignas(16) Pack {
  T value[16 / sizeof(T)];
};

// A pack in one instruction each way. The compiler, which knows the members alone, makes eight accesses of two bytes of
// a copy whose other branch goes value by value.
struct FourWords {
  uint32_t word[4];
};
template <class T>
PETX_DEVICE Pack<T> read(const Pack<T>* from) {
  FourWords words;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return bit_cast<Pack<T>>(words);
}
template <class T>
PETX_DEVICE void write(Pack<T>* to, Pack<T> value) {
  FourWords words = bit_cast<FourWords>(value);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.word[0]),
               "r"(words.word[1]), "r"(words.word[2]), "r"(words.word[3])
               : "memory");
}

// Two floats side by side, at a multiple of eight bytes.
PETX_DEVICE void write_pair(float* to, float first, float second) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(first), "f"(second)
               : "memory");
}

// Half of a pack, stored likewise.
template <class T>
struct alignas(8) HalfPack {
  T value[8 / sizeof(T)];
};
struct TwoWords {
  uint32_t word[2];
};
template <class T>
PETX_DEVICE void write(HalfPack<T>* to, HalfPack<T> value) {
  TwoWords words = bit_cast<TwoWords>(value);
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words.word[0]),
               "r"(words.word[1])
               : "memory");
}

// Two 16-bit values in a word, the first in its lower half: from floats, rounded to nearest even, and back.
PETX_DEVICE uint32_t pair_of(float first, float second, BFloat16) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
PETX_DEVICE uint32_t pair_of(float first, float second, Half) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
PETX_DEVICE float lower(uint32_t pair, BFloat16) { return bit_cast<float>(pair << 16); }
PETX_DEVICE float upper(uint32_t pair, BFloat16) { return bit_cast<float>(pair & 0xffff0000u); }
PETX_DEVICE float lower(uint32_t pair, Half) { return load(Half{static_cast<uint16_t>(pair)}); }
PETX_DEVICE float upper(uint32_t pair, Half) { return load(Half{static_cast<uint16_t>(pair >> 16)}); }

// Copies a pack from global to shared memory asynchronously: it is there for this thread after the wait that covers its
// group, and for others after the next barrier. Zeros unless `wanted`, and then `from` is not read.
template <class T>
PETX_DEVICE void copy_async(Shared<Pack<T>> to, int i, const T* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address(i)), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}
PETX_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `newest` groups are under way.
template <int newest>
PETX_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

// Four 8 x 8 matrices of 16-bit values, lane l giving the address of row l % 8 of matrix l / 8 (one pack): of eight
// packs that begin at a multiple of 128 bytes, the one whose number is exchanged with pack i's by an exclusive or. Lane
// l gets values 2 (l % 4) and its successor of row l / 4, or of column l / 4 where `transposed`.
template <bool transposed, class T>
PETX_DEVICE void load_matrices(uint32_t (&to)[4], Shared<Pack<T>> from, int i, int exchanged = 0, int further = 0) {
  // On the address, so that one is kept for all packs: an exclusive or, and a constant of the instruction.
  const uint32_t address = (from.address(i) ^ exchanged * 16) + further * 16;
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

// sum [16, 8] += a [16, 16] b [16, 8] of a warp, in the fragments of mma.m16n8k16: lane l holds columns 2 (l % 4) and
// its successor of rows l / 4 and l / 4 + 8 of the sum.
PETX_DEVICE void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
PETX_DEVICE void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

inline const char* runtime_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// Lets a kernel have `bytes` of shared memory. Asked of the runtime once per kernel and device, since its call may wait
// for copies between host and device that are under way.
inline cudaError_t allow_shared_memory(const void* function, int bytes) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  static std::mutex guard;
  static std::map<std::pair<const void*, int>, int> allowed;
  std::lock_guard<std::mutex> lock(guard);
  int& most = allowed[{function, device}];
  if (bytes <= most) return cudaSuccess;
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) most = bytes;
  return error;
}

// Starts `kernel` on grid_x by grid_y blocks of `threads`; returns a cudaError_t.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, void* stream,
           Arguments... arguments) {
  // Beyond these the numbers below would be others.
  if (grid_x > INT32_MAX || grid_y > 65535) return cudaErrorInvalidConfiguration;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    if (cudaError_t error = allow_shared_memory(function, shared_bytes)) return error;
  }
  auto launched = [&](Parameters... values) {
    void* addresses[] = {&values...};
    dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
    return cudaLaunchKernel(function, grid, dim3(threads), addresses, shared_bytes, static_cast<cudaStream_t>(stream));
  };
  return launched(arguments...);
}

}  // namespace petx::cuda
