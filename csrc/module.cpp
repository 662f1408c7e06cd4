// The Python module petx._C. Its import registers torch.ops.petx.* (ops/); the module itself only answers how the
// library was built and what it uses on this machine.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"  // written by buildtools/compile.py
#include "cpu/common/isa.h"
#include "cuda/common/plan.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  constexpr const char* variants[] = {"baseline", "avx2", "avx512"};  // in the order of cpu::Isa
  py::dict info = py::module_::import("json").attr("loads")(PETX_BUILD_INFO);
  py::list compiled;
  for (int i = 0; i < (PETX_X86 ? 3 : 1); ++i) compiled.append(variants[i]);
  info["cpu_variants"] = compiled;
  info["cpu_variant"] = variants[static_cast<int>(petx::cpu::best_isa())];
  return info;
}

petx::DType dtype_of(const std::string& name) {
  if (name == "float32") return petx::DType::f32;
  if (name == "float64") return petx::DType::f64;
  if (name == "bfloat16") return petx::DType::bf16;
  if (name == "float16") return petx::DType::f16;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

py::dict cuda_plan(const std::string& operation, const std::string& dtype, const petx::cuda::Sizes& sizes,
                   int architecture) {
  petx::cuda::Plan plan = petx::cuda::plan_of(operation, dtype_of(dtype), sizes, architecture);
  py::dict answer;
  answer["kernel"] = plan.kernel;
  answer["why"] = plan.why;
  answer["grid"] = py::make_tuple(plan.grid_x, plan.grid_y);
  return answer;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "petx's compiled operations; importing it registers torch.ops.petx.*";
  m.def("build_info", &build_info,
        "How the library was built: version, torch_version, compiler, flags, operations, cuda (bool), cuda_mode "
        "('full', 'check' or 'absent'), cuda_version, cuda_architectures, cuda_operations, cuda_absent_reason; and "
        "cpu_variants, the "
        "instruction sets compiled, with cpu_variant, the one this machine uses.");
  m.def("cuda_plan", &cuda_plan, py::arg("operation"), py::arg("dtype") = "bfloat16",
        py::arg("sizes") = petx::cuda::Sizes{}, py::arg("architecture") = 90,
        "What a call of an operation would launch on a GPU, and why: kernel, why, grid (of the forward's launch "
        "that makes the results). sizes not given are those of cuda_usual_sizes(); architecture is the compute "
        "capability, 90 for 9.0. Asks no GPU.");
  m.def("cuda_usual_sizes", &petx::cuda::usual_sizes, "Operation -> the sizes that its plan depends on, as published.");
}
