// Memory of other libraries: sharing is where addresses overlap.
#include <array>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tensor/dlpack.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }

// An arena of another library, and raw pointers into it.
struct Arena {
  alignas(64) std::array<float, 100> memory{};
  int deleted = 0;
  Arena() {
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  }
  Tensor at(std::size_t begin, const Shape& shape) {
    return Tensor::from_blob(memory.data() + begin, shape, DType::kF32,
                             [this](void*) { ++deleted; });
  }
  Tensor bytes_at(std::size_t begin, std::int64_t count) {
    return Tensor::from_blob(reinterpret_cast<std::byte*>(memory.data()) + begin, {count},
                             DType::kU8, [this](void*) { ++deleted; });
  }
};

}  // namespace

TEST_CASE("external memory: raw pointers that overlap share, neighbours by chance do not") {
  Arena arena;
  {
    const Dict state{{"rows", arena.at(10, {4, 5})},  // [10, 30)
                     {"inside", arena.at(12, {3})},   // within rows
                     {"across", arena.at(25, {10})},  // [25, 35)
                     {"next", arena.at(35, {5})},     // touches across
                     {"far", arena.at(60, {2})}};
    StateDictStager stager;
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    CHECK(stager.cached_storages() == 3);
    CHECK(stager.cached_bytes() == (25 + 5 + 2) * 4);
    const auto& storage = tensor(staged, "rows").storage();
    CHECK(tensor(staged, "inside").storage() == storage);
    CHECK(tensor(staged, "across").storage() == storage);
    CHECK_FALSE(tensor(staged, "next").storage() == storage);
    CHECK(tensor(staged, "across").storage_offset() == 15);
    tensor(staged, "rows").data<float>()[17] = -1;  // element 27 of the arena
    CHECK(tensor(staged, "across").data<float>()[2] == -1);
    // Again: the same memory, no new plan.
    arena.memory[13] = 1300;
    const auto again = stager.stage(state);
    CHECK_FALSE(compare(state, again));
    CHECK(tensor(again, "inside").data<float>()[1] == 1300);
    CHECK(stager.plans() == 1);
    CHECK(arena.deleted == 0);
  }
  CHECK(arena.deleted == 5);
}

TEST_CASE("external memory: pointers that come to overlap, or cease to, are found") {
  Arena arena;
  StateDictStager stager;
  const auto check = [&](std::size_t begin, std::size_t storages) {
    const Dict state{{"a", arena.at(0, {10})}, {"b", arena.at(begin, {10})}};
    CHECK_FALSE(compare(state, stager.stage(state)));
    CHECK(stager.cached_storages() == storages);
  };
  check(10, 2);
  check(9, 1);
  check(8, 1);
  check(30, 2);
  check(0, 1);
  check(11, 2);
}

TEST_CASE("external memory: a pointer into a tensor of ours shares with it") {
  const auto ours = Tensor::arange<float>(20);
  const auto theirs = from_dlpack(to_dlpack(ours.narrow(0, 5, 4)));
  const auto bystander = Tensor::arange<float>(20);
  CHECK_FALSE(theirs.storage() == ours.storage());
  const Dict state{{"theirs", theirs}, {"ours", ours}, {"bystander", bystander}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "theirs").storage() == tensor(staged, "ours").storage());
  CHECK(tensor(staged, "theirs").storage_offset() == 5);
  CHECK(stager.cached_storages() == 2);
  // Sharing is a difference where one side lacks it.
  const Dict apart{{"theirs", theirs.clone()}, {"ours", ours}, {"bystander", bystander}};
  CHECK(compare(state, apart)->what == Difference::What::kOffset);
  CHECK(compare(state, apart, {.layout = false})->what == Difference::What::kSharing);
}

