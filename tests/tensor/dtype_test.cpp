#include <cstring>
#include <limits>

#include <meshstage/core/tensor/tensor.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("every dtype has a name that leads back to it") {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    CHECK(dtype_from_string(to_string(dtype)) == dtype);
    CHECK(size_of(dtype) >= 1);
  }
  CHECK(to_string(DType::kBF16) == "BF16");
  CHECK(to_string(DType::kF8E4M3) == "F8_E4M3");
  CHECK_FALSE(dtype_from_string("F31").has_value());
  CHECK_FALSE(dtype_from_string("").has_value());
}

TEST_CASE("sizes of elements are those of their C++ types") {
  CHECK(size_of(dtype_of<bool>) == sizeof(bool));
  CHECK(size_of(dtype_of<Half>) == sizeof(Half));
  CHECK(size_of(dtype_of<BFloat16>) == sizeof(BFloat16));
  CHECK(size_of(dtype_of<Float8E4M3>) == sizeof(Float8E4M3));
  CHECK(size_of(dtype_of<Float8E5M2>) == sizeof(Float8E5M2));
  CHECK(size_of(dtype_of<std::int64_t>) == 8);
  CHECK(size_of(dtype_of<unsigned long long>) == 8);
  CHECK(size_of(dtype_of<std::complex<float>>) == sizeof(std::complex<float>));
  CHECK(size_of(dtype_of<std::complex<double>>) == sizeof(std::complex<double>));
}

TEST_CASE("copying elements keeps NaN payloads and the sign of zero") {
  const auto nan = [] {
    const std::uint32_t bits = 0x7FC0BEEFU;
    float f = 0;
    std::memcpy(&f, &bits, 4);
    return f;
  }();
  const auto t = Tensor::from_vector<float>({nan, -0.0F, 1.0F, 2.0F}, {2, 2});
  const auto turned = t.transpose(0, 1).clone();
  CHECK(same_bits(turned.transpose(0, 1), t));
  CHECK_FALSE(same_bits(Tensor::scalar(0.0), Tensor::scalar(-0.0)));
}
