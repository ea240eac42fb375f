// A held slot stores a replica: the image without what other ranks have too.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/slot_file.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <cstring>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

constexpr SlotKey kWard{2, 0};  // test images are of rank 2

Vault attach(FileSystem& fs, int rank) {
  return Vault::attach({.job = "job", .rank = rank, .directory = "/vault", .fs = &fs});
}

void put(Vault& vault, const ImageInfo& info, std::span<const std::byte> bytes) {
  auto lease = vault.begin_write(kWard, info.identity, bytes.size());
  std::memcpy(lease.image().data(), bytes.data(), bytes.size());
  lease.seal(info);
}

}  // namespace

TEST_CASE("a held slot has the replica's bytes, an own one the image's") {
  MemoryFileSystem fs;
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  auto holder = attach(fs, 1);
  put(holder, image.info, replica.bytes());
  auto owner = attach(fs, 2);
  put(owner, image.info, image.bytes());
  for (auto* vault : {&holder, &owner}) {
    CHECK(vault->slot(kWard).state == SlotState::kSealed);
    CHECK(vault->slot(kWard).image == image.info);
  }
  CHECK(stored_bytes(kWard, 1, image.info) == replica.nbytes());
  CHECK(stored_bytes(kWard, 2, image.info) == image.bytes().size());
  CHECK(holder.bytes_held() < owner.bytes_held());

  const auto held = holder.read(kWard);
  CHECK(held.info() == image.info);
  REQUIRE(held.image().size() == replica.nbytes());
  CHECK(verify_replica(held.image()) == image.info);
  auto moved = holder.read(kWard);
  ReadLease other;
  other = std::move(moved);
  CHECK(other.image().size() == replica.nbytes());
  CHECK(verify_image(owner.read(kWard).image()) == image.info);

  const auto vaults = list_vaults("/vault", fs);
  REQUIRE(vaults.size() == 2);
  CHECK(vaults[0].slots.at(0).second.image == image.info);
  std::vector<std::byte> bytes(replica.nbytes());
  SlotFile::open(vaults[0], kWard, fs).read_image(bytes, 0);
  CHECK(std::memcmp(bytes.data(), replica.data(), bytes.size()) == 0);
}

TEST_CASE("a replica outlives its vault's process, and its manifest the next begin_write()") {
  MemoryFileSystem fs;
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  {
    auto first = attach(fs, 1);
    put(first, image.info, replica.bytes());
  }
  auto vault = attach(fs, 1);
  REQUIRE(vault.taken_over());
  CHECK(verify_replica(vault.read(kWard).image()) == image.info);
  auto next = image.info.identity;
  next.id.step += 5;
  const auto lease = vault.begin_write(kWard, next, replica.nbytes());
  CHECK(lease.previous() == image.info);
  CHECK(digest128(lease.image().first(image.info.manifest_bytes)) == image.info.manifest_digest);
  CHECK(vault.slot(kWard).image.image_bytes == replica.nbytes());
  CHECK(vault.slot(kWard).image.borrowed_bytes == 0);
}

TEST_CASE("a slot is sealed only with the size that its place asks for") {
  MemoryFileSystem fs;
  const auto image = test::borrowing_image();
  auto holder = attach(fs, 1);
  auto owner = attach(fs, 2);
  const auto refused = [&](Vault& vault, std::uint64_t bytes, const ImageInfo& info) {
    auto lease = vault.begin_write(kWard, image.info.identity, bytes);
    CHECK_THROWS_AS(lease.seal(info), InvalidArgument);
    CHECK(lease.valid());
  };
  refused(holder, image.info.image_bytes, image.info);
  refused(owner, image.info.replica_bytes(), image.info);
  auto info = image.info;
  info.borrowed_bytes += 4096;
  refused(holder, image.info.replica_bytes(), info);
  info = image.info;
  info.borrowed_bytes = info.image_bytes / 4096 * 4096;  // the manifest's bytes among them
  refused(holder, info.replica_bytes(), info);
  info = image.info;
  info.borrowed_bytes -= 1;  // no whole blocks
  refused(holder, info.replica_bytes(), info);
  info = image.info;
  info.block_bytes = 0;
  refused(holder, info.replica_bytes(), info);
}

