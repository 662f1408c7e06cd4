// The Python module petx._C. Its import registers torch.ops.petx.* (ops/); the module itself only answers how the
// library was built and what it uses on this machine.

#include <pybind11/pybind11.h>

#include "build_info.h"  // written by buildtools/compile.py
#include "cpu/common/isa.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "petx's compiled operations; importing it registers torch.ops.petx.*";
  m.def("build_info", &build_info,
        "How the library was built: version, torch_version, compiler, flags, operations, cuda (bool), cuda_mode "
        "('full', 'check' or 'absent'), cuda_version, cuda_architectures, cuda_operations, cuda_absent_reason; and "
        "cpu_variants, the "
        "instruction sets compiled, with cpu_variant, the one this machine uses.");
}
