#include "cuda.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

namespace nb = nanobind;

namespace meshstage::python {

const std::string& cuda_problem() {
  static const std::string problem = [] {
    const auto support = device_support(DeviceType::kCuda);
    if (support.problem == DeviceProblem::kNone) return std::string();
    return support.detail.empty() ? std::string(to_string(support.problem)) : support.detail;
  }();
  return problem;
}

void bind_cuda(nb::module_& module) {
  module.def(
      "cuda_problem",
      []() -> std::optional<std::string> {
        if (cuda_problem().empty()) return std::nullopt;
        return cuda_problem();
      },
      "Why tensors on CUDA devices are not taken; None where they are.");
}

}  // namespace meshstage::python