TEST_CASE("a slot has an image that borrows nothing and lends to others, as it is") {
  MemoryFileSystem fs;
  const auto image = test::make_image(
      test::borrowing_state(), {.block_bytes = 4096, .lent = {{0, {"both.a"}}, {1, {"last"}}}},
      test::identity_of_step(85));
  REQUIRE(image.info.loans == 2);
  auto holder = attach(fs, 1);
  put(holder, image.info, image.bytes());
  CHECK(holder.slot(kWard).image == image.info);
  CHECK(stored_bytes(kWard, 1, image.info) == image.bytes().size());
  const auto held = holder.read(kWard);
  CHECK(verify_replica(held.image()) == image.info);
  CHECK(read_replica_loans(held.image()) == read_loans(image.bytes()));
  auto page = detail::encode_header({SlotState::kSealed, image.info, 1, 1});
  CHECK(page[8] == std::byte{3});
  CHECK(page[208] == std::byte{2});
  CHECK(detail::decode_header(page).image == image.info);
}

TEST_CASE("a slot header whose borrowed bytes make no sense is not trusted") {
  MemoryFileSystem fs;
  const auto image = test::borrowing_image();
  auto vault = attach(fs, 1);
  put(vault, image.info, test::replica_of(image).bytes());
  std::string path;
  for (const auto& name : fs.list("/vault")) {
    if (name.find("-w2-0") != std::string::npos) path = "/vault/" + name;
  }
  const auto file = fs.open(path, OpenMode::kReadWrite);
  const auto damage = [&](const ImageInfo& info) {
    write_fully(*file, detail::encode_header({SlotState::kSealed, info, 1, 1, vault.epoch()}), 0);
    const auto slot = vault.slot(kWard);
    if (slot.state == SlotState::kSealed) return std::string("trusted");
    CHECK(slot.image == ImageInfo{});
    return slot.damaged;
  };
  const auto header = detail::encode_header({SlotState::kSealed, image.info, 1, 1, vault.epoch()});
  CHECK(damage(image.info) == "trusted");
  auto info = image.info;
  info.borrowed_bytes =
      0;  // a whole image, for which there is no room; it completes others' replicas
  info.loans = 0;
  info.image_bytes = vault.slot(kWard).capacity + 1;
  CHECK_THAT(damage(info), Contains("does not fit the slot"));
  const auto with = [&](std::uint64_t borrowed, std::uint64_t block) {
    auto other = image.info;
    other.borrowed_bytes = borrowed;
    other.block_bytes = block;
    return damage(other);
  };
  CHECK_THAT(with(20481, 4096), Contains("20481 borrowed bytes"));
  CHECK_THAT(with(20480, 0), Contains("20480 borrowed bytes"));
  CHECK_THAT(with(image.info.image_bytes / 4096 * 4096, 4096), Contains("borrowed bytes"));
  CHECK_THAT(with(std::uint64_t{1} << 63U, 4096), Contains("borrowed bytes"));
  CHECK_THAT(with(4096, 4096), Contains("does not fit the slot"));
  // A version that says otherwise than the field.
  for (const auto version : {std::uint32_t{1}, std::uint32_t{4}}) {
    auto page = header;
    std::memcpy(page.data() + 8, &version, 4);
    const auto digest = detail::header_digest(page);
    std::memcpy(page.data() + detail::kHeaderBytes - 16, &digest.low, 8);
    std::memcpy(page.data() + detail::kHeaderBytes - 8, &digest.high, 8);
    write_fully(*file, page, 0);
    CHECK(vault.slot(kWard).state == SlotState::kEmpty);
    CHECK_THAT(vault.slot(kWard).damaged, Contains(version == 1 ? "its version" : "reads 1 to 3"));
  }
}
