// Forward of mode_cores on the CPU: M = P gate(C)^T, a block of the core's rows at a time.

#include "cpu/mode_cores/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Forward {
  using C = Compute<T>;

 public:
  Forward(const ModeCoresParams& p, T* cores) : p_(p), call_(p), cores_(cores) {}

  void run() const {
    if (p_.diagonal) return diagonal();
    Division blocks = row_blocks(p_.slices(), kMostRows<G>);
    int64_t most = std::min(blocks.size, blocks.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      auto gate = call_.gate_buffer(most), product = operand_buffer<T, G>(p_.modes * most);
      for (int64_t block = begin; block < end; ++block) {
        int64_t first = blocks.begin(block), m = blocks.begin(block + 1) - first;
        host::Matrix gated = call_.gated_rows(first, m, gate).transposed();
        if constexpr (std::is_same_v<T, G>) {
          gemm<G>(call_.vectors, gated, call_.columns(cores_, first, m));
        } else {
          gemm<G>(call_.vectors, gated, host::matrix(product.get(), p_.modes, m));
          for (int64_t n = 0; n < p_.modes; ++n)
            vectors<T, G>().narrow(product.get() + n * m, m, cores_ + n * p_.slices() + first);
        }
      }
    });
  }

 private:
  void diagonal() const {
    auto weights = call_.gated_diagonal();
    for (int64_t n = 0; n < p_.modes; ++n)
      for (int64_t k = 0; k < p_.rank; ++k) store(cores_[n * p_.rank + k], weights[k] * C(load(call_.mode(n)[k])));
  }

  const ModeCoresParams& p_;
  const ModeCoresCall<T, G> call_;
  T* cores_;
};

}  // namespace

void mode_cores_fwd(const ModeCoresParams& p, void* cores) {
  with_types(p.dtype, [&]<class T, class G>() { Forward<T, G>(p, static_cast<T*>(cores)).run(); });
}

}  // namespace petx::cpu
