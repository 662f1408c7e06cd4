// Backward of cp_reconstruct on the CPU. With A_k = scale V M_k^T:
//
//   D = dW'_k gate'(A_k U);   dA_k = D U^T;   dU = sum_k A_k^T D;   dM_k = dA_k^T scale V;   dV = sum_k dA_k scale M_k
//
// The update is recomputed per tile and overwritten by its gradient D while it is in cache; only dA, R values per row
// of a module, is kept. Without a gate D is dW'. If the forward saved `sides` (two bits per entry: above +t, below -t),
// D follows from them. In both cases the update is not recomputed.

#include "cpu/cp_reconstruct/call.h"

namespace petx::cpu {
namespace {

template <class T>
class Backward {
  using C = Compute<T>;

 public:
  Backward(const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g)
      : p_(p), dout_(dout), g_(g), call_(p), tiles_(call_.tiles) {}

  void run() {
    bool through_mixed = g_.v || g_.cores;
    if (!through_mixed && !g_.u && !g_.threshold) return;
    if (through_mixed) dmixed_ = buffer<C>(p_.d_out * width());
    if (g_.threshold) dthreshold_ = buffer<double>(tiles_.items());
    // Each split sums dU for itself, item after item; the splits are then added up in their order.
    Division splits{tiles_.items(), ceil_div(tiles_.items(), kMostSplits)};
    if (g_.u) du_ = buffer<C>(splits.parts() * p_.rank * p_.d_in);
    host::parallel(splits.parts(), [&](int64_t begin, int64_t end) {
      Buffer<C> mixed = buffer<C>(tiles_.blocks.size * p_.rank);
      Buffer<C> tile = buffer<C>(in_place() ? 0 : tiles_.blocks.size * tiles_.panels.size);
      for (int64_t split = begin; split < end; ++split)
        for (int64_t item = splits.begin(split); item < splits.begin(split + 1); ++item)
          each_tile(item, item == splits.begin(split), mixed.get(), tile.get(), du_.get() + split * p_.rank * p_.d_in);
    });
    if (g_.u) reduce_du(splits.parts());
    if (g_.v) finish_dv();
    if (g_.cores) finish_dcores();
    if (g_.threshold) finish_dthreshold();
  }

 private:
  static constexpr int64_t kMostSplits = 32;

  int64_t width() const { return p_.modules * p_.rank; }  // of a row of dA
  bool gated() const { return p_.gate != Gate::none; }
  bool remakes() const { return gated() && !p_.sides; }
  bool in_place() const { return !gated() && std::is_same_v<T, C>; }

  // dA [d_out, K R]: a row of all modules lies together, so that dV is one product.
  host::Matrix dmixed(int64_t module, int64_t first_row, int64_t rows) const {
    return host::matrix(dmixed_.get() + first_row * width() + module * p_.rank, rows, p_.rank, width());
  }

  void each_tile(int64_t item, bool first_of_split, C* mixed, C* tile, C* du) const {
    int64_t module = tiles_.module(item), row = tiles_.first_row(item), rows = tiles_.rows(item);
    C threshold = call_.threshold(module);
    double dthreshold = 0;
    if (remakes() || g_.u) call_.mix(item, mixed);
    host::Matrix a = host::matrix(mixed, rows, p_.rank);
    for (int64_t panel = 0; panel < tiles_.panels.parts(); ++panel) {
      int64_t first = tiles_.panels.begin(panel), columns = tiles_.panels.begin(panel + 1) - first;
      const T* dout = static_cast<const T*>(dout_[module]) + row * p_.d_in + first;
      host::Matrix d = host::matrix(tile, rows, columns), u = call_.u_panel(first, columns);
      if (remakes()) gemm<C>(a, u, d);
      for (int64_t i = 0; i < rows && !in_place(); ++i) {
        const T* from = dout + i * p_.d_in;
        C* to = tile + i * columns;
        if (p_.sides) {
          dthreshold += cp_reconstruct_loops<T>().backward_of_sides(p_.gate, from, columns,
                                                                    call_.sides(module, row + i, first), to);
        } else if (gated()) {
          dthreshold +=
              cp_reconstruct_loops<T>().backward(p_.gate, from, columns, threshold, call_.inverse_temperature(), to);
        } else {
          vectors<T, C>().convert(from, columns, to);
        }
      }
      if constexpr (std::is_same_v<T, C>) {
        if (in_place()) d = host::matrix(dout, rows, columns, p_.d_in);
      }
      if (dmixed_) gemm<C>(d, u.transposed(), dmixed(module, row, rows), panel > 0);
      if (g_.u) gemm<C>(a.transposed(), d, host::matrix(du + first, p_.rank, columns, p_.d_in), !first_of_split);
    }
    if (dthreshold_) dthreshold_[item] = dthreshold;
  }

