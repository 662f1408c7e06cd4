// Loops over the values of a piece of a row, for this machine's instruction set; the drivers are
// cp_reconstruct/forward.cpp and cp_reconstruct/backward.cpp.
#pragma once

#include "kernels/cp_reconstruct.h"

namespace petx::cpu {

// T is the storage type, C the compute type, in which every product runs too: an update rounded before the gate and
// the sum would break the promise of one rounding.
template <class T>
struct CpReconstructLoops {
  using C = Compute<T>;
  // out = weight + gate(update)
  void (*forward)(Gate gate, const T* weight, const C* update, int64_t count, C threshold, C inverse_temperature,
                  T* out);
  // `update` becomes its own gradient; returns the threshold's, a sum of many values of both signs.
  double (*backward)(Gate gate, const T* dout, int64_t count, C threshold, C inverse_temperature, C* update);
  // The sides of `count` updates, and the same gradients from them alone, of a soft or a hard gate. A byte has those of
  // one value from each quarter of the piece, so that a loop reads consecutive values.
  void (*sides)(Gate gate, const C* update, int64_t count, C threshold, uint8_t* sides);
  double (*backward_of_sides)(Gate gate, const T* dout, int64_t count, const uint8_t* sides, C* dupdate);
};

template <class T>
const CpReconstructLoops<T>& cp_reconstruct_loops();

}  // namespace petx::cpu
