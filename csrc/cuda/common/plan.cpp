#include "cuda/common/plan.h"

#include <stdexcept>

namespace petx::cuda {
namespace {

struct Known {
  Sizes usual;
  Planner::Function function;
};

std::map<std::string, Known>& known() {
  static std::map<std::string, Known> all;  // static objects of other files add to it
  return all;
}

std::string names_of(const Sizes& sizes) {
  std::string names;
  for (const auto& [name, value] : sizes) names += (names.empty() ? "" : ", ") + name;
  return names;
}

}  // namespace

Planner::Planner(const char* operation, const Sizes& usual, Function function) {
  known()[operation] = {usual, function};
}

Plan plan_of(const std::string& operation, DType dtype, const Sizes& sizes, int architecture) {
  auto found = known().find(operation);
  if (found == known().end()) throw std::invalid_argument("no operation is called " + operation);
  Sizes all = found->second.usual;
  for (const auto& [name, value] : sizes) {
    if (!all.count(name)) throw std::invalid_argument(operation + " has no size " + name + "; it has " + names_of(all));
    if (value < 0)
      throw std::invalid_argument(operation + "'s " + name + " must be at least 0, got " + std::to_string(value));
    all[name] = value;
  }
  if (architecture < kOldestArchitecture)
    return {"reference",
            "the kernels need compute capability 8.0, this is " + std::to_string(architecture / 10) + "." +
                std::to_string(architecture % 10),
            0, 0};
  return found->second.function(dtype, all);
}

std::map<std::string, Sizes> usual_sizes() {
  std::map<std::string, Sizes> usual;
  for (const auto& [name, one] : known()) usual[name] = one.usual;
  return usual;
}

}  // namespace petx::cuda
