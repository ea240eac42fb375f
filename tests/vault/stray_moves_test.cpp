// Slots of stray vaults that become slots of the rank that sits there now, and those that make
// room.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/vault/control_impl.hpp>
#include <meshstage/core/vault/names_impl.hpp>

#include <algorithm>

#include "tests/support/catch.hpp"
#include "tests/support/watched_file_system.hpp"
#include "tests/vault/stray_host.hpp"

using namespace meshstage;

namespace {

constexpr SlotKey kOwn{3, 0}, kWard{1, 1};

/// Of the slots that were found, the one with an image of that rank.
const StraySlot& image_of(const std::vector<StraySlot>& slots, int rank) {
  for (const StraySlot& slot : slots) {
    if (slot.key.owner_rank == rank) return slot;
  }
  throw NotFound("no image of rank " + std::to_string(rank));
}

/// Leaves rank 1's vault on the host, as fill() makes it.
void leave_vault(Host& host) {
  Vault left = host.enter(1, kBefore);
  fill(left);
}

}  // namespace

TEST_CASE("a stray's slots become slots of the rank that sits there, without a copy") {
  Host host;
  leave_vault(host);
  {
    Vault vault = host.enter(3, kNow);
    const auto found = host.take(vault);
    const auto used = host.disk.used();
    CHECK(vault.move_stray(image_of(found, 3), kOwn));
    CHECK(vault.move_stray(image_of(found, 1), kWard));
    CHECK(host.disk.used() == used);
    CHECK(host.count("-r1-i1-own") + host.count("-r1-i1-w") == 0);
    CHECK(is_filled_with(image_of(found, 3).bytes, 7));
    CHECK(vault.slot(kOwn).image == image_of(found, 3).image);
    CHECK(is_filled_with(vault.read(kWard).image(), 7));
    CHECK_FALSE(vault.move_stray(image_of(found, 3), kOwn));  // it is no stray's any more
    CHECK(vault.slot(kOwn).state == SlotState::kSealed);
    CHECK(vault.free_superseded() == 0);
    // As any slot: it is written again.
    write_image(vault, kWard, identity_of("j", 1, {kNow, 8}), 300);
  }
  const Vault next = host.attach(3);
  CHECK(next.slot(kWard).image.identity.id == ImageId{kNow, 8});
}

TEST_CASE("a slot that was moved is there for the next process, too") {
  Host host;
  leave_vault(host);
  {
    Vault vault = host.enter(3, kNow);
    // The stray is taken in a higher epoch than this vault.
    (void)host.take(vault);
    const auto found = host.take(vault, kNow + 1);
    CHECK(vault.move_stray(image_of(found, 3), kOwn));
    CHECK(vault.slot(kOwn).state == SlotState::kSealed);
  }
  Vault next = host.attach(3);
  CHECK(is_filled_with(next.read(kOwn).image(), 7));
}

TEST_CASE("a stray's slot replaces what the slot had, and no slot that is leased") {
  Host host;
  leave_vault(host);
  Vault vault = host.enter(3, kNow);
  const auto old = write_image(vault, kOwn, identity_of("j", 3, {kNow - 1, 2}), 5000);
  const auto found = host.take(vault);
  {
    const ReadLease lease = vault.read(kOwn);
    CHECK_THROWS_AS(vault.move_stray(image_of(found, 3), kOwn), InvalidState);
    CHECK(lease.info() == old);
  }
  CHECK(vault.move_stray(image_of(found, 3), kOwn));
  CHECK(vault.slot(kOwn).image == image_of(found, 3).image);
}

