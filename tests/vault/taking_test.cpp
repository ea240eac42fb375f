// What a taker and the owner before it do to the same slots: words, epochs, older incarnations.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <csignal>
#include <cstring>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tests/vault/vault_support.hpp"

using namespace meshstage;

namespace {

Vault attach(const TempDirectory& directory, std::uint64_t epoch = 0) {
  return Vault::attach({.job = "job.1", .rank = 1, .directory = directory.path(), .epoch = epoch});
}

/// Of the first incarnation.
SlotInfo old_slot(const TempDirectory& directory, int index) {
  const VaultListing first = list_vaults(directory.path()).at(0);
  REQUIRE(first.incarnation == 1);
  for (const auto& [key, info] : first.slots) {
    if (key == SlotKey{1, index}) return info;
  }
  return {};
}

/// The file of own slot 0, as a release before the words wrote it.
void write_old_header(FileSystem& fs, const ImageInfo& image, std::uint32_t version) {
  for (const auto& name : fs.list("/vault")) {
    if (!name.ends_with("-own0")) continue;
    auto page = detail::encode_header({SlotState::kSealed, image, 1, 1});
    std::memcpy(page.data() + 8, &version, sizeof version);
    std::memset(page.data() + detail::kWordAt, 0, 8);
    const Digest digest = detail::header_digest(page);
    std::memcpy(page.data() + detail::kHeaderBytes - 16, &digest.low, 8);
    std::memcpy(page.data() + detail::kHeaderBytes - 8, &digest.high, 8);
    write_fully(*fs.open("/vault/" + name, OpenMode::kReadWrite), page, 0);
  }
}

}  // namespace

TEST_CASE("an owner that is stopped between load and swap does not begin a slot that was taken") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.tell("stop-beginning");
  owner.wait_stopped();
  auto vault = attach(directory);
  REQUIRE(vault.incarnation() == 2);
  owner.signal(SIGCONT);
  REQUIRE(owner.answer().starts_with("fenced: incarnation 1 is superseded by 2"));
  REQUIRE(old_slot(directory, 0).state == SlotState::kSealed);
  REQUIRE(old_slot(directory, 0).image.identity.id == ImageId{1, 7});
}

TEST_CASE("an owner that is stopped before it seals never seals a slot that was taken") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.tell("stop-sealing");
  owner.wait_stopped();
  auto vault = attach(directory);
  REQUIRE(old_slot(directory, 1).state == SlotState::kWriting);
  owner.signal(SIGCONT);
  REQUIRE(owner.answer().starts_with("fenced: incarnation 1 is superseded by 2"));
  REQUIRE(old_slot(directory, 1).state == SlotState::kWriting);
}

TEST_CASE("an owner that nobody disturbs goes on after it was stopped there") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.tell("stop-sealing");
  owner.wait_stopped();
  owner.signal(SIGCONT);
  REQUIRE(owner.answer() == "fine");
  REQUIRE(old_slot(directory, 1).state == SlotState::kSealed);
}

TEST_CASE("what a stopped owner has sealed is copied, and its own files stay as they are") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.signal(SIGSTOP);
  auto vault = attach(directory);
  REQUIRE(vault.slots().empty());
  REQUIRE(vault.adopt_older() == std::vector<SlotKey>{{1, 0}});
  REQUIRE(is_filled_with(vault.read({1, 0}).image(), 7));
  REQUIRE(vault.slot({1, 0}).image == info_of(identity_of("job.1", 1, {1, 7}), 5000));
  REQUIRE(old_slot(directory, 0).state == SlotState::kSealed);
  REQUIRE(vault.adopt_older().empty());  // it is here already
}

TEST_CASE("what an owner sealed that was stopped then and is dead by now is moved") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.signal(SIGSTOP);
  {
    const auto idle = attach(directory);  // started anew, and ended before it recovered anything
    REQUIRE(idle.incarnation() == 2);
  }
  owner.kill();
  auto vault = attach(directory);
  REQUIRE(vault.incarnation() == 2);
  REQUIRE(vault.slots().empty());
  REQUIRE(vault.adopt_older() == std::vector<SlotKey>{{1, 0}});
  REQUIRE(is_filled_with(vault.read({1, 0}).image(), 7));
  REQUIRE(old_slot(directory, 0).state == SlotState::kEmpty);  // the file is this vault's now
  write_image(vault, {1, 0}, identity_of("job.1", 1, {2, 9}), 6000);
  REQUIRE(is_filled_with(vault.read({1, 0}).image(), 9));
}

