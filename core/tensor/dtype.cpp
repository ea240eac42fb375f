#include <array>

#include <meshstage/core/tensor/dtype.hpp>

namespace meshstage {
namespace {

struct Row {
  std::string_view name;
  std::size_t size;
};
// In the order of the enumerators.
constexpr std::array<Row, kDTypeCount> kRows{{{"BOOL", 1},
                                              {"U8", 1},
                                              {"I8", 1},
                                              {"U16", 2},
                                              {"I16", 2},
                                              {"U32", 4},
                                              {"I32", 4},
                                              {"U64", 8},
                                              {"I64", 8},
                                              {"F8_E4M3", 1},
                                              {"F8_E5M2", 1},
                                              {"F16", 2},
                                              {"BF16", 2},
                                              {"F32", 4},
                                              {"F64", 8},
                                              {"C64", 8},
                                              {"C128", 16}}};

}  // namespace

std::size_t size_of(DType dtype) noexcept { return kRows[static_cast<std::size_t>(dtype)].size; }

std::string_view to_string(DType dtype) noexcept {
  return kRows[static_cast<std::size_t>(dtype)].name;
}

std::optional<DType> dtype_from_string(std::string_view name) noexcept {
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace meshstage
