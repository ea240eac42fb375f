// Views of every kind.
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <new>

#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }

constexpr std::size_t kRepeated = std::size_t{2} << 20U;
constexpr std::size_t kDistinct = std::size_t{8} << 20U;

// Memory for far more than there is: but for the last kDistinct bytes of a block, the same 2 MiB
// lie behind all of it, again and again.
class RepeatingMemory final : public MemoryResource {
 public:
  RepeatingMemory() : file_(::memfd_create("repeated", MFD_CLOEXEC)) {
    if (file_ < 0 || ::ftruncate(file_, kRepeated) != 0) throw std::bad_alloc();
  }
  RepeatingMemory(const RepeatingMemory&) = delete;
  RepeatingMemory& operator=(const RepeatingMemory&) = delete;
  ~RepeatingMemory() override { ::close(file_); }

 private:
  static std::size_t rounded(std::size_t bytes) {
    return (bytes + kRepeated - 1) / kRepeated * kRepeated;
  }
  void* do_allocate(std::size_t bytes, std::size_t) override {
    const auto length = rounded(bytes);
    void* const p = ::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    for (std::size_t at = 0; at + kDistinct < length; at += kRepeated) {
      if (::mmap(static_cast<std::byte*>(p) + at, kRepeated, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, file_, 0) == MAP_FAILED) {
        ::munmap(p, length);
        throw std::bad_alloc();
      }
    }
    return p;
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t) override {
    ::munmap(p, rounded(bytes));
  }
  [[nodiscard]] bool do_is_equal(const MemoryResource& other) const noexcept override {
    return this == &other;
  }
  int file_;
};

// Zeros that take no memory until they are written.
Storage sparse_storage(std::size_t bytes) {
  void* const p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  ::madvise(p, bytes, MADV_HUGEPAGE);  // reads of nothing are faster
  return Storage::from_blob(p, bytes, [bytes](void* at) { ::munmap(at, bytes); });
}

}  // namespace

TEST_CASE("views of every kind: stride 0, overlaps, transposes, parts of a storage") {
  const auto base = Tensor::arange<float>(120);
  const auto matrix = base.view({10, 12});
  const auto row = Tensor::arange<std::int16_t>(5);
  const auto raw = base.storage();
  const Dict state{{"stride 0", row.view({5, 1}).expand({3, 5, 7})},
                   {"all stride 0", Tensor::scalar(2.5).expand({100000})},
                   {"overlapping", base.as_strided({8, 5}, {3, 1}, 7)},
                   {"overlapping itself twice", base.as_strided({4, 4, 4}, {1, 1, 1}, 100)},
                   {"transposed", matrix.transpose(0, 1)},
                   {"transposed part", matrix.narrow(1, 3, 4).transpose(0, 1)},
                   {"permuted", base.view({2, 5, 12}).transpose(0, 2)},
                   {"every third", base.slice(0, 5, 118, 3)},
                   {"diagonal", base.as_strided({10}, {13}, 0)},
                   {"ends inside", Tensor::arange<std::int64_t>(1000).narrow(0, 10, 20)},
                   {"empty at the end", base.narrow(0, 120, 0)},
                   {"other dtype", Tensor::on_storage(raw, DType::kU8, {3, 4}, {8, 1}, 9)},
                   {"wider dtype", Tensor::on_storage(raw, DType::kC128, {2}, {14}, 3)},
                   {"ones", matrix.view({1, 10, 1, 12}).as_strided({1, 2, 1}, {77, 5, 0}, 1)}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged, {.storage_bytes = true}));
  CHECK(stager.cached_storages() == 4);
  CHECK(stager.cached_bytes() == 10 + 8 + 480 + 8000);
  for (const auto* name : {"overlapping", "transposed part", "other dtype", "wider dtype"})
    CHECK(tensor(staged, name).storage() == tensor(staged, "transposed").storage());
  CHECK(tensor(staged, "stride 0").strides() == Strides{0, 1, 0});
  CHECK(tensor(staged, "ends inside").storage().nbytes() == 8000);
  // What no view shows is staged too: the storage is copied whole.
  CHECK(tensor(staged, "ends inside").as_strided({1}, {1}, 999).item<std::int64_t>() == 999);
  // Again, with other values below the same views.
  for (auto& element : base.span<float>()) element += 0.5F;
  CHECK_FALSE(compare(state, stager.stage(state), {.storage_bytes = true}));
  CHECK(stager.plans() == 1);
}

TEST_CASE("views of every kind: beyond 4 GiB of a storage") {
  constexpr std::size_t kBytes = (std::size_t{4} << 30U) + (std::size_t{64} << 10U);
  const auto storage = sparse_storage(kBytes);
  const auto all = Tensor::on_storage(storage, DType::kU8, {static_cast<std::int64_t>(kBytes)});
  const auto beyond = all.narrow(0, (std::int64_t{1} << 32U) + 5, 7);
  for (std::int64_t i = 0; i < 7; ++i)
    beyond.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(i + 1);
  const auto wide = Tensor::on_storage(storage, DType::kI64, {2, 2}, {3, 1}, (1 << 29U) + 100);
  wide.data<std::int64_t>()[4] = -1;
  const Dict state{{"beyond", beyond}, {"wide", wide}, {"last", Tensor::scalar(77)}};
  RepeatingMemory memory;
  StateDictStager stager({.memory = &memory});
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged, {.storage_bytes = true}));
  CHECK(stager.cached_bytes() == kBytes + 4);
  CHECK(tensor(staged, "beyond").storage_offset() == 4294967301);
  CHECK(tensor(staged, "beyond").to_vector<std::uint8_t>() ==
        std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6, 7});
  CHECK(tensor(staged, "wide").to_vector<std::int64_t>() == std::vector<std::int64_t>{0, 0, 0, -1});
  CHECK(tensor(staged, "last").item<int>() == 77);
  CHECK(tensor(staged, "last").storage().data() >
        tensor(staged, "beyond").storage().data() + (std::size_t{1} << 32U));
}
