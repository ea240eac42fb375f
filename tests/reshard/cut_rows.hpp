// The files of a job of four ranks whose rows a job of two ranks takes over.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

#include "tests/reshard/old_job.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

namespace meshstage::test {

inline constexpr std::int64_t kRows = 64;
inline constexpr std::int64_t kColumns = 1024;  // a row is a block
inline constexpr int kBefore = 4;               // ranks

inline float element(std::int64_t row, std::int64_t column) {
  return static_cast<float>(row * kColumns + column);
}

/// Rows of one tensor, cut over four ranks, and two plain tensors; in blocks of 4096 bytes. Each
/// rank has a file and a replica of it.
class CutRows {
 public:
  CutRows() {
    make_private_directory(disk, "/d");
    const Tensor all = Tensor::arange<float>(kRows * kColumns).view({kRows, kColumns});
    const auto mesh = DeviceMesh::from_shape({kBefore});
    for (int rank = 0; rank < kBefore; ++rank) {
      const Dict state{
          {"rows", dtensor::to_value(placed(all, mesh, parse_placements("S(0)"), rank))},
          {"plain", Tensor::full<float>({16 * 1024}, 3)},
          {"mine", Tensor::full<float>({16 * 1024}, static_cast<float>(rank))},
          {"step", 9}};
      const ImageIdentity who{"gpt", rank, kBefore, {1, 9}, kNoImage};
      images.push_back(make_image(state, {.block_bytes = 4096}, who));
      for (const auto& holder : {std::optional<int>(), std::optional<int>((rank + 1) % kBefore)}) {
        publish({"gpt", {1, 9}, rank, kBefore, holder});
      }
    }
  }

  [[nodiscard]] static std::filesystem::path path_of(const PersistedName& name) {
    return std::filesystem::path("/d") / to_file_name(name);
  }
  void publish(const PersistedName& name, std::optional<std::uint64_t> damaged = {}) {
    const auto bytes = images[static_cast<std::size_t>(name.rank)].bytes();
    if (damaged) bytes[*damaged] ^= std::byte{1};
    disk.unlink(path_of(name));
    publish_atomically(disk, path_of(name), bytes);
    if (damaged) bytes[*damaged] ^= std::byte{1};
  }
  /// The first byte, in a rank's image, of its row `row`.
  [[nodiscard]] std::uint64_t byte_of_row(int rank, std::int64_t row) const {
    for (const auto& segment : images[static_cast<std::size_t>(rank)].plan.layout().segments) {
      if (segment.name.starts_with("rows"))
        return segment.offset + static_cast<std::uint64_t>(row) * 4096;
    }
    throw NotFound("no rows");
  }

  /// A rank of two, with half of the rows.
  struct NewRank {
    explicit NewRank(int of) : rank(of) {}
    int rank;
    DTensor rows = placed(Tensor::zeros({kRows, kColumns}, DType::kF32),
                          DeviceMesh::from_shape({2}), parse_placements("S(0)"), rank);
    Dict state{{"rows", dtensor::to_value(rows)},
               {"plain", Tensor::zeros({16 * 1024}, DType::kF32)},
               {"mine", Tensor::zeros({16 * 1024}, DType::kF32)},
               {"step", 0}};

    /// Its rows and the values that all have.
    void check() const {
      const auto local = rows.to_local();
      for (std::int64_t row = 0; row < kRows / 2; ++row) {
        const float expected = element(row + rank * kRows / 2, 17);
        REQUIRE(local.span<float>()[static_cast<std::size_t>(row * kColumns + 17)] == expected);
      }
      CHECK(state.at("step").as<std::int64_t>() == 9);
      CHECK(state.at("plain").as<Tensor>().span<float>()[5] == 3);
    }
  };
  [[nodiscard]] static ReshardOptions options(PlainKind mine = PlainKind::kPerRank) {
    ReshardOptions options;
    options.readers = all_readers();
    options.plain = [mine](const std::string& path) {
      return path == "mine" ? mine : PlainKind::kSame;
    };
    return options;
  }

  /// What a rank of two reads, in bytes by old rank, for its half of the rows.
  std::vector<std::uint64_t> assemble(int rank, PlainKind mine = PlainKind::kPerRank) {
    const NewRank now(rank);
    std::vector<std::uint64_t> bytes(kBefore);
    StepStates old(
        disk, list_steps_on_disk(disk, "/d", "gpt").at(0), "gpt",
        [&](const std::string& text) { complaints.push_back(text); },
        [&](const std::filesystem::path& file, std::uint64_t more, std::uint64_t) {
          const auto name = parse_file_name(file.filename().string());
          bytes.at(static_cast<std::size_t>(name->rank)) += more;
        });
    Assembly::plan(old, now.state, rank, 2, options(mine)).write();
    now.check();
    return bytes;
  }

  MemoryFileSystem disk;
  std::vector<TestImage> images;
  std::vector<std::string> complaints;
};

inline constexpr std::uint64_t kBlock = 4096;
inline constexpr std::uint64_t kRowsOfRank = 16 * kBlock;
inline constexpr std::uint64_t kPlain = 16 * kBlock;
/// Manifest, the block of the values, and what a row may reach into beyond its own blocks.
inline constexpr std::uint64_t kEnds = 4 * kBlock;

}  // namespace meshstage::test
