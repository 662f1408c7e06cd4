// The Python module petx._C. Its import registers torch.ops.petx.* (ops/); the module itself only answers how the
// library was built and what it uses on this machine.
//
// Of CPython it uses the stable ABI alone (Py_LIMITED_API), so one library serves every version from 3.11 on.

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "build_info.h"  // written by buildtools/compile.py
#include "cpu/common/isa.h"
#include "cuda/common/plan.h"

namespace {

struct Release {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Release>;

struct ErrorIsSet {};  // thrown where Python has an error set already

Owned checked(PyObject* object) {
  if (object == nullptr) throw ErrorIsSet();
  return Owned(object);
}

void check(int status) {
  if (status < 0) throw ErrorIsSet();
}

Owned text(const std::string& value) {
  return checked(PyUnicode_FromStringAndSize(value.data(), static_cast<Py_ssize_t>(value.size())));
}

void set(const Owned& dict, const std::string& key, const Owned& value) {
  check(PyDict_SetItemString(dict.get(), key.c_str(), value.get()));
}

Owned dict_of(const petx::cuda::Sizes& sizes) {
  Owned found = checked(PyDict_New());
  for (const auto& [name, size] : sizes) set(found, name, checked(PyLong_FromLongLong(size)));
  return found;
}

std::string string_of(PyObject* value) {
  Py_ssize_t length = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(value, &length);
  if (bytes == nullptr) throw ErrorIsSet();
  return {bytes, static_cast<size_t>(length)};
}

petx::cuda::Sizes sizes_of(PyObject* dict) {
  petx::cuda::Sizes sizes;
  PyObject *name, *size;
  for (Py_ssize_t place = 0; dict != nullptr && PyDict_Next(dict, &place, &name, &size);) {
    long long value = PyLong_AsLongLong(size);
    if (value == -1 && PyErr_Occurred() != nullptr) throw ErrorIsSet();
    sizes[string_of(name)] = value;
  }
  return sizes;
}

petx::DType dtype_of(const std::string& name) {
  if (name == "float32") return petx::DType::f32;
  if (name == "float64") return petx::DType::f64;
  if (name == "bfloat16") return petx::DType::bf16;
  if (name == "float16") return petx::DType::f16;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

// What `make`, a function that returns an Owned, returns; its C++ errors become Python's.
template <typename Make>
PyObject* answered(Make make) {
  try {
    return make().release();
  } catch (const ErrorIsSet&) {
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* build_info(PyObject*, PyObject*) {
  return answered([] {
    constexpr const char* variants[] = {"baseline", "avx2", "avx512"};  // in the order of cpu::Isa
    Owned json = checked(PyImport_ImportModule("json"));
    Owned info = checked(PyObject_CallMethod(json.get(), "loads", "s", PETX_BUILD_INFO));
    Owned compiled = checked(PyList_New(0));
    for (int i = 0; i < (PETX_X86 ? 3 : 1); ++i) check(PyList_Append(compiled.get(), text(variants[i]).get()));
    set(info, "cpu_variants", compiled);
    set(info, "cpu_variant", text(variants[static_cast<int>(petx::cpu::best_isa())]));
    return info;
  });
}

PyObject* cuda_plan(PyObject*, PyObject* args, PyObject* kwargs) {
  return answered([=] {
    const char *operation, *dtype = "bfloat16";
    PyObject* sizes = nullptr;
    int architecture = 90;
    const char* names[] = {"operation", "dtype", "sizes", "architecture", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|sO!i:cuda_plan", const_cast<char**>(names), &operation, &dtype,
                                     &PyDict_Type, &sizes, &architecture)) {
      throw ErrorIsSet();
    }
    petx::cuda::Plan plan = petx::cuda::plan_of(operation, dtype_of(dtype), sizes_of(sizes), architecture);
    Owned answer = checked(PyDict_New());
    set(answer, "kernel", text(plan.kernel));
    set(answer, "why", text(plan.why));
    set(answer, "grid",
        checked(Py_BuildValue("(LL)", static_cast<long long>(plan.grid_x),  //
                              static_cast<long long>(plan.grid_y))));
    return answer;
  });
}

PyObject* cuda_usual_sizes(PyObject*, PyObject*) {
  return answered([] {
    Owned found = checked(PyDict_New());
    for (const auto& [operation, sizes] : petx::cuda::usual_sizes()) set(found, operation, dict_of(sizes));
    return found;
  });
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "How the library was built: version, torch_version, compiler, flags, operations, cuda (bool), cuda_mode "
     "('full', 'check' or 'absent'), cuda_version, cuda_architectures, cuda_operations, cuda_absent_reason; and "
     "cpu_variants, the instruction sets compiled, with cpu_variant, the one this machine uses."},
    {"cuda_plan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(cuda_plan)), METH_VARARGS | METH_KEYWORDS,
     "cuda_plan(operation, dtype='bfloat16', sizes={}, architecture=90): what a call of an operation would launch on "
     "a GPU, and why: kernel, why, grid (of the forward's largest launch). sizes not given are those of "
     "cuda_usual_sizes(); architecture is the compute capability, 90 for 9.0. Asks no GPU."},
    {"cuda_usual_sizes", cuda_usual_sizes, METH_NOARGS,
     "Operation -> the sizes that its plan depends on, as published."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "petx's compiled operations; importing it registers torch.ops.petx.*",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
