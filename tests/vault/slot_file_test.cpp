#include <meshstage/core/vault/slot_file.hpp>

#include <meshstage/core/os/memory_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/vault/vault_support.hpp"

using namespace meshstage;

TEST_CASE("a slot can be looked at while its owner lives, and a change is seen") {
  MemoryFileSystem fs;
  auto vault = Vault::attach({.job = "job", .rank = 0, .directory = "/v", .fs = &fs});
  const auto first = write_image(vault, {0, 0}, identity_of("job", 0, {1, 5}), 10000);
  const auto elsewhere = fs.as_process(77);
  const auto listed = list_vaults("/v", *elsewhere).at(0);
  REQUIRE(listed.owner_alive);
  const auto slot = SlotFile::open(listed, {0, 0}, *elsewhere);
  REQUIRE(slot.info().state == SlotState::kSealed);
  REQUIRE(slot.info().image == first);
  std::vector<std::byte> bytes(10000);
  slot.read_image(bytes, 0);
  REQUIRE(is_filled_with(bytes, 5));
  slot.read_image(std::span(bytes).first(0), slot.info().capacity);
  REQUIRE_THROWS_AS(slot.read_image(std::span(bytes).first(1), slot.info().capacity), CorruptData);
  REQUIRE_THROWS_AS(slot.read_image(bytes, ~std::uint64_t{0}), CorruptData);

  auto lease = vault.begin_write({0, 0}, identity_of("job", 0, {1, 6}), 10000);
  REQUIRE(slot.info().state == SlotState::kWriting);
  lease.abandon();
  write_image(vault, {0, 0}, identity_of("job", 0, {1, 7}), 10000);
  REQUIRE_FALSE(slot.info().image == first);
  REQUIRE(vault.read({0, 0}).valid());  // nothing was held back
  REQUIRE_THROWS_AS(SlotFile::open(listed, {0, 1}, *elsewhere), NotFound);
}