TEST_CASE("no slot moves whose owner lives, or whose bytes are not those that are needed") {
  Host host;
  SECTION("its owner lives") {
    Vault hung = host.enter(1, kBefore);
    fill(hung);
    Vault vault = host.enter(3, kNow);
    const auto found = host.take(vault);
    CHECK_FALSE(vault.move_stray(image_of(found, 3), kOwn));
    CHECK(host.count("-r1-i1-w3") == 1);
    CHECK(vault.remove_strays_but({}) == 0);
  }
  SECTION("the replica lacks what it borrows") {
    {
      Vault left = host.enter(1, kBefore);
      auto lease = left.begin_write({3, 1}, identity_of("j", 3, {kBefore, 7}), 64);
      auto info = info_of(identity_of("j", 3, {kBefore, 7}), 192);
      info.manifest_bytes = 64;
      info.borrowed_bytes = 128;
      lease.seal(info);
    }
    Vault vault = host.enter(3, kNow);
    const auto found = host.take(vault);
    CHECK_FALSE(vault.move_stray(image_of(found, 3), kOwn));
    CHECK(host.count("-r1-i1-w3") == 1);
  }
  SECTION("it is another rank's") {
    leave_vault(host);
    Vault vault = host.enter(3, kNow);
    const auto found = host.take(vault);
    CHECK_FALSE(vault.move_stray(image_of(found, 1), kOwn));
    CHECK(host.count("-r1-i1-own") == 1);
  }
}

TEST_CASE("a process whose vault is taken while it moves a slot leaves the slot where it was") {
  Host host;
  leave_vault(host);
  VaultOptions options = host.options(3);
  test::WatchedFileSystem watched(*options.fs);
  options.fs = &watched;
  Vault vault = Vault::attach(options);
  vault.note_generation(kNow);
  const auto found = host.take(vault);
  watched.on_link = [&](const auto& to) {
    CHECK(to.native().find("-r3-i1-own0") != std::string::npos);
    // As another process that takes the vault: first its epoch.
    const auto name = detail::control_name(host.disk.process().uid, "j", 3);
    auto page = detail::ControlPage::open(host.disk, "/vault/" + name);
    REQUIRE(page.has_value());
    CHECK(page->raise_epoch(page->epoch() + 1));
  };
  CHECK_THROWS_AS(vault.move_stray(image_of(found, 3), kOwn), Fenced);
  CHECK(host.count("-r1-i1-w3") == 1);
  CHECK(host.count("-r3-i1-own") == 0);
}

TEST_CASE("each call of the system fails in turn while a slot moves: the image is still there") {
  const int error = GENERATE(EIO, EMFILE, ENOSPC);
  int failed = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    INFO("call " << nth);
    Host host;
    leave_vault(host);
    VaultOptions options = host.options(3);
    FaultyFileSystem faulty(*options.fs);
    options.fs = &faulty;
    Vault vault = Vault::attach(options);
    vault.note_generation(kNow);
    write_image(vault, kOwn, identity_of("j", 3, {kNow - 1, 2}), 5000);
    const auto found = host.take(vault);
    faulty.fail_any(nth, error);
    bool moved = false;
    try {
      moved = vault.move_stray(image_of(found, 3), kOwn);
    } catch (const Error&) {  // of the system, or that there is no room
      ++failed;
    }
    const bool fired = faulty.fired().has_value();
    faulty.clear_faults();
    const bool here = vault.slot(kOwn).state == SlotState::kSealed &&
                      vault.slot(kOwn).image == image_of(found, 3).image &&
                      is_filled_with(vault.read(kOwn).image(), 7);
    const auto left = host.take(vault, kNow + 1);
    const bool still_there = std::any_of(left.begin(), left.end(), [](const StraySlot& slot) {
      return slot.key == SlotKey{3, 1} && is_filled_with(slot.bytes, 7);
    });
    CHECK((here || still_there));
    CHECK((!moved || here));
    if (!fired) break;
  }
  CHECK(failed > 4);
}

