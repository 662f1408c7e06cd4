// Torch's threads and matrix products for the CPU kernels (kernels/host.h).

#include "kernels/host.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "ops/torch.h"

namespace petx::host {
namespace {

class Borrowed {
 public:
  Borrowed(const Matrix& m, ScalarType dtype) {
    int64_t sizes[2] = {m.rows, m.cols}, strides[2] = {m.row_stride, m.col_stride};
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(m.data, 2, sizes, strides, 0, static_cast<int32_t>(dtype),
                                                              aoti_torch_device_type_cpu(), 0, &handle_));
  }
  ~Borrowed() { aoti_torch_delete_tensor_object(handle_); }
  Borrowed(const Borrowed&) = delete;
  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_;
};

// The BLAS that torch itself multiplies with, found in torch's own library. A call through torch's dispatcher takes
// three borrowed tensors and some microseconds, longer than a narrow product of few rows. Null if torch exports
// none, or PETX_BLAS=torch is set: then torch is called.
template <class T>
using BlasGemm = void (*)(const char* transa, const char* transb, const int64_t* m, const int64_t* n, const int64_t* k,
                          const T* alpha, const T* a, const int64_t* lda, const T* b, const int64_t* ldb, const T* beta,
                          T* c, const int64_t* ldc);

void* in_torch(const char* symbol) {
#if (defined(__linux__) || defined(__APPLE__)) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  const char* chosen = std::getenv("PETX_BLAS");
  if (chosen && !std::strcmp(chosen, "torch")) return nullptr;
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&aoti_torch_cpu_mm_out), &info) || !info.dli_fname) return nullptr;
  void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return library ? dlsym(library, symbol) : nullptr;
#else
  return nullptr;
#endif
}

// How a column-major BLAS sees the transpose of a row-major matrix.
struct BlasOperand {
  explicit BlasOperand(const Matrix& m)
      : trans(m.col_stride == 1 ? 'N' : 'T'),
        leading(m.col_stride == 1 ? std::max(m.row_stride, m.cols) : std::max(m.col_stride, m.rows)),
        fits((m.col_stride == 1 || m.row_stride == 1) &&
             std::max({m.rows, m.cols, leading}) <= std::numeric_limits<int32_t>::max()) {
    leading = std::max<int64_t>(leading, 1);
  }
  char trans;
  int64_t leading;  // 64 bits, of which a BLAS with 32-bit integers reads the lower half
  bool fits;
};

// out^T = b^T a^T (+ out^T); false if there is no such BLAS, or it cannot take these matrices.
template <class T>
bool blas_gemm(const char* symbol, const Matrix& a, const Matrix& b, const Matrix& out, bool accumulate) {
  static const auto gemm = reinterpret_cast<BlasGemm<T>>(in_torch(symbol));
  BlasOperand left(b), right(a), to(out);
  if (!gemm || !left.fits || !right.fits || !to.fits || to.trans != 'N') return false;
  T one = 1, beta = accumulate ? 1 : 0;
  gemm(&left.trans, &right.trans, &out.cols, &out.rows, &a.cols, &one, static_cast<const T*>(b.data), &left.leading,
       static_cast<const T*>(a.data), &right.leading, &beta, static_cast<T*>(out.data), &to.leading);
  return true;
}

thread_local bool alone = false;  // whether this thread runs the only task of `parallel`

void whole_gemm(DType dtype, const Matrix& a, const Matrix& b, const Matrix& out, bool accumulate) {
  if (dtype == DType::f32 && blas_gemm<float>("sgemm_", a, b, out, accumulate)) return;
  if (dtype == DType::f64 && blas_gemm<double>("dgemm_", a, b, out, accumulate)) return;
  ScalarType type = scalar_type(dtype);
  Borrowed left(a, type), right(b, type), to(out, type);
  if (accumulate) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(to.get(), to.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), left.get(), right.get()));
  }
}

Matrix rows_of(const Matrix& m, DType dtype, int64_t first, int64_t count) {
  int64_t size = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  return {static_cast<char*>(m.data) + first * m.row_stride * size, count, m.cols, m.row_stride, m.col_stride};
}

}  // namespace

void parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
  if (tasks == 0) return;
  if (tasks > 1) return torch::stable::parallel_for(0, tasks, 1, body);
  struct Alone {
    bool before = std::exchange(alone, true);
    ~Alone() { alone = before; }
  } here;
  body(0, 1);
}

// In a task that runs alone the longer side of the result is cut into parts, as many as its length says, so that the
// rounding is the same whatever the number of threads. A part is long enough to be worth packing the other operand.
void gemm(DType dtype, const Matrix& a, const Matrix& b, const Matrix& out, bool accumulate) {
  if (!alone) return whole_gemm(dtype, a, b, out, accumulate);
  bool by_rows = out.rows >= out.cols;
  int64_t length = by_rows ? out.rows : out.cols, parts = length >= 128 ? 4 : length >= 64 ? 2 : 1;
  int64_t size = (length + parts - 1) / parts;
  // One part alone would be multiplied outside a parallel region, by all threads: an empty second one opens a region.
  torch::stable::parallel_for(0, std::max<int64_t>(parts, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < std::min(end, parts); ++part) {
      int64_t first = part * size, count = std::min(size, length - first);
      if (by_rows) {
        whole_gemm(dtype, rows_of(a, dtype, first, count), b, rows_of(out, dtype, first, count), accumulate);
      } else {
        Matrix columns = rows_of(b.transposed(), dtype, first, count).transposed();
        Matrix to = rows_of(out.transposed(), dtype, first, count).transposed();
        whole_gemm(dtype, a, columns, to, accumulate);
      }
    }
  });
}

bool has_fast_bf16_gemm() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool fast = __builtin_cpu_supports("avx512bf16");  // every CPU with AMX has it too
  return fast;
#else
  return false;
#endif
}

}  // namespace petx::host
