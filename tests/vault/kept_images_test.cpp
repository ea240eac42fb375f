// Images of another number of ranks that stay in memory as they are: VaultOptions::keeps_others.
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tests/vault/stray_host.hpp"

using namespace meshstage;

namespace {

/// Rank 1's vault, for a job of so many ranks.
Vault attach_for(Host& host, int world_size) {
  auto options = host.options(1);
  options.world_size = world_size;
  options.keeps_others = true;
  return Vault::attach(std::move(options));
}

/// An image of rank 1 of 3, in the slot that its step says.
void write_of_three(Vault& vault, ImageId id) {
  auto identity = identity_of("j", 1, id);
  identity.world_size = 3;
  write_image(vault, {1, static_cast<int>(id.step % 2)}, identity, 100);
}

void check_kept(const Vault& vault) {
  const auto kept = vault.left_in_older();
  REQUIRE(kept.size() == 2);
  for (const StraySlot& slot : kept) {
    CHECK(slot.vault == 1);
    CHECK(slot.incarnation == 1);
    CHECK(slot.image.identity.id == ImageId{kBefore, 7});
    CHECK(slot.image.identity.world_size == 4);
    CHECK(is_filled_with(slot.bytes, 7));
  }
}

}  // namespace

TEST_CASE(
    "images of another number of ranks stay beside the new slots, whatever is written there") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault vault = attach_for(host, 3);
  CHECK(vault.incarnation() == 2);
  CHECK(!vault.taken_over());
  CHECK(vault.slots().empty());
  CHECK(vault.adopt_older().empty());
  check_kept(vault);
  for (std::uint64_t step = 8; step < 12; ++step) write_of_three(vault, {kNow, step});
  check_kept(vault);
  CHECK(vault.bytes_left() == 2 * (4096 + 4096));
  SECTION("the job goes on from an older step: they stay until the end") {
    CHECK(vault.free_superseded({kBefore, 6}) == 0);
    check_kept(vault);
  }
  SECTION("the job goes on from that step") {
    const auto kept = vault.left_in_older();
    CHECK(vault.free_superseded({kBefore, 7}) == 2 * (4096 + 4096));
    CHECK(vault.left_in_older().empty());
    CHECK(host.count("-i1") == 0);
    CHECK(is_filled_with(kept.at(0).bytes, 7));  // as long as it is kept
  }
  vault.remove_all();
  CHECK(host.disk.list("/vault").empty());
}

TEST_CASE("the old number finds its images beside those of the number between") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  for (int start = 0; start < 3; ++start) {
    Vault vault = attach_for(host, 3);
    CHECK(vault.incarnation() == 2);  // the one of the start before
    check_kept(vault);
    write_of_three(vault, {kNow, 7});
  }
  Vault back = attach_for(host, 4);
  CHECK(back.incarnation() == 3);
  const auto adopted = back.adopt_older();
  REQUIRE(adopted.size() == 2);
  CHECK(adopted[0].owner_rank != adopted[1].owner_rank);
  for (const SlotKey key : adopted) {
    const ReadLease lease = back.read(key);
    CHECK(lease.info().identity.id == ImageId{kBefore, 7});
    CHECK(is_filled_with(lease.image(), 7));
  }
  const auto kept = back.left_in_older();
  REQUIRE(kept.size() == 1);
  CHECK(kept[0].image.identity.id == ImageId{kNow, 7});
  CHECK(kept[0].image.identity.world_size == 3);
}

TEST_CASE("a job that does not keep them has them in its slots") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  {
    Vault kept = attach_for(host, 3);
  }
  Vault vault = host.attach(1);
  CHECK(vault.left_in_older().empty());
  CHECK(vault.adopt_older().size() == 2);
}

TEST_CASE("a job that does not keep them finds those that its full slots leave no place for") {
  const int world_size = GENERATE(3, 4);  // 4: images of its own, behind an attempt of 3 ranks
  INFO(world_size);
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  {
    Vault kept = attach_for(host, 3);
    write_of_three(kept, {kNow, 8});
    write_of_three(kept, {kNow, 9});
  }
  auto options = host.options(1);
  options.world_size = world_size;
  Vault vault = Vault::attach(std::move(options));
  CHECK(vault.incarnation() == 2);
  CHECK(vault.adopt_older().size() == 1);  // the ward's
  const auto left = vault.left_in_older();
  REQUIRE(left.size() == 1);
  CHECK(left[0].image.identity.id == ImageId{kBefore, 7});
  CHECK(is_filled_with(left[0].bytes, 7));
  CHECK(vault.free_superseded({kBefore, 6}) == 0);
  CHECK(vault.free_superseded({kBefore, 7}) == 4096 + 4096);
  CHECK(vault.left_in_older().empty());
}

TEST_CASE("the images of a stopped process are kept, too, and it changes them no more") {
  Host host;
  Vault stopped = host.enter(1, kBefore);
  fill(stopped);
  Vault vault = attach_for(host, 3);
  CHECK(vault.incarnation() == 2);
  CHECK(vault.adopt_older().empty());
  check_kept(vault);
  CHECK_THROWS_AS(stopped.begin_write({1, 0}, identity_of("j", 1, {kBefore, 8}), 100), Fenced);
  check_kept(vault);
  vault.remove_all();
  CHECK(host.disk.list("/vault").empty());
}
