#include <array>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/dlpack.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

// Memory of "another library", and how often its deleters ran.
template <class Capsule>
struct Foreign {
  alignas(64) std::array<std::byte, 256> memory{};
  std::array<std::int64_t, 3> shape{2, 3, 0};
  std::array<std::int64_t, 3> strides{3, 1, 0};
  int deleted = 0;

  // On the heap, as elsewhere: the deleter frees the struct itself.
  Capsule* capsule() {
    auto* c = new Capsule;
    c->tensor.data = memory.data();
    c->tensor.ndim = 2;
    c->tensor.shape = shape.data();
    c->tensor.strides = strides.data();
    c->context = this;
    c->deleter = [](Capsule* self) {
      ++static_cast<Foreign*>(self->context)->deleted;
      delete self;
    };
    return c;
  }
  float* floats() { return reinterpret_cast<float*>(memory.data()); }
};
using Versioned = Foreign<dlpack::ManagedTensorVersioned>;

template <class Capsule>
void check_view_and_deleter() {
  Foreign<Capsule> from;
  from.floats()[4] = 4;
  {
    Tensor t = from_dlpack(from.capsule());
    CHECK(t.describe() == "F32[2, 3]");
    CHECK(t.first_byte() == from.memory.data());
    CHECK(t.storage().nbytes() == 24);
    CHECK(t.storage().traits().external);
    CHECK(t.data<float>()[4] == 4);
    const Tensor row = t.select(0, 1);
    t = Tensor();
    CHECK(from.deleted == 0);
    row.data<float>()[0] = 7;
    CHECK(from.floats()[3] == 7);
  }
  CHECK(from.deleted == 1);
}

}  // namespace

TEST_CASE("external memory: a DLPack capsule is a view, and its deleter runs exactly once") {
  SECTION("versioned") { check_view_and_deleter<dlpack::ManagedTensorVersioned>(); }
  SECTION("unversioned") { check_view_and_deleter<dlpack::ManagedTensor>(); }
}

TEST_CASE("external memory: strides, offsets and capsules without them or without a deleter") {
  Versioned from;
  for (int i = 0; i < 64; ++i) from.floats()[i] = static_cast<float>(i);
  auto* c = from.capsule();
  from.strides = {1, 2, 0};  // transposed
  c->tensor.byte_offset = 8;
  const auto t = from_dlpack(c);
  CHECK(t.to_vector<float>() == std::vector<float>{2, 4, 6, 3, 5, 7});
  CHECK(t.storage().nbytes() == 6 * 4);
  c = from.capsule();
  c->tensor.strides = nullptr;
  CHECK(from_dlpack(c).to_vector<float>() == std::vector<float>{0, 1, 2, 3, 4, 5});
  c = from.capsule();
  c->tensor.ndim = 0;
  c->tensor.shape = nullptr;
  CHECK(from_dlpack(c).item<float>() == 0);
  c = from.capsule();
  c->tensor.data = nullptr;
  from.shape = {2, 0, 0};
  CHECK(from_dlpack(c).describe() == "F32[2, 0]");
  CHECK(from.deleted == 3);
  dlpack::ManagedTensor unowned;
  unowned.tensor.data = from.memory.data();
  CHECK(from_dlpack(&unowned).item<float>() == 0);
}

TEST_CASE("external memory: a read-only capsule is read, not written") {
  Versioned from;
  auto* c = from.capsule();
  c->flags = dlpack::kReadOnly;
  const auto t = from_dlpack(c);
  CHECK(t.data<const float>()[0] == 0);
  CHECK_THROWS_AS(t.data<float>(), InvalidState);
  auto* out = to_dlpack(t);
  CHECK((out->flags & dlpack::kReadOnly) != 0);
  out->deleter(out);
}

TEST_CASE("external memory: another version, device, type or alignment is refused, and deleted") {
  Versioned from;
  const auto refused = [&](auto&& change, const std::string& why) {
    auto* c = from.capsule();
    change(*c);
    const int before = from.deleted;
    CHECK_THROWS_WITH(from_dlpack(c), contains_text(why));
    CHECK(from.deleted == before + 1);
  };
  refused([](auto& c) { c.version = {2, 0}; }, "version 2.0");
  refused([](auto& c) { c.version = {0, 8}; }, "version 0.8");
  refused([](auto& c) { c.tensor.device = {10, 0}; }, "device type 10");
  refused([](auto& c) { c.tensor.device = {dlpack::kCuda, -1}; }, "device type 2");
  refused([](auto& c) { c.tensor.dtype = {17, 4, 1}; }, "type code 17");
  refused([](auto& c) { c.tensor.dtype = {dlpack::kFloat, 32, 4}; }, "4 lanes");
  refused([](auto& c) { c.tensor.dtype = {dlpack::kInt, 128, 1}; }, "128 bits");
  refused([](auto& c) { c.tensor.byte_offset = 2; }, "no multiple of 4");
  refused([](auto& c) { c.tensor.ndim = -1; }, "no shape");
  from.strides = {-3, 1, 0};
  refused([](auto&) {}, "negative strides");
  from.strides = {std::int64_t{1} << 62U, 1, 0};
  from.shape = {5, 3, 0};
  refused([](auto&) {}, "beyond the address space");
  from.shape = {-5, 3, 0};
  refused([](auto&) {}, "negative dim");
  CHECK_THROWS_AS(from_dlpack(static_cast<dlpack::ManagedTensor*>(nullptr)), InvalidArgument);
  // A later minor version has the same layout.
  auto* c = from.capsule();
  from.shape = {1, 1, 0};
  c->version.minor = 99;
  CHECK(from_dlpack(c).numel() == 1);
}

TEST_CASE("external memory: capsules of a device are described, pinned host memory is known") {
  Versioned from;
  auto* c = from.capsule();
  c->tensor.device = {dlpack::kCuda, 3};
  const auto far = from_dlpack(c);
  CHECK(far.device() == Device{DeviceType::kCuda, 3});
  CHECK_THROWS_AS(far.data<float>(), InvalidState);
  c = from.capsule();
  c->tensor.device = {dlpack::kCudaHost, 0};
  const auto pinned = from_dlpack(c);
  CHECK(pinned.is_pinned());
  CHECK(pinned.device().is_cpu());
}

TEST_CASE("external memory: every dtype goes out as a capsule and comes back") {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto whole = Tensor::zeros({4, 6}, static_cast<DType>(i));
    const auto t = whole.narrow(1, 2, 3).transpose(0, 1);
    const auto back = from_dlpack(to_dlpack(t));
    INFO(to_string(t.dtype()));
    CHECK(back.dtype() == t.dtype());
    CHECK(back.shape() == t.shape());
    CHECK(back.strides() == t.strides());
    CHECK(back.first_byte() == t.first_byte());
  }
  WeakStorage weak;
  auto* c = [&] {
    const auto t = Tensor::arange<float>(3);
    weak = WeakStorage(t.storage());
    return to_dlpack(t);
  }();
  CHECK_FALSE(weak.expired());
  c->deleter(c);
  CHECK(weak.expired());
}
