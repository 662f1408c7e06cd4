// What every kernel file uses: values in storage types, the tile for a type, workspaces, dispatch over dtypes.
#pragma once

#include "cuda/common/fma_tile.cuh"
#include "cuda/common/mma_tile.cuh"
#include "cuda/common/plan.h"

#include <type_traits>

namespace petx::cuda {

template <class T>
PETX_DEVICE Compute<T> at(const void* data, int64_t i) {
  return load(read(static_cast<const T*>(data) + i));
}
template <class T>
PETX_DEVICE Compute<T> at_or_zero(const void* data, int64_t i) {
  return data ? at<T>(data, i) : Compute<T>(0);
}
template <class T>
PETX_DEVICE void put(void* data, int64_t i, Compute<T> value) {
  T stored;
  store(stored, value);
  write(static_cast<T*>(data) + i, stored);
}

// A pack as values and back, 16-bit ones in pairs: an instruction makes two of them.
template <class T>
PETX_DEVICE void unpack(Compute<T> (&to)[16 / sizeof(T)], Pack<T> from) {
  if constexpr (sizeof(T) == 2) {
    FourWords pairs = bit_cast<FourWords>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[2 * i] = lower(pairs.word[i], T{}), to[2 * i + 1] = upper(pairs.word[i], T{});
  } else {
#pragma unroll
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) to[i] = from.value[i];
  }
}
template <class T>
PETX_DEVICE Pack<T> pack(const Compute<T> (&from)[16 / sizeof(T)]) {
  if constexpr (sizeof(T) == 2) {
    FourWords pairs;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs.word[i] = pair_of(from[2 * i], from[2 * i + 1], T{});
    return bit_cast<Pack<T>>(pairs);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) pack.value[i] = from[i];
    return pack;
  }
}

// Up to a pack of values that follow one another, zeros past `count`: at once where they are a whole pack that lies at
// a multiple of sixteen bytes.
template <class T>
PETX_DEVICE bool whole_pack(const T* pack, int64_t count) {
  return count >= static_cast<int>(16 / sizeof(T)) && reinterpret_cast<uintptr_t>(pack) % 16 == 0;
}
template <class T>
PETX_DEVICE Pack<T> read_pack(const T* from, int64_t count) {
  if (whole_pack(from, count)) return read(reinterpret_cast<const Pack<T>*>(from));
  Pack<T> values = {};
#pragma unroll
  for (int j = 0; j < static_cast<int>(16 / sizeof(T)); ++j)
    if (j < count) values.value[j] = read(from + j);
  return values;
}
template <class T>
PETX_DEVICE void write_pack(T* to, const Pack<T>& values, int64_t count) {
  if (whole_pack(to, count)) {
    write(reinterpret_cast<Pack<T>*>(to), values);
    return;
  }
#pragma unroll
  for (int j = 0; j < static_cast<int>(16 / sizeof(T)); ++j)
    if (j < count) write(to + j, values.value[j]);
}

// A workspace's parts, handed out in order from `base`; with base null only their size is counted.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
    return base_ && count ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// 16-bit types have matrix units, the others are multiplied plainly.
template <class T>
using TileOf = std::conditional_t<sizeof(T) == 2, MmaTile<T>, FmaTile<T>>;
static_assert(TileOf<double>::kM == kTile && TileOf<double>::kN == kTile);
static_assert(TileOf<Half>::kM == kTile && TileOf<Half>::kN == kTile);
static_assert(fits(kTileLaunch, TileOf<double>::shared_bytes(2)) && fits(kTileLaunch, TileOf<Half>::shared_bytes(2)));

// Calls f.operator()<T>() with a dtype's storage type.
template <class F>
int with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<BFloat16>();
    case DType::f16:
      return f.template operator()<Half>();
    default:
      return f.template operator()<float>();
  }
}

// One call of an operation as its class `Call` lays it out: Call<T>(workspace, arguments...) takes its parts of the
// workspace, and run(stream, more...) queues the launches.
template <template <class> class Call, class... Arguments>
int64_t count_workspace(DType dtype, const Arguments&... arguments) {
  int64_t bytes = 0;
  with_storage(dtype, [&]<class T>() {
    Workspace counted(nullptr);
    Call<T>(counted, arguments...);
    bytes = counted.used();
    return 0;
  });
  return bytes;
}
template <template <class> class Call, class... Arguments>
int run_call(DType dtype, void* base, void* stream, const Arguments&... arguments) {
  return with_storage(dtype, [&]<class T>() {
    Workspace workspace(base);
    return Call<T>(workspace, arguments...).run(stream);
  });
}

}  // namespace petx::cuda
