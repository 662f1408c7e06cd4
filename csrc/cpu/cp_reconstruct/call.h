// What forward and backward of cp_reconstruct share: the factors in the compute type, and the division into tiles.
#pragma once

#include <vector>

#include "cpu/common/products.h"
#include "cpu/cp_reconstruct/rows.h"

namespace petx::cpu {

// A tile is some rows of one module's weight by a panel of its columns, 384 KB in floats: it stays in cache between
// its products and its gate, and is deep and wide enough for a product. All are functions of the shape alone.
struct Tiles {
  Division panels, blocks;
  int64_t modules;

  explicit Tiles(const CpReconstructParams& p) : modules(p.modules) {
    constexpr int64_t kMostColumns = 1024, kValues = 96 * 1024;
    panels = {p.d_in, ceil_div(ceil_div(p.d_in, ceil_div(p.d_in, kMostColumns)), kSides) * kSides};
    int64_t rows = std::clamp<int64_t>(kValues / panels.size, 64, 1024);
    blocks = {p.d_out, std::min(rows, p.d_out)};
  }

  // Items are the row blocks of all modules, module after module.
  int64_t items() const { return modules * blocks.parts(); }
  int64_t module(int64_t item) const { return item / blocks.parts(); }
  int64_t first_row(int64_t item) const { return blocks.begin(item % blocks.parts()); }
  int64_t rows(int64_t item) const { return blocks.begin(item % blocks.parts() + 1) - first_row(item); }
};

template <class T>
class CpReconstructCall {
 public:
  using C = Compute<T>;

  explicit CpReconstructCall(const CpReconstructParams& p) : p_(p), tiles(p) {
    int64_t core = p.diagonal ? p.rank : p.rank * p.rank;
    u_buffer_ = operand_buffer<T, C>(p.rank * p.d_in);
    u_ = operand(static_cast<const T*>(p.u), p.rank * p.d_in, u_buffer_);
    cores_buffer_ = operand_buffer<T, C>(p.modules * core);
    cores = operand(static_cast<const T*>(p.cores), p.modules * core, cores_buffer_);
    scaled_v = buffer<C>(p.d_out * p.rank);
    vectors<T, C>().convert(static_cast<const T*>(p.v), p.d_out * p.rank, scaled_v.get());
    for (int64_t i = 0; i < p.d_out * p.rank; ++i) scaled_v[i] *= C(p.scale);
  }

  host::Matrix u_panel(int64_t first, int64_t columns) const {
    return host::matrix(u_ + first, p_.rank, columns, p_.d_in);
  }
  host::Matrix core(int64_t module) const { return host::matrix(cores + module * p_.rank * p_.rank, p_.rank, p_.rank); }
  C threshold(int64_t module) const {
    return p_.thresholds ? C(load(static_cast<const T*>(p_.threshold)[p_.threshold_of(module)])) : C(0);
  }
  C inverse_temperature() const { return C(1) / C(p_.temperature); }
  // Of a row of a module's update, from a panel's first column on.
  uint8_t* sides(int64_t module, int64_t row, int64_t column) const {
    return p_.sides + (module * p_.d_out + row) * ceil_div(p_.d_in, kSides) + column / kSides;
  }

  // mixed [rows, R] = scale V M^T of an item.
  void mix(int64_t item, C* mixed) const {
    int64_t rows = tiles.rows(item), module = tiles.module(item);
    const C* v = scaled_v.get() + tiles.first_row(item) * p_.rank;
    if (!p_.diagonal) {
      gemm<C>(host::matrix(v, rows, p_.rank), core(module).transposed(), host::matrix(mixed, rows, p_.rank));
      return;
    }
    const C* diagonal = cores + module * p_.rank;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < p_.rank; ++j) mixed[i * p_.rank + j] = v[i * p_.rank + j] * diagonal[j];
  }

 private:
  const CpReconstructParams& p_;
  const C* u_;
  Buffer<C> u_buffer_, cores_buffer_;

 public:
  const Tiles tiles;
  const C* cores;      // [K, R, R] or [K, R]
  Buffer<C> scaled_v;  // [d_out, R]
};

// Calls f.operator()<T>() with a dtype's storage type.
template <class F>
void with_storage_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<BFloat16>();
    case DType::f16:
      return f.template operator()<Half>();
  }
}

}  // namespace petx::cpu
