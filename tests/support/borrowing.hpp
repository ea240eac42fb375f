// Images of which other ranks have a part too, and their replicas.
#pragma once
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/image/replica.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

namespace meshstage::test {

inline Storage copy_of(std::span<const std::byte> bytes) {
  auto copy = Storage::allocate(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

/// What CorruptData the call throws; "nothing" if none.
inline std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const CorruptData& e) {
    return e.what();
  }
  return "nothing";
}

/// An image or a replica, its trailer's field at `at` set, the trailer's digest right again.
inline Storage with_trailer_field(const Storage& image, std::size_t at, std::uint64_t value,
                                  std::size_t bytes) {
  auto copy = copy_of(image.bytes());
  std::uint64_t trailer_bytes = 0;
  std::memcpy(&trailer_bytes, copy.data() + copy.nbytes() - 32, 8);
  auto* const trailer = copy.data() + copy.nbytes() - trailer_bytes;
  std::memcpy(trailer + at, &value, bytes);
  const auto digest = digest128({trailer, trailer_bytes - 16});
  std::memcpy(copy.data() + copy.nbytes() - 16, &digest.low, 8);
  std::memcpy(copy.data() + copy.nbytes() - 8, &digest.high, 8);
  return copy;
}

inline Tensor bytes_tensor(std::int64_t n, std::uint8_t first) {
  auto t = Tensor::empty({n}, DType::kU8);
  for (std::int64_t i = 0; i < n; ++i)
    t.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(first + i * 7);
  return t;
}

/// Some that rank 0 has too, some that rank 3 has, some of its own, and scalars.
inline Dict borrowing_state() {
  return {{"own", bytes_tensor(6000, 1)},
          {"both", Dict{{"b", bytes_tensor(8192, 2)}, {"a", bytes_tensor(5000, 3)}}},
          {"last", bytes_tensor(4096, 4)},
          {"small", bytes_tensor(100, 5)},
          {"none", Tensor::empty({0}, DType::kU8)},
          {"step", 7}};
}

inline std::vector<LoanNames> borrowed_names() {
  return {{3, {"last", "small", "missing"}}, {0, {"both.b", "both.a"}}};
}

/// Of rank 2 of 4, in blocks of 4096 bytes unless said.
inline TestImage borrowing_image(std::uint64_t block_bytes = 4096) {
  return make_image(borrowing_state(), block_bytes, 85, borrowed_names());
}

/// The replica of an image, in memory of its own.
inline Storage replica_of(const TestImage& image) {
  auto replica = Storage::allocate(image.info.replica_bytes());
  const auto manifest = image.info.manifest_bytes;
  std::memcpy(replica.data(), image.bytes().data(), manifest);
  std::memcpy(replica.data() + manifest,
              image.bytes().data() + manifest + image.info.borrowed_bytes,
              replica.nbytes() - manifest);
  return replica;
}

/// Own images of ranks 0 to 3, whose structure is another.
inline std::vector<TestImage> other_images(const Dict& state) {
  std::vector<TestImage> images;
  for (int rank = 0; rank < 4; ++rank) {
    Dict other{{"more", bytes_tensor(700 * (rank + 1), 9)}};
    if (rank == 0) other.set("both", state.at("both"));
    if (rank == 3) other.set("last", state.at("last"));
    images.push_back(make_image(other, 8192));
  }
  return images;
}

inline void replace(std::string& text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
}

/// A copy with the manifest's structure edited, everything else as it was.
template <class F>
Storage with_structure(const TestImage& image, F&& edit) {
  const auto begin = image.plan.layout().data_begin;
  std::string json(reinterpret_cast<const char*>(image.bytes().data()) + 8, begin - 8);
  const auto size = json.size();
  edit(json);
  auto copy = copy_of(image.bytes());
  json.resize(size, ' ');
  std::memcpy(copy.data() + 8, json.data(), size);
  return copy;
}

}  // namespace meshstage::test
