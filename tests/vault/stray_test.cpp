// Vaults of ranks that sit on another host by now: who takes them, and what becomes of them.
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tests/vault/stray_host.hpp"

using namespace meshstage;

TEST_CASE("one process of a generation takes a stray vault, and finds what is sealed there") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
    (void)left.begin_write({1, 1}, identity_of("j", 1, {kBefore, 8}), 100);  // left WRITING
  }
  Vault first = host.enter(0, kNow), second = host.enter(2, kNow);
  const auto found = host.take(first);
  REQUIRE(found.size() == 2);
  for (const StraySlot& slot : found) {
    CHECK(slot.vault == 1);
    CHECK(slot.image.identity.id == ImageId{kBefore, 7});
    CHECK(slot.bytes.size() == slot.image.image_bytes);
    CHECK(is_filled_with(slot.bytes, 7));
  }
  CHECK(found[0].key.owner_rank != found[1].key.owner_rank);
  CHECK(host.take(second).empty());
  CHECK(host.take(first).empty());
  CHECK(host.take(second, kNow + 1).size() == 2);  // the next generation's
}

TEST_CASE("what another rank took in the generation before is taken by whoever comes first") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault first = host.enter(0, kNow), second = host.enter(2, kNow);
  REQUIRE(host.take(first).size() == 2);
  first.note_generation(kNow + 1);
  second.note_generation(kNow + 1);
  const auto found = host.take(second, kNow + 1);  // the first one still holds the lock
  REQUIRE(found.size() == 2);
  CHECK(is_filled_with(found[0].bytes, 7));
  CHECK(host.take(first, kNow + 1).empty());
}

TEST_CASE("what was taken goes with what is superseded, and the rest of it at last") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault vault = host.enter(0, kNow);
  const auto found = host.take(vault);
  CHECK(vault.free_superseded() == 2 * (4096 + 4096));
  CHECK(host.count("-r1-i") == 0);
  CHECK(host.count("-r1.control") == 1);
  CHECK(is_filled_with(found.at(0).bytes, 7));  // as long as it is kept
  vault.remove_all();
  CHECK(host.disk.list("/vault").empty());
}

TEST_CASE("the vault of a living owner of an older generation is read, and goes at last") {
  Host host;
  Vault hung = host.enter(1, kBefore);
  fill(hung);
  Vault vault = host.enter(0, kNow);
  CHECK(host.take(vault).size() == 2);
  CHECK(vault.free_superseded() == 0);
  CHECK(host.count("-r1-i1-") == 2);
  // It begins nothing any more.
  CHECK_THROWS_AS(hung.begin_write({1, 1}, identity_of("j", 1, {kBefore, 8}), 100), InvalidState);
  vault.remove_all();
  CHECK(host.disk.list("/vault").empty());
}

TEST_CASE("the vaults of ranks of the generation, and of ranks on their way, are no strays") {
  Host host;
  {
    Vault left = host.enter(3, kBefore);
    write_image(left, {3, 0}, identity_of("j", 3, {kBefore, 7}), 100);
  }
  Vault vault = host.enter(0, kNow);
  Vault member = host.enter(1, kNow);
  fill(member);
  Vault newcomer = host.attach(3);  // it has taken over what was left
  CHECK(host.take(vault).empty());
  CHECK_NOTHROW(member.check_owned());
  CHECK_NOTHROW(newcomer.check_owned());
  CHECK(newcomer.slot({3, 0}).state == SlotState::kSealed);
  CHECK(vault.free_superseded() == 0);
  vault.remove_all();
  CHECK(newcomer.slot({3, 0}).state == SlotState::kSealed);
}

TEST_CASE("a rank that comes back while its vault is taken finds what is there") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault vault = host.enter(0, kNow);
  CHECK(host.take(vault).size() == 2);
  Vault back = host.attach(1);
  CHECK(back.incarnation() == 2);  // the lock of the first one is held
  CHECK(back.adopt_older().size() == 2);
  // What it has made its own stays, whatever the taker does.
  (void)vault.free_superseded();
  vault.remove_all();
  std::size_t sealed = 0;
  for (const auto& [key, info] : back.slots()) sealed += info.state == SlotState::kSealed;
  CHECK(sealed == 2);
  CHECK_NOTHROW(back.check_owned());
}

TEST_CASE("a stray vault of another world size is left alone, and named") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault vault = host.enter(0, kNow);
  CHECK(host.take(vault, kNow, 8).empty());
  REQUIRE(host.warnings.size() == 1);
  CHECK(host.warnings[0].find("images of 4 ranks") != std::string::npos);
  (void)vault.free_superseded();
  vault.remove_all();
  CHECK(host.count("-r1-i1-") == 2);
}

TEST_CASE("a job of any number of ranks takes it, and keeps what is newer than its own step") {
  Host host;
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
  }
  Vault vault = host.enter(0, kNow);
  const auto slots = vault.take_strays({.generation = kNow, .world_size = 8, .any_world = true});
  REQUIRE(slots.size() == 2);
  const ImageId newest = slots[0].image.identity.id;
  SECTION("the job goes on from an older step: it stays until the end") {
    CHECK(vault.free_superseded({newest.generation, newest.step - 1}) == 0);
    CHECK(host.count("-r1-i1-own") + host.count("-r1-i1-w") == 2);
    vault.remove_all();
    CHECK(host.count("-r1-") == 0);
  }
  SECTION("the job goes on from that step") {
    CHECK(vault.free_superseded(newest) > 0);
    CHECK(host.count("-r1-i1-own") + host.count("-r1-i1-w") == 0);
  }
}

TEST_CASE("the highest generation is that of any vault of the job in the directory") {
  Host host;
  {
    const Vault left = host.enter(1, 9);
  }
  const Vault vault = host.enter(0, kNow);
  CHECK(vault.max_generation() == 9);
}
