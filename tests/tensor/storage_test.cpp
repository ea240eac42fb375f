#include <array>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("a storage is aligned, and copies of its handle are the same storage") {
  const auto a = Storage::allocate(100);
  const auto b = a;  // NOLINT(performance-unnecessary-copy-initialization)
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 64 == 0);
  CHECK(a == b);
  CHECK(a.identity() == b.identity());
  CHECK_FALSE(a == Storage::allocate(100));
  CHECK(a.nbytes() == 100);
  CHECK_FALSE(Storage().valid());
  CHECK(Storage::allocate(0).valid());
}

TEST_CASE("an allocation that cannot be is OutOfMemory and says how much was wanted") {
  CHECK_THROWS_AS(Storage::allocate(SIZE_MAX - 100), OutOfMemory);
}

TEST_CASE("a weak storage keeps neither the memory nor lets the identity be reused") {
  WeakStorage weak;
  {
    const auto s = Storage::allocate(8);
    weak = WeakStorage(s);
    CHECK(weak.lock() == s);
  }
  CHECK(weak.expired());
  CHECK_FALSE(weak.lock().valid());
  for (int i = 0; i < 100; ++i) CHECK(Storage::allocate(8).identity() != weak.identity());
}

TEST_CASE("the deleter of external memory runs exactly once") {
  std::array<float, 6> memory{};
  int deleted = 0;
  const auto deleter = [&](void* p) {
    CHECK(p == memory.data());
    ++deleted;
  };
  {
    auto t = Tensor::from_blob(memory.data(), {2, 3}, DType::kF32, deleter);
    const auto view = t.narrow(0, 1, 1);
    t = Tensor();
    CHECK(deleted == 0);
    view.data<float>()[0] = 5;
    CHECK(view.storage().traits().external);
  }
  CHECK(deleted == 1);
  CHECK(memory[3] == 5);
  SECTION("also if the tensor is refused") {
    CHECK_THROWS_AS(Tensor::from_blob(memory.data(), {-1}, DType::kF32, deleter), InvalidArgument);
    CHECK(deleted == 2);
    CHECK_THROWS_AS(Storage::from_blob(nullptr, 4, [&](void*) { ++deleted; }), InvalidArgument);
    CHECK(deleted == 3);
  }
}

TEST_CASE("read-only memory is read, not written") {
  std::array<float, 2> memory{1, 2};
  const auto s = Storage::wrap(memory.data(), 8, nullptr, {.read_only = true});
  const auto t = Tensor::on_storage(s, DType::kF32, {2});
  CHECK(t.data<const float>()[1] == 2);
  CHECK_THROWS_AS(t.data<float>(), InvalidState);
  CHECK_THROWS_AS(t.copy_from(Tensor::zeros({2}, DType::kF32)), InvalidState);
  CHECK(t.clone().data<float>()[1] == 2);
}