TEST_CASE(
    "of more images than there are slots the newest are adopted, beside those that are here") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  REQUIRE(owner.ask("seal") == "fine");  // steps 7 and 8
  owner.signal(SIGSTOP);
  auto vault = attach(directory);
  write_image(vault, {1, 0}, identity_of("job.1", 1, {2, 9}), 100);
  REQUIRE(vault.adopt_older() == std::vector<SlotKey>{{1, 1}});
  REQUIRE(is_filled_with(vault.read({1, 0}).image(), 9));
  REQUIRE(vault.slot({1, 1}).image.identity.id == ImageId{1, 8});
}

TEST_CASE("a slot that is leased is no place for an older image") {
  const TempDirectory directory;
  VaultWorker owner(directory.path(), "job.1", 1, "sealed");
  owner.signal(SIGSTOP);
  auto vault = attach(directory);
  const auto first = vault.begin_write({1, 0}, identity_of("job.1", 1, {2, 9}), 100);
  const auto second = vault.begin_write({1, 1}, identity_of("job.1", 1, {2, 10}), 100);
  REQUIRE(vault.adopt_older().empty());
}

TEST_CASE("a vault is taken in ascending epochs; who comes late is refused and changes nothing") {
  const TempDirectory directory;
  auto vault = attach(directory, 5);
  REQUIRE(vault.epoch() == 5);
  write_image(vault, {1, 0}, identity_of("job.1", 1, {5, 7}), 5000);
  for (const std::string late : {"4", "5"}) {
    const VaultWorker other(directory.path(), "job.1", 1, "take-" + late);
    REQUIRE(other.ready().find("fenced") != std::string::npos);
    REQUIRE(other.ready().find("in epoch 5; this process comes with epoch " + late) !=
            std::string::npos);
  }
  REQUIRE(list_vaults(directory.path()).size() == 1);
  REQUIRE_NOTHROW(vault.check_owned());
  write_image(vault, {1, 1}, identity_of("job.1", 1, {5, 8}), 5000);
}

TEST_CASE("slots that were written before there were words are read, taken and written again") {
  MemoryFileSystem fs;
  const auto open = [&] {
    return Vault::attach({.job = "job", .rank = 1, .directory = "/vault", .fs = &fs});
  };
  for (const std::uint32_t version : {1U, 2U}) {
    auto image = info_of(identity_of("job", 1, {1, 7}), 5000);
    {
      auto vault = open();
      write_image(vault, {1, 0}, identity_of("job", 1, {1, 7}), 5000);
    }
    if (version == 2) image.loans = 1;
    write_old_header(fs, image, version);
    auto vault = open();
    REQUIRE(vault.slot({1, 0}).state == SlotState::kSealed);
    REQUIRE(vault.slot({1, 0}).image == image);
    {
      const auto lease = vault.begin_write({1, 0}, identity_of("job", 1, {2, 8}), 100);
      REQUIRE(lease.previous() == image);
      REQUIRE(vault.slot({1, 0}).state == SlotState::kWriting);
    }
    write_image(vault, {1, 0}, identity_of("job", 1, {2, 9}), 100);
    REQUIRE(vault.slot({1, 0}).image.identity.id == ImageId{2, 9});
  }
}

TEST_CASE("an owner that died between the word and the header leaves a slot that is WRITING") {
  MemoryFileSystem fs;
  const auto open = [&] {
    return Vault::attach({.job = "job", .rank = 1, .directory = "/vault", .fs = &fs});
  };
  for (const bool had_image : {false, true}) {
    {
      auto vault = open();
      if (had_image) write_image(vault, {1, 0}, identity_of("job", 1, {1, 7}), 5000);
      if (!had_image) (void)vault.begin_write({1, 0}, identity_of("job", 1, {1, 7}), 5000);
    }
    for (const auto& name : fs.list("/vault")) {
      if (!name.ends_with("-own0")) continue;
      const auto file = fs.open("/vault/" + name, OpenMode::kReadWrite);
      const std::uint64_t word = detail::pack({SlotState::kWriting, 1});
      if (!had_image) write_fully(*file, detail::HeaderPage{}, 0);
      write_fully(*file, std::as_bytes(std::span(&word, 1)), detail::kWordAt);
    }
    auto vault = open();
    REQUIRE(vault.slot({1, 0}).state == SlotState::kWriting);
    REQUIRE(vault.slot({1, 0}).damaged == "");
    REQUIRE(vault.slot({1, 0}).image == ImageInfo{});
    REQUIRE_THROWS_AS(vault.read({1, 0}), InvalidState);
    write_image(vault, {1, 0}, identity_of("job", 1, {2, 9}), 100);
  }
}
