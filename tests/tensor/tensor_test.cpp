#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

TEST_CASE("makers give what they say") {
  CHECK(Tensor::zeros({2, 2}, DType::kI32).to_vector<std::int32_t>() ==
        std::vector<std::int32_t>(4, 0));
  CHECK(Tensor::full<float>({3}, 2.5F).to_vector<float>() == std::vector<float>(3, 2.5F));
  CHECK(Tensor::arange<std::int64_t>(3).to_vector<std::int64_t>() ==
        std::vector<std::int64_t>{0, 1, 2});
  CHECK(Tensor::from_vector<bool>({true, false}).to_vector<bool>() ==
        std::vector<bool>{true, false});
  CHECK(Tensor::scalar(7.0).item<double>() == 7.0);
  CHECK(Tensor::scalar(7.0).dim() == 0);
  CHECK_THROWS_AS(Tensor::from_vector<float>({1, 2}, {3}), InvalidArgument);
  CHECK_FALSE(Tensor().defined());
}

TEST_CASE("views share the storage, copies do not") {
  const auto base = Tensor::arange<float>(24).view({4, 6});
  CHECK(base.narrow(0, 1, 2).to_vector<float>() ==
        base.as_strided({2, 6}, {6, 1}, 6).to_vector<float>());
  CHECK(base.slice(1, 1, 6, 2).to_vector<float>() ==
        std::vector<float>{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23});
  CHECK(base.transpose(0, -1).select(0, 2).to_vector<float>() == std::vector<float>{2, 8, 14, 20});
  CHECK(base.select(0, 1).to_vector<float>() == std::vector<float>{6, 7, 8, 9, 10, 11});
  CHECK(base.view({-1, 8}).shape() == Shape{3, 8});
  for (const auto& view :
       {base.narrow(1, 2, 3), base.transpose(0, 1), base.select(1, 0), base.view({24})}) {
    CHECK(view.storage() == base.storage());
    CHECK(view.identity() != base.identity());
  }
  CHECK_FALSE(base.transpose(0, 1).is_contiguous());
  CHECK_FALSE(base.transpose(0, 1).contiguous().storage() == base.storage());
  CHECK(base.contiguous().identity() == base.identity());
  CHECK_FALSE(base.transpose(0, 1).reshape({24}).storage() == base.storage());
  base.narrow(0, 3, 1).copy_from(Tensor::full<float>({1, 6}, -1));
  CHECK(base.to_vector<float>().back() == -1);
}

TEST_CASE("stride 0 repeats elements") {
  const auto row = Tensor::from_vector<std::int16_t>({1, 2}, {1, 2}).expand({2, 3, 2});
  CHECK(row.strides() == Strides{0, 0, 1});
  CHECK(row.to_vector<std::int16_t>() ==
        std::vector<std::int16_t>{1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2});
  CHECK_THROWS_AS(Tensor::zeros({2}, DType::kU8).expand({3}), InvalidArgument);
}

TEST_CASE("a view beyond its storage is refused") {
  const auto s = Storage::allocate(16);
  CHECK_NOTHROW(Tensor::on_storage(s, DType::kF32, {2, 2}, {2, 1}, 0));
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {2, 2}, {2, 1}, 1), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {2, 2}, {3, 1}, 0), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF64, {3}), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {2}, {-1}, 1), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {2}, {1}, -1), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {2}, {1, 1}, 0), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF32, {-2}), InvalidArgument);
  CHECK_NOTHROW(Tensor::on_storage(s, DType::kF32, {0, 100}, {100, 1}, 50));
}

TEST_CASE("sizes that wrap are refused") {
  const auto big = std::int64_t{1} << 40;
  CHECK_THROWS_AS(element_count({big, big}), InvalidArgument);
  CHECK_THROWS_AS(element_count({big, big, 0}), InvalidArgument);
  CHECK_THROWS_AS(Tensor::empty({std::int64_t{1} << 62, 1}, DType::kF64), InvalidArgument);
  const auto s = Storage::allocate(16);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kU8, {big, 2}, {big, 1}, 0), InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kF64, {2}, {std::int64_t{1} << 62}, 0),
                  InvalidArgument);
  CHECK_THROWS_AS(Tensor::on_storage(s, DType::kU8, {1}, {1}, INT64_MAX), InvalidArgument);
}

TEST_CASE("tensors without elements keep their shape") {
  const auto t = Tensor::empty({2, 0, 3}, DType::kF32);
  CHECK(t.numel() == 0);
  CHECK(t.nbytes() == 0);
  CHECK(t.is_contiguous());
  CHECK(t.strides() == Strides{3, 3, 1});
  CHECK(t.to_vector<float>().empty());
  CHECK(t.narrow(0, 1, 1).shape() == Shape{1, 0, 3});
  CHECK(same_bits(t, t.clone()));
  CHECK(Tensor::arange<float>(4).narrow(0, 4, 0).shape() == Shape{0});
}

TEST_CASE("data() checks the element type and errors name it") {
  const auto t = Tensor::zeros({2, 3}, DType::kBF16);
  CHECK_NOTHROW(t.data<BFloat16>());
  CHECK_THROWS_WITH(t.data<float>(), Contains("F32") && Contains("BF16"));
  CHECK_THROWS_WITH(t.transpose(0, 1).span<BFloat16>(), Contains("not contiguous"));
  CHECK_THROWS_WITH(t.narrow(1, 2, 2), Contains("narrow") && Contains("BF16[2, 3]"));
  CHECK_THROWS_WITH(t.view({4}), Contains("[4]"));
  CHECK_THROWS_AS(t.transpose(0, 2), InvalidArgument);
  CHECK(t.transpose(0, 1).describe() == "BF16[3, 2] strides [1, 3]");
}

TEST_CASE("only the whole of a storage covers it") {
  const auto t = Tensor::zeros({4, 2}, DType::kF32);
  CHECK(t.covers_storage());
  CHECK(t.view({8}).covers_storage());
  CHECK_FALSE(t.narrow(0, 0, 3).covers_storage());
  CHECK_FALSE(t.transpose(0, 1).covers_storage());
}
