// An operation's arguments, each spelled once: a list of (type, name) is the schema's text, a struct's members and the
// way from the dispatcher's stack into them.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "ops/torch.h"

// A struct `Name` of a list's arguments, in the schema's order. LIST(X) calls X(type, name) for each.
#define PETX_ARGUMENTS(Name, LIST)                                         \
  struct Name {                                                            \
    LIST(PETX_MEMBER)                                                      \
    static std::string schema() { return std::string(LIST(PETX_SCHEMA)); } \
    static Name take(Stack& stack) { return {LIST(PETX_TAKE)}; }           \
  };
#define PETX_MEMBER(type, name) type name;
#define PETX_SCHEMA(type, name) PETX_SCHEMA_##type " " #name ", "
#define PETX_TAKE(type, name) stack.take<type>(),
#define PETX_SCHEMA_Tensor "Tensor"
#define PETX_SCHEMA_Tensors "Tensor[]"
#define PETX_SCHEMA_OptionalTensor "Tensor?"
#define PETX_SCHEMA_int64_t "int"
#define PETX_SCHEMA_bool "bool"
#define PETX_SCHEMA_double "float"

namespace petx {

using Tensors = std::vector<Tensor>;

// The dispatcher's stack of one call: arguments are taken in order, then results take their place.
class Stack {
 public:
  Stack(StableIValue* values, uint64_t arguments) : values_(values), arguments_(arguments) {}

  template <class T>
  T take() {
    if (taken_ == arguments_) throw std::logic_error("petx: a kernel takes more arguments than its schema has");
    return torch::stable::detail::to<T>(values_[taken_++]);
  }

  template <class... Results>
  void put(const std::tuple<Results...>& results, uint64_t wanted) {
    std::apply([&](const auto&... each) { put_each(wanted, each...); }, results);
  }
  template <class Result>
  void put(const Result& result, uint64_t wanted) {
    put_each(wanted, result);
  }

 private:
  template <class... Results>
  void put_each(uint64_t wanted, const Results&... results) {
    if (taken_ != arguments_ || wanted != sizeof...(Results))
      throw std::logic_error("petx: a kernel's arguments or results are not those of its schema");
    StableIValue* to = values_;
    ((*to++ = torch::stable::detail::from(results)), ...);
  }

  StableIValue* values_;
  uint64_t arguments_, taken_ = 0;
};

// What the dispatcher calls: run(stack) takes the arguments and returns a result, or a tuple of them.
template <auto run>
void boxed(StableIValue* values, uint64_t arguments, uint64_t results) {
  Stack stack(values, arguments);
  stack.put(run(stack), results);
}

// "name(arguments) -> results" of argument groups' schemas, each of which ends with ", ".
inline std::string schema(const char* name, std::string arguments, const char* results) {
  arguments.resize(arguments.size() - 2);
  return std::string(name) + "(" + arguments + ") -> " + results;
}

}  // namespace petx
