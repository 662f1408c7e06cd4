// What a call will launch and why, decided from shapes and dtype alone. The launchers go by the same structs
// (<op>/plan.h); here they are put into words, so that `petx info` and the tests can ask without a GPU.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "cuda/common/launch.cuh"
#include "kernels/types.h"

namespace petx::cuda {

// Rows and columns of a tile of results; the tiles' own headers hold themselves to it.
inline constexpr int64_t kTile = 64;
inline int64_t tiles_along(int64_t extent) { return (extent + kTile - 1) / kTile; }

// The oldest architecture that the kernels are built for: asynchronous copies and bf16 matrix instructions.
inline constexpr int kOldestArchitecture = 80;

struct Plan {
  std::string kernel;  // of the forward
  std::string why;
  int64_t grid_x, grid_y;  // of the forward's launch that makes the results
};

// Sizes by their names in the parameter struct.
using Sizes = std::map<std::string, int64_t>;

// The planner of one operation, which its plan.cpp announces by a static object of this type.
struct Planner {
  using Function = Plan (*)(DType dtype, const Sizes& sizes);
  // `usual` are sizes as published: those that matter, with their defaults.
  Planner(const char* operation, const Sizes& usual, Function function);
};

// The plan of an operation at `sizes` (where not given: the usual ones) on compute capability `architecture`, 90 for
// 9.0. Throws std::invalid_argument if there is no such operation or size.
Plan plan_of(const std::string& operation, DType dtype, const Sizes& sizes, int architecture);
// Operation -> its usual sizes.
std::map<std::string, Sizes> usual_sizes();

// "the matrix units", or the plain ones.
inline std::string units_of(DType dtype) {
  return dtype == DType::bf16 || dtype == DType::f16 ? "16-bit products on the matrix units"
                                                     : "products on the plain arithmetic units";
}

// The same, and how blocks of rows, `shares` of each, take the columns.
inline std::string rows_of(DType dtype, int64_t blocks, int64_t shares) {
  std::string words = units_of(dtype) + "; " + std::to_string(blocks) + " blocks of 64 rows";
  if (shares <= 1) return words + ", each with all columns";
  return words + ", " + std::to_string(shares) +
         " share the columns of each, so that the busiest multiprocessor of a large card has least to do";
}

}  // namespace petx::cuda
