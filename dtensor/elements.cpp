#include <algorithm>
#include <complex>
#include <cstring>
#include <vector>

#include <meshstage/dtensor/elements_impl.hpp>
#include <meshstage/dtensor/redistribute_impl.hpp>

namespace meshstage::dtensor {
namespace {

template <class T>
void repeat(const Tensor& tensor, T value) {
  for_each_run(tensor, [&](std::span<std::byte> run) {
    for (std::size_t i = 0; i < run.size(); i += sizeof(T)) {
      std::memcpy(run.data() + i, &value, sizeof(T));
    }
  });
}

}  // namespace

std::optional<collectives::Element> element_of(DType dtype) noexcept {
  using collectives::Element;
  switch (dtype) {
    case DType::kU8:
      return Element::kU8;
    case DType::kI8:
      return Element::kI8;
    case DType::kI16:
      return Element::kI16;
    case DType::kI32:
      return Element::kI32;
    case DType::kI64:
      return Element::kI64;
    case DType::kF16:
      return Element::kF16;
    case DType::kBF16:
      return Element::kBF16;
    case DType::kF32:
      return Element::kF32;
    case DType::kF64:
      return Element::kF64;
    default:
      return {};
  }
}

void fill(const Tensor& tensor, Fill what) {
  if (what == Fill::kElements) return;
  const bool one = what == Fill::kOne;
  switch (tensor.dtype()) {
    case DType::kBool:
    case DType::kU8:
    case DType::kI8:
      return repeat(tensor, static_cast<std::uint8_t>(one));
    case DType::kU16:
    case DType::kI16:
      return repeat(tensor, static_cast<std::uint16_t>(one));
    case DType::kU32:
    case DType::kI32:
      return repeat(tensor, static_cast<std::uint32_t>(one));
    case DType::kU64:
    case DType::kI64:
      return repeat(tensor, static_cast<std::uint64_t>(one));
    case DType::kF8E4M3:
      return repeat<std::uint8_t>(tensor, one ? 0x38 : 0x80);
    case DType::kF8E5M2:
      return repeat<std::uint8_t>(tensor, one ? 0x3c : 0x80);
    case DType::kF16:
      return repeat<std::uint16_t>(tensor, one ? 0x3c00 : 0x8000);
    case DType::kBF16:
      return repeat<std::uint16_t>(tensor, one ? 0x3f80 : 0x8000);
    case DType::kF32:
      return repeat(tensor, one ? 1.0F : -0.0F);
    case DType::kF64:
      return repeat(tensor, one ? 1.0 : -0.0);
    case DType::kC64:
      return repeat(tensor, one ? std::complex<float>(1) : std::complex<float>(-0.0F, -0.0F));
    case DType::kC128:
      return repeat(tensor, one ? std::complex<double>(1) : std::complex<double>(-0.0, -0.0));
  }
}

bool is_dense(const Shape& shape, const Strides& strides) {
  if (shape.size() != strides.size()) return false;
  std::vector<std::size_t> dims;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (strides[d] < 0) return false;
    if (shape[d] == 0) return true;
    if (shape[d] > 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(),
            [&](std::size_t a, std::size_t b) { return strides[a] < strides[b]; });
  std::int64_t expected = 1;
  for (const std::size_t d : dims) {
    if (strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

}  // namespace meshstage::dtensor