  void reduce_du(int64_t splits) const {
    constexpr int64_t kChunk = 16384;
    int64_t count = p_.rank * p_.d_in;
    host::parallel(ceil_div(count, kChunk), [&](int64_t begin, int64_t end) {
      int64_t from = begin * kChunk;
      vectors<T, C>().reduce(du_.get() + from, splits, count, std::min(end * kChunk, count) - from, false,
                             static_cast<C*>(g_.u) + from);
    });
  }

  void finish_dv() const {
    C* dv = static_cast<C*>(g_.v);
    Division blocks = divide(p_.d_out, ceil_div(p_.d_out, 128), 128);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        int64_t first = blocks.begin(block), rows = blocks.begin(block + 1) - first;
        if (!p_.diagonal) {
          gemm<C>(host::matrix(dmixed_.get() + first * width(), rows, width()),
                  host::matrix(call_.cores, width(), p_.rank), host::matrix(dv + first * p_.rank, rows, p_.rank));
        }
        for (int64_t i = first * p_.rank; i < (first + rows) * p_.rank; ++i) {
          if (p_.diagonal) dv[i] = diagonal_dv(i / p_.rank, i % p_.rank);
          dv[i] *= C(p_.scale);
        }
      }
    });
  }

  C diagonal_dv(int64_t row, int64_t j) const {
    C sum = 0;
    for (int64_t i = j; i < width(); i += p_.rank) sum += dmixed_[row * width() + i] * call_.cores[i];
    return sum;
  }

  void finish_dcores() const {
    C* dcores = static_cast<C*>(g_.cores);
    const C* v = call_.scaled_v.get();
    if (p_.diagonal) {
      constexpr int64_t kRows = 64;  // added up apart, so that no long sum is kept in one float
      host::parallel(p_.modules, [&](int64_t begin, int64_t end) {
        std::vector<C> part(p_.rank);
        for (int64_t module = begin; module < end; ++module) {
          C* to = dcores + module * p_.rank;
          std::fill_n(to, p_.rank, C(0));
          for (int64_t first = 0; first < p_.d_out; first += kRows) {
            std::fill(part.begin(), part.end(), C(0));
            for (int64_t row = first; row < std::min(first + kRows, p_.d_out); ++row)
              for (int64_t j = 0; j < p_.rank; ++j)
                part[j] += dmixed_[row * width() + module * p_.rank + j] * v[row * p_.rank + j];
            for (int64_t j = 0; j < p_.rank; ++j) to[j] += part[j];
          }
        }
      });
      return;
    }
    constexpr int64_t kDepth = 512;
    Division blocks = divide(p_.rank, ceil_div(p_.rank, 64), 64);  // of a core's rows
    host::parallel(p_.modules * blocks.parts(), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int64_t module = part / blocks.parts(), block = part % blocks.parts();
        int64_t first = module * p_.rank + blocks.begin(block), rows = blocks.begin(block + 1) - blocks.begin(block);
        for (int64_t row = 0; row < p_.d_out; row += kDepth) {  // so that no long sum is kept in one float
          int64_t depth = std::min(kDepth, p_.d_out - row);
          gemm<C>(host::matrix(dmixed_.get() + row * width() + first, depth, rows, width()).transposed(),
                  host::matrix(v + row * p_.rank, depth, p_.rank),
                  host::matrix(dcores + first * p_.rank, rows, p_.rank), row > 0);
        }
      }
    });
  }

  void finish_dthreshold() const {
    std::vector<double> sums(p_.thresholds);
    for (int64_t item = 0; item < tiles_.items(); ++item)
      sums[p_.threshold_of(tiles_.module(item))] += dthreshold_[item];
    std::copy(sums.begin(), sums.end(), static_cast<C*>(g_.threshold));
  }

  const CpReconstructParams& p_;
  const void* const* dout_;
  const CpReconstructGrads& g_;
  CpReconstructCall<T> call_;
  const Tiles& tiles_;
  Buffer<C> dmixed_;           // [d_out, K, R]
  Buffer<C> du_;               // [splits, R, d_in]
  Buffer<double> dthreshold_;  // [items]
};

}  // namespace

void cp_reconstruct_bwd(const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g) {
  with_storage_type(p.dtype, [&]<class T>() { Backward<T>(p, dout, g).run(); });
}

}  // namespace petx::cpu
