// Torch's stable ABI, so that one build serves every torch from 2.11 on. No file outside ops/ includes a torch header.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/types.h"

namespace petx {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_text(const int64_t* sizes, int64_t dims) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < dims; ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

inline std::string shape_text(const Tensor& t) { return shape_text(t.sizes().data(), t.dim()); }

inline DType kernel_dtype(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      fail(op, name, " must be float32, float64, bfloat16 or float16, got scalar type ", int(t.scalar_type()));
  }
}

inline ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ScalarType::Double;
    case DType::bf16:
      return ScalarType::BFloat16;
    case DType::f16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

// Rows of a tensor [..., width].
inline int64_t rows_of(const char* op, const char* name, const Tensor& t) {
  if (t.dim() < 1) fail(op, name, " must be [..., width], got []");
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.sizes()[i];
  return rows;
}

// Tokens of a sample of a tensor [..., length, width]. An argument of its own would be a constant of a compiled graph.
inline int64_t length_of(const char* op, const char* name, const Tensor& t) {
  if (t.dim() < 2) fail(op, name, " must be [..., length, width], got ", shape_text(t));
  return t.sizes()[t.dim() - 2];
}

// Its shape with another width.
inline std::vector<int64_t> rows_by(const Tensor& t, int64_t width) {
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = width;
  return shape;
}

// An option's number as its enum, which has `count` values.
template <class E>
E option(const char* op, const char* name, int64_t value, int64_t count) {
  if (value < 0 || value >= count) fail(op, name, " must be in [0, ", count, "), got ", value);
  return static_cast<E>(value);
}