TEST_CASE("external memory: capsules are staged, read-only ones too") {
  Arena arena;
  static std::array<std::int64_t, 1> shape{};
  const auto capsule = [&](std::size_t begin, std::int64_t count, std::uint64_t flags) {
    auto* c = new dlpack::ManagedTensorVersioned;
    shape[0] = count;
    c->tensor.data = arena.memory.data() + begin;
    c->tensor.ndim = 1;
    c->tensor.shape = shape.data();
    c->flags = flags;
    c->context = &arena;
    c->deleter = [](dlpack::ManagedTensorVersioned* self) {
      ++static_cast<Arena*>(self->context)->deleted;
      delete self;
    };
    return from_dlpack(c);
  };
  StateDictStager stager;
  Value staged;
  {
    const Dict state{{"a", capsule(0, 10, dlpack::kReadOnly)}, {"b", capsule(5, 10, 0)}};
    auto work = stager.stage_async(state);
    staged = work.get();
    CHECK_FALSE(compare(state, staged));
    CHECK(stager.cached_storages() == 1);
    CHECK(arena.deleted == 0);
  }
  CHECK(arena.deleted == 2);                  // the stager keeps none
  tensor(staged, "a").data<float>()[5] = -5;  // the copy may be written
  CHECK(tensor(staged, "b").data<float>()[0] == -5);
  CHECK(arena.memory[5] == 5);
}

TEST_CASE("external memory: a foreign device's capsule is refused with its path, and let go of") {
  Arena arena;
  static std::array<std::int64_t, 1> shape{4};
  auto* c = new dlpack::ManagedTensor;
  c->tensor.data = arena.memory.data();  // of the device: nobody may read it
  c->tensor.device = {dlpack::kCuda, 3};
  c->tensor.ndim = 1;
  c->tensor.shape = shape.data();
  c->context = &arena;
  c->deleter = [](dlpack::ManagedTensor* self) {
    ++static_cast<Arena*>(self->context)->deleted;
    delete self;
  };
  StateDictStager stager;
  Dict state{{"near", Tensor::scalar(1)}, {"far", List{from_dlpack(c)}}};
  for (const bool async : {false, true}) {
    try {
      if (async) {
        static_cast<void>(stager.stage_async(state));
      } else {
        static_cast<void>(stager.stage(state));
      }
      FAIL("memory of a device was staged");
    } catch (const InvalidArgument& e) {
      CHECK(e.path() == "far.0");
      CHECK_THAT(e.what(), contains_text("cuda:3"));
    }
  }
  CHECK(arena.deleted == 0);
  state.erase("far");
  CHECK(arena.deleted == 1);
  CHECK_FALSE(compare(state, stager.stage(state)));
}

TEST_CASE("external memory: other dtypes over the same bytes, and distances that cannot be kept") {
  Arena arena;
  StateDictStager stager;
  const Dict state{{"floats", arena.at(4, {8})},
                   {"bytes", arena.bytes_at(17, 9)},
                   {"doubles", Tensor::from_blob(arena.memory.data() + 6, {2}, DType::kF64, {})}};
  CHECK_FALSE(compare(state, stager.stage(state)));
  CHECK(stager.cached_storages() == 1);
  const Dict odd{{"bytes", arena.bytes_at(15, 9)}, {"deep", List{arena.at(4, {8})}}};
  try {
    static_cast<void>(stager.stage(odd));
    FAIL("a distance of a byte between floats");
  } catch (const InvalidArgument& e) {
    CHECK(e.path() == "deep.0");
    CHECK_THAT(e.what(), contains_text("no multiple of its elements' 4 bytes"));
  }
  CHECK_FALSE(compare(state, stager.stage(state)));
}

TEST_CASE("external memory: an image keeps the sharing, and is restored in place") {
  Arena arena;
  const Dict state{{"a", arena.at(0, {10})}, {"b", arena.at(5, {10})}, {"c", arena.at(20, {2})}};
  const auto image = test::make_image(state);
  CHECK_FALSE(compare(state, decode_image(image.bytes(), nullptr)));
  const auto before = arena.memory;
  arena.memory.fill(-1);
  Value target(state);
  restore_into(image.bytes(), target);
  for (std::size_t i = 0; i < arena.memory.size(); ++i)
    CHECK(arena.memory[i] == (i < 15 || i == 20 || i == 21 ? before[i] : -1));
  // A state that does not share so is refused before anything is written.
  Value apart(Dict{{"a", arena.at(0, {10})}, {"b", arena.at(50, {10})}, {"c", arena.at(20, {2})}});
  CHECK_THROWS_AS(restore_into(image.bytes(), apart), StructureMismatch);
}
