// The products up of expert_mixture by strips (common/strip.cuh), for experts whose ranks together are at most 64: y,
// and dx in the same way.
#pragma once

#include "cuda/common/strip.cuh"
#include "cuda/expert_mixture/block.cuh"

namespace petx::cuda {

// A pass over the rows and, in the blocks behind the rows', an image for strips of each 64 columns of `weight(column)`.
template <class T, class Pass, class Weight>
PETX_DEVICE void beside_images(const MixtureCall<Compute<T>>& p, T* images, const Pass& pass, const Weight& weight) {
  const int64_t image = block_x() - MixtureRow<T>::blocks(p.rows);
  if (image < 0) return pass();
  if constexpr (sizeof(T) == 2)
    Strip<T>::template make_image<kRowLaunch.threads>(weight(image * Strip<T>::kColumns), p.stacked,
                                                      images + image * Strip<T>::kImage);
}

template <class T>
class MixtureStrip {
  using Tile = Strip<T>;
  using C = Compute<T>;

 public:
  PETX_DEVICE explicit MixtureStrip(const MixtureCall<C>& call)
      : p(call), first_(block_x() * Tile::kRows), token_(first_ + Tile::row()) {}

  // Of this lane's two rows, number n.
  PETX_DEVICE int64_t token(int n) const { return token_ + 8 * n; }
  PETX_DEVICE bool valid(int n) const { return token(n) < p.rows; }
  PETX_DEVICE bool in_scope(int n) const { return valid(n) && p.in_scope(token(n)); }

  // to [N, d] = by[n] from + narrow W + sum_k weight(n, k) vectors [K, d], of the last two nothing in rows for which
  // adds[n] is false: this block's share of the columns. `narrow` is [N, K r], W has `images`; without vectors null.
  template <class Weight>
  PETX_DEVICE void run(const ColumnShares& shares, const T* narrow, const T* images, const void* from, const C (&by)[2],
                       const bool (&adds)[2], const void* vectors, const Weight& weight, void* to) const {
    const int64_t begin = block_y() * shares.each, left = shares.tiles - begin;
    const typename Tile::Rows rows(narrow + first_ * p.stacked, p.stacked, p.rows - first_, p.stacked);
    Tile::each_half(
        images, begin, left < shares.each ? left : shares.each,
        [&](int64_t column, const Shared<Pack<T>>& in, int half) {
          Pack<T> packs[2];
#pragma unroll
          for (int n = 0; n < 2; ++n)
            packs[n] = read_pack(static_cast<const T*>(from) + token(n) * p.d + column, valid(n) ? p.d - column : 0);
          typename Tile::Sums sums;
          Tile::multiply(sums, in, half, rows);
#pragma unroll 1
          for (int64_t k = 0; vectors && k < p.experts; ++k) {
            C vector[8];
            unpack(vector, read_pack(static_cast<const T*>(vectors) + k * p.d + column, p.d - column));
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              const C of_row = adds[n] ? weight(n, k) : C(0);
#pragma unroll
              for (int j = 0; j < 8; ++j) sums.add(n, j, of_row * vector[j]);
            }
          }
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            C values[8];
            unpack(values, packs[n]);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              values[j] *= by[n];
              if (adds[n]) values[j] += sums.value(n, j);
            }
            write_pack(static_cast<T*>(to) + token(n) * p.d + column, pack<T>(values), valid(n) ? p.d - column : 0);
          }
        });
  }

 private:
  const MixtureCall<C>& p;
  int64_t first_, token_;
};

}  // namespace petx::cuda