// What values of `like` are computed, and gradients of parameters summed, in.
inline ScalarType compute_type(const Tensor& like) {
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// The gradients that a backward's `needs` asks for, bit by bit: an activation's in the call's dtype, a parameter's in
// the compute type or, where its bit of `narrow` is set, in the call's dtype too.
class WantedGrads {
 public:
  // `zeros`: nothing will be launched, so that what would have been sums must start as zeros.
  WantedGrads(const Tensor& like, int64_t needs, int64_t narrow, bool zeros)
      : like_(like), needs_(needs), narrow_(narrow), zeros_(zeros) {}

  // A tensor like argument number `bit`, and its address in `to`; an empty one if none is asked for.
  Tensor activation(int bit, const OptionalTensor& argument, void*& to) const {
    return made(bit, argument, like_.scalar_type(), to, zeros_);
  }
  // `zeros`: the kernel leaves a part of it alone.
  Tensor parameter(int bit, const OptionalTensor& argument, void*& to, bool zeros = false) {
    const ScalarType compute = compute_type(like_);
    if (!(narrow_ >> bit & 1) || like_.scalar_type() == compute)
      return made(bit, argument, compute, to, zeros_ || zeros);
    if (!like_.is_cpu()) return made(bit, argument, like_.scalar_type(), to, zeros_ || zeros);
    Tensor grad = made(bit, argument, like_.scalar_type(), to, false);
    if (to) rounded_.emplace_back(grad, made(bit, argument, compute, to, zeros_ || zeros));
    return grad;
  }
  // Of the residual stream: in the compute type.
  Tensor stream(int bit, const OptionalTensor& argument, void*& to) const {
    return made(bit, argument, compute_type(like_), to, zeros_);
  }

  // For the kernels: bit i says that the address of gradient i is one of the call's dtype, not of the compute type. A
  // CPU's kernels know the compute type alone; round() makes the rest.
  int64_t narrow() const { return like_.is_cpu() ? 0 : narrow_; }
  // After the kernels.
  void round() {
    for (auto& [grad, wide] : rounded_) torch::stable::copy_(grad, wide);
  }

 private:
  Tensor made(int bit, const OptionalTensor& argument, ScalarType dtype, void*& to, bool zeros) const {
    if (!argument || !(needs_ >> bit & 1)) return empty(like_, {0}, dtype);
    std::vector<int64_t> shape(argument->sizes().begin(), argument->sizes().end());
    Tensor grad = zeros ? torch::stable::new_zeros(like_, shape, dtype) : empty(like_, shape, dtype);
    to = grad.mutable_data_ptr();
    return grad;
  }

  const Tensor& like_;
  int64_t needs_, narrow_;
  bool zeros_;
  std::vector<std::pair<Tensor, Tensor>> rounded_;  // result, and what the kernel sums
};

// Checks one call's tensors against the first: same device, same dtype, given shape, contiguous.
class Checker {
 public:
  Checker(const char* op, const Tensor& like) : op_(op), device_(like.device()), dtype_(like.scalar_type()) {}

  // The data of `t`; `shape` may hold -1 for any extent.
  const void* operator()(const char* name, const Tensor& t, std::vector<int64_t> shape) const {
    return checked(name, t, shape, dtype_);
  }
  const void* operator()(const char* name, const OptionalTensor& t, std::vector<int64_t> shape) const {
    return t ? checked(name, *t, shape, dtype_) : nullptr;
  }
  const void* required(const char* name, const OptionalTensor& t, std::vector<int64_t> shape) const {
    if (!t) fail(op_, name, " must be ", shape_text(shape.data(), shape.size()), ", got None");
    return checked(name, *t, shape, dtype_);
  }
  // The data of `t`, whose rows (along its last dimension) may lie further apart, evenly: `stride` values from one to
  // the next.
  const void* rows(const char* name, const Tensor& t, const std::vector<int64_t>& shape, int64_t& stride) const {
    fits(name, t, shape, dtype_);
    auto sizes = t.sizes(), strides = t.strides();
    int64_t width = sizes.back(), next = 0, dims = t.dim();
    bool even = width <= 1 || strides[dims - 1] == 1;
    stride = width;
    for (int64_t i = dims - 2; i >= 0; --i) {
      if (sizes[i] == 1) continue;
      if (!next) stride = next = strides[i];
      even = even && strides[i] == next && stride >= width;
      next *= sizes[i];
    }
    if (!even)
      fail(op_, name, " must have dense rows that lie evenly apart, got ", shape_text(t), " with strides ",
           shape_text(strides.data(), dims));
    return t.const_data_ptr();
  }
  const void* of_type(const char* name, const OptionalTensor& t, std::vector<int64_t> shape, ScalarType dtype) const {
    return t ? checked(name, *t, shape, dtype) : nullptr;
  }
  // Its strides may be any.
  void fits(const char* name, const Tensor& t, const std::vector<int64_t>& shape) const {
    fits(name, t, shape, dtype_);
  }
  void unused(const char* name, const OptionalTensor& t, const char* why) const {
    if (t) fail(op_, name, " is not used ", why, "; got ", shape_text(*t));
  }

 private:
  void fits(const char* name, const Tensor& t, const std::vector<int64_t>& shape, ScalarType dtype) const {
    auto sizes = t.sizes();
    bool alike = sizes.size() == shape.size();
    for (size_t i = 0; alike && i < shape.size(); ++i) alike = shape[i] < 0 || shape[i] == sizes[i];
    if (!alike) fail(op_, name, " must be ", shape_text(shape.data(), shape.size()), ", got ", shape_text(t));
    if (t.device() != device_) fail(op_, name, " must be on the same device as the first argument");
    if (t.scalar_type() != dtype)
      fail(op_, name, " must have scalar type ", int(dtype), " like the first argument, got ", int(t.scalar_type()));
  }
  const void* checked(const char* name, const Tensor& t, const std::vector<int64_t>& shape, ScalarType dtype) const {
    fits(name, t, shape, dtype);
    if (!t.is_contiguous()) fail(op_, name, " must be contiguous");
    return t.const_data_ptr();
  }

  const char* op_;
  torch::stable::Device device_;
  ScalarType dtype_;
};

}  // namespace petx