TEST_CASE("a move that was cut off half-way leaves a file with two names, which nobody writes") {
  Host host;
  leave_vault(host);
  {
    Vault cut_off = host.enter(3, kNow);
    const auto found = host.take(cut_off);
    const std::string prefix = "/vault/meshstage-" + std::to_string(host.disk.process().uid);
    host.disk.link(prefix + "-j-r1-i1-w3-1", prefix + "-j-r3-i1-own0");
  }
  SECTION("the rank that was to get it has it, and the move goes on") {
    Vault vault = host.enter(3, kNow + 1);
    const auto found = host.take(vault, kNow + 1);
    CHECK(vault.slot(kOwn).state == SlotState::kSealed);
    CHECK(vault.move_stray(image_of(found, 3), kOwn));
    CHECK(is_filled_with(vault.read(kOwn).image(), 7));
    CHECK(host.count("-r1-i1-w3") == 0);
  }
  SECTION("both vaults have owners: what one writes is not the other's") {
    Vault one = host.enter(1, kNow + 1), three = host.enter(3, kNow + 1);
    CHECK(is_filled_with(one.read({3, 1}).image(), 7));
    CHECK(is_filled_with(three.read(kOwn).image(), 7));
    if (GENERATE(false, true)) {  // its epoch is the word's, so only the second name tells
      write_image(one, {3, 1}, identity_of("j", 3, {kNow + 1, 9}), 20'000);
      CHECK(is_filled_with(three.read(kOwn).image(), 7));
      write_image(three, kOwn, identity_of("j", 3, {kNow + 1, 8}), 9000);
    } else {
      write_image(three, kOwn, identity_of("j", 3, {kNow + 1, 8}), 9000);
      CHECK(is_filled_with(one.read({3, 1}).image(), 7));
      write_image(one, {3, 1}, identity_of("j", 3, {kNow + 1, 9}), 20'000);
    }
    CHECK(is_filled_with(three.read(kOwn).image(), 8));
    CHECK(is_filled_with(one.read({3, 1}).image(), 9));
  }
  SECTION("it lies with its former rank, and the other vault is the stray") {
    Vault one = host.enter(1, kNow + 1);
    const auto found = host.take(one, kNow + 1);
    CHECK(is_filled_with(one.read({3, 1}).image(), 7));
    CHECK(one.move_stray(image_of(found, 3), {3, 1}));
    CHECK(is_filled_with(one.read({3, 1}).image(), 7));
    CHECK(one.slot({3, 1}).image == image_of(found, 3).image);
    CHECK(host.count("-r3-i1-own") == 0);
  }
}

TEST_CASE("what the ranks of a host hold counts for each of them up to what it needs") {
  Host host;
  leave_vault(host);  // no rank of this generation
  Vault zero = host.enter(0, kNow), three = host.enter(3, kNow);
  write_image(zero, {0, 0}, identity_of("j", 0, {kNow, 8}), 8000);
  write_image(three, kOwn, identity_of("j", 3, {kNow, 8}), 100);
  CHECK(zero.bytes_held_by_generation(~std::uint64_t{0}) == (4096 + 8192) + (4096 + 4096));
  CHECK(three.bytes_held_by_generation(9000) == 9000 + (4096 + 4096));
}

TEST_CASE("for room the slots of strays go, but not those that are needed") {
  Host host;
  constexpr ImageId kChosen{kBefore, 7}, kBase{kBefore, 6};
  {
    Vault left = host.enter(1, kBefore);
    fill(left);
    write_image(left, {1, 1}, identity_of("j", 1, kBase), 100);
    (void)left.begin_write({3, 0}, identity_of("j", 3, {kBefore, 8}), 200);  // left WRITING
  }
  Vault vault = host.enter(3, kNow);
  const auto found = host.take(vault);
  CHECK(found.size() == 3);
  const std::vector<ImageId> both{kChosen, kBase}, one{kChosen};
  CHECK(vault.remove_strays_but(both) == 2 * 4096);
  CHECK(host.count("-r1-i1-own") == 2);
  CHECK(host.count("-r1-i1-w3") == 1);
  CHECK(vault.remove_strays_but(one) == 2 * 4096);
  CHECK(host.count("-r1-i1-own") == 1);
}

TEST_CASE("of several ranks the one that needs a stray's images takes it") {
  Host host;
  leave_vault(host);
  Vault other = host.enter(0, kNow), needs = host.enter(3, kNow);
  StraySearch search{kNow, 4};
  search.needs = [](int rank, int vault) { return rank == 3 && vault == 1; };
  CHECK(other.take_strays(search).empty());
  CHECK(needs.take_strays(search).size() == 2);
  // Nobody needs it: one takes it all the same.
  search.generation = kNow + 1;
  other.note_generation(search.generation);
  needs.note_generation(search.generation);
  search.needs = [](int, int) { return false; };
  CHECK(other.take_strays(search).size() + needs.take_strays(search).size() == 2);
  // A rank that has not come as far as the generation takes nothing, so nobody waits for it.
  ++search.generation;
  other.note_generation(search.generation);
  search.needs = [](int rank, int vault) { return rank == 3 && vault == 1; };
  CHECK(other.take_strays(search).size() == 2);
}
