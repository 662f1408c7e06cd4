// The last launch of cp_reconstruct's backward: what the others have left for one another, finished and added up.
#pragma once

#include "cuda/common/grad_to.cuh"
#include "cuda/cp_reconstruct/block.cuh"

namespace petx::cuda {

// What the kernels leave for one another. Items are the row tiles of all modules, module after module.
template <class T>
struct Intermediate {
  using C = Compute<T>;
  Mixed<T> mixed;  // [K, d_out, R]
  T* tiles;        // [blocks, 64, 64], D of the tile at hand, or null
  T* stored;       // [modules of a launch, d_out, stride], D of all their tiles, or null
  int64_t stride;
  T* dmixed;      // [d_out, K, R] or null
  C* du;          // [splits, R, d_in] or null
  C* dthreshold;  // [items] or null
};

// The last launch: blocks of each kind follow one another.
struct FinishGrid {
  int64_t dv, dcores, du, dthreshold;
  PETX_HD int64_t blocks() const { return dv + dcores + du + dthreshold; }
};

template <class T>
class Finish {
  using Tile = TileOf<T>;
  using C = Compute<T>;

 public:
  PETX_DEVICE Finish(const ReconstructCall<C>& params, const CpReconstructGrads& grads, const Intermediate<T>& from,
                     int64_t splits)
      : p(params), g(grads), from_(from), splits_(splits), width_(p.modules * p.rank) {}

  PETX_DEVICE void dv(int64_t block) const {
    if (p.diagonal) {
      int64_t e = block * Tile::kThreads + thread_index();
      if (e >= p.d_out * p.rank) return;
      C sum = 0;
      for (int64_t i = e % p.rank; i < width_; i += p.rank)
        sum += at<T>(from_.dmixed, e / p.rank * width_ + i) * at<T>(p.cores, i);
      grad(g.v, 1).put(e, sum * p.scale);
      return;
    }
    int64_t first = block / tiles_of(p.rank) * 64, begin = block % tiles_of(p.rank) * 64;
    Rows<T> rows{from_.dmixed + first * width_, width_, p.d_out - first};
    Columns<T> columns{static_cast<const T*>(p.cores) + begin, p.rank, p.rank - begin};
    store_product(rows, columns, width_, grad(g.v, 1), first, p.d_out, begin);
  }

  PETX_DEVICE void dcores(int64_t block) const {
    if (p.diagonal) return diagonal_dcores(block);
    int64_t tiles = tiles_of(p.rank), module = block / tiles / tiles;
    int64_t first = block / tiles % tiles * 64, begin = block % tiles * 64;
    Columns<T> rows{from_.dmixed + module * p.rank + first, width_, p.rank - first};
    Columns<T> columns{static_cast<const T*>(p.v) + begin, p.rank, p.rank - begin};
    const GradTo<T> to = grad(g.cores, 2).from(module * p.rank * p.rank);
    store_product(rows, columns, p.d_out, to, first, p.rank, begin);
  }

  PETX_DEVICE void du(int64_t block) const {
    int64_t count = p.rank * p.d_in, e = block * Tile::kThreads + thread_index();
    if (e >= count) return;
    C sum = 0;
#pragma unroll 8
    for (int64_t split = 0; split < splits_; ++split) sum += read(from_.du + split * count + e);
    grad(g.u, 0).put(e, sum * p.scale);
  }

  // A warp a threshold: each lane every 32nd of its items.
  static constexpr int kThresholds = Tile::kThreads / 32;
  PETX_DEVICE void dthreshold(int64_t block) const {
    const int64_t k = block * kThresholds + thread_index() / 32;
    if (k >= p.thresholds) return;
    const int64_t items = tiles_of(p.d_out) * (p.thresholds == 1 ? p.modules : 1);
    C sum = 0;
    for (int64_t i = thread_index() % 32; i < items; i += 32) sum += read(from_.dthreshold + k * items + i);
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (thread_index() % 32 == 0) grad(g.threshold, 3).put(k, sum);
  }

 private:
  PETX_DEVICE GradTo<T> grad(void* to, int leaf) const { return GradTo<T>::of(to, g.narrow, leaf); }

  // The scaled product into `to` [rows, R], from row `first` and column `begin` on.
  template <class A>
  PETX_DEVICE void store_product(const A& a, const Columns<T>& b, int64_t depth, const GradTo<T>& to, int64_t first,
                                 int64_t rows, int64_t begin) const {
    TileSum<T> sum;
    sum.add_product(a, b, depth);
#pragma unroll 1
    for (int n = 0; n < TileSum<T>::kValues; ++n) {
      int64_t i = first + TileSum<T>::row(n), j = begin + TileSum<T>::column();
      if (i < rows && j < p.rank) to.put(i * p.rank + j, sum.value(n) * p.scale);
    }
  }

  // 32 neighbouring values a warp; the eight warps take every eighth row, and the first adds them up.
  PETX_DEVICE void diagonal_dcores(int64_t block) const {
    int lane = thread_index() % 32, warp = thread_index() / 32;
    int64_t i = block * 32 + lane;
    constexpr int64_t kRows = 512;
    C sum = 0;
    for (int64_t first = 0; i < width_ && first < p.d_out; first += kRows) {
      int64_t end = first + kRows < p.d_out ? first + kRows : p.d_out;
      C part = 0;
      for (int64_t row = first + warp; row < end; row += Tile::kThreads / 32)
        part += at<T>(from_.dmixed, row * width_ + i) * at<T>(p.v, row * p.rank + i % p.rank);
      sum += part;
    }
    Tile::set_result(0, warp, lane, sum);
    sync_block();
    if (warp != 0 || i >= width_) return;
    for (int other = 1; other < Tile::kThreads / 32; ++other) sum += Tile::result(0, other, lane);
    grad(g.cores, 2).put(i, sum * p.scale);
  }

  const ReconstructCall<C>& p;
  const CpReconstructGrads& g;
  const Intermediate<T>& from_;
  int64_t splits_, width_;
};

}  // namespace petx::cuda
