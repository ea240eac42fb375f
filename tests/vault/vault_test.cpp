// One process, in memory: slots, leases, refusals.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/vault/vault_support.hpp"

using meshstage::ImageId;
using meshstage::InvalidArgument;
using meshstage::InvalidState;
using meshstage::MemoryFileSystem;
using meshstage::OutOfMemory;
using meshstage::SlotKey;
using meshstage::SlotState;
using meshstage::Vault;
using meshstage::WriteLease;

namespace {

Vault attach(meshstage::FileSystem& fs, int rank = 2, const std::string& job = "gpt2") {
  return Vault::attach({.job = job, .rank = rank, .directory = "/vault", .fs = &fs});
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const meshstage::Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

constexpr SlotKey kOwn0{2, 0};
constexpr SlotKey kOwn1{2, 1};
constexpr SlotKey kWard{0, 0};

}  // namespace

TEST_CASE("a fresh vault is empty; what is sealed is read back with all that was said of it") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  REQUIRE(vault.incarnation() == 1);
  REQUIRE_FALSE(vault.taken_over());
  REQUIRE(vault.slots().empty());
  REQUIRE(vault.slot(kOwn0).state == SlotState::kEmpty);
  REQUIRE(vault.slot(kOwn0).capacity == 0);
  REQUIRE_THROWS_AS(vault.read(kOwn0), InvalidState);
  REQUIRE(vault.max_generation() == 0);

  const auto identity = identity_of("gpt2", 2, {3, 85}, {3, 80});
  const auto info = write_image(vault, kOwn0, identity, 10000);
  REQUIRE(vault.slot(kOwn0).state == SlotState::kSealed);
  REQUIRE(vault.slot(kOwn0).image == info);
  REQUIRE(vault.slot(kOwn0).capacity == 12288);
  REQUIRE(vault.slot(kOwn0).writer_pid == ::getpid());
  const auto lease = vault.read(kOwn0);
  REQUIRE(lease.info() == info);
  REQUIRE(lease.key() == kOwn0);
  REQUIRE(lease.image().size() == 10000);
  REQUIRE(is_filled_with(lease.image(), 85));
  REQUIRE(reinterpret_cast<std::uintptr_t>(lease.image().data()) % 4096 == 0);
  REQUIRE(vault.max_generation() == 3);
  REQUIRE(vault.bytes_held() == 4096 + 12288);
}

TEST_CASE("a slot is WRITING before its first byte may change, until it is sealed") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  write_image(vault, kOwn0, identity_of("gpt2", 2, {1, 5}), 5000);
  const auto next = identity_of("gpt2", 2, {1, 15}, {1, 10});
  {
    const auto lease = vault.begin_write(kOwn0, next, 6000);
    REQUIRE(vault.slot(kOwn0).state == SlotState::kWriting);
    REQUIRE(vault.slot(kOwn0).image.identity == next);
    REQUIRE(vault.slot(kOwn0).image.image_bytes == 6000);
    REQUIRE(lease.previous()->identity.id == ImageId{1, 5});
    REQUIRE(is_filled_with(lease.image().first(5000), 5));  // the old manifest is still there
    REQUIRE_THROWS_AS(vault.read(kOwn0), InvalidState);
  }
  REQUIRE(vault.slot(kOwn0).state == SlotState::kWriting);  // dropped unsealed
  auto lease = vault.begin_write(kOwn0, next, 6000);
  REQUIRE_FALSE(lease.previous());
  lease.seal(info_of(next, 6000));
  REQUIRE_FALSE(lease.valid());
  REQUIRE(lease.image().empty());
  REQUIRE_THROWS_AS(lease.seal(info_of(next, 6000)), InvalidState);
  REQUIRE(vault.slot(kOwn0).state == SlotState::kSealed);
}

TEST_CASE("a leased slot is never overwritten, and gives itself back") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  const auto identity = identity_of("gpt2", 2, {1, 5});
  write_image(vault, kOwn0, identity, 100);
  const auto again = [&] { (void)vault.begin_write(kOwn0, identity_of("gpt2", 2, {1, 6}), 100); };
  {
    auto first = vault.read(kOwn0);
    auto second = vault.read(kOwn0);
    REQUIRE(contains(message_of(again), "slot own0 of job \"gpt2\", rank 2 has 2 reader(s)"));
    first.release();
    first.release();
    second = std::move(first);  // releases what it had
    REQUIRE_FALSE(second.valid());
    REQUIRE(message_of(again).empty());
  }
  auto writer = vault.begin_write(kOwn0, identity, 100);
  REQUIRE(contains(message_of(again), "slot own0 of job \"gpt2\", rank 2 is being written"));
  WriteLease moved = std::move(writer);
  REQUIRE_FALSE(message_of(again).empty());
  moved = WriteLease();
  REQUIRE(message_of(again).empty());
  // Another slot is another matter.
  const auto held = vault.begin_write(kOwn0, identity, 100);
  REQUIRE_NOTHROW(vault.begin_write(kOwn1, identity, 100));
}

TEST_CASE("a slot grows in place and never shrinks") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  write_image(vault, kWard, identity_of("gpt2", 0, {1, 0}), 20000);
  REQUIRE(vault.slot(kWard).capacity == 20480);
  write_image(vault, kWard, identity_of("gpt2", 0, {1, 1}), 100);
  REQUIRE(vault.slot(kWard).capacity == 20480);
  write_image(vault, kWard, identity_of("gpt2", 0, {1, 2}), 100000);
  REQUIRE(vault.slot(kWard).capacity == 102400);
  REQUIRE(is_filled_with(vault.read(kWard).image(), 2));
}

TEST_CASE(
    "no room is refused with needed, available, the limit and the remedy, and the image stays") {
  MemoryFileSystem fs({.capacity = 64 * 1024});
  auto vault = attach(fs);
  write_image(vault, kOwn0, identity_of("gpt2", 2, {1, 5}), 20000);
  const std::uint64_t used = fs.used();
  const auto too_much = [&] {
    (void)vault.begin_write(kOwn0, identity_of("gpt2", 2, {1, 15}), 100000);
  };
  REQUIRE_THROWS_AS(too_much(), OutOfMemory);
  const auto message = message_of(too_much);
  INFO(message);
  REQUIRE(contains(
      message,
      "no room for slot own0 of job \"gpt2\", rank 2: 81920 bytes (81.9 kB) needed in /vault"));
  REQUIRE(contains(message, ", " + std::to_string(64 * 1024 - used) + " bytes"));
  REQUIRE(contains(message, "available; the limit is the file system of /vault"));
  REQUIRE(contains(message, "name a vault directory with more room, or stage a smaller state"));
  REQUIRE(fs.used() == used);
  REQUIRE(vault.slot(kOwn0).state == SlotState::kSealed);
  REQUIRE(is_filled_with(vault.read(kOwn0).image(), 5));
  REQUIRE_THROWS_AS(vault.begin_write(kOwn0, identity_of("gpt2", 2, {1, 9}), ~std::uint64_t{0}),
                    InvalidArgument);
  REQUIRE_THROWS_AS(vault.begin_write(kOwn1, identity_of("gpt2", 2, {1, 9}), 100000), OutOfMemory);
  write_image(vault, kOwn0, identity_of("gpt2", 2, {1, 15}), 24000);
}

TEST_CASE("what does not belong into a slot is refused, and leaves it as it was") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  write_image(vault, kOwn0, identity_of("gpt2", 2, {1, 5}), 100);
  REQUIRE_THROWS_AS(vault.begin_write(kOwn0, identity_of("other", 2, {1, 6}), 10), InvalidArgument);
  REQUIRE_THROWS_AS(vault.begin_write(kOwn0, identity_of("gpt2", 3, {1, 6}), 10), InvalidArgument);
  REQUIRE_THROWS_AS(vault.begin_write(kOwn0, identity_of("gpt2", 2, {0, 6}), 10), InvalidArgument);
  REQUIRE_THROWS_AS(vault.begin_write({2, 2}, identity_of("gpt2", 2, {1, 6}), 10), InvalidArgument);
  REQUIRE_THROWS_AS(vault.begin_write({-1, 0}, identity_of("gpt2", -1, {1, 6}), 10),
                    InvalidArgument);
  REQUIRE(vault.slot(kOwn0).state == SlotState::kSealed);

  const auto identity = identity_of("gpt2", 2, {1, 6});
  auto lease = vault.begin_write(kOwn1, identity, 100);
  auto other = identity;
  other.id.step = 7;
  REQUIRE_THROWS_AS(lease.seal(info_of(other, 100)), InvalidArgument);
  REQUIRE_THROWS_AS(lease.seal(info_of(identity, 99)), InvalidArgument);
  auto long_manifest = info_of(identity, 100);
  long_manifest.manifest_bytes = 101;
  REQUIRE_THROWS_AS(lease.seal(long_manifest), InvalidArgument);
  REQUIRE(lease.valid());
  lease.seal(info_of(identity, 100));
}

TEST_CASE("job names are file names") {
  for (const char* good : {"a", "gpt2", "A.b_c-9", "..."})
    REQUIRE(meshstage::is_valid_job_name(good));
  REQUIRE(meshstage::is_valid_job_name(std::string(64, 'x')));
  MemoryFileSystem fs;
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("a b"),
        std::string("a\n"), std::string("\xc3\xa9"), std::string(65, 'x'),
        std::string("a\0b", 3)}) {
    REQUIRE_FALSE(meshstage::is_valid_job_name(bad));
    REQUIRE_THROWS_AS(attach(fs, 0, bad), InvalidArgument);
  }
  REQUIRE_THROWS_AS(attach(fs, -1), InvalidArgument);
}

TEST_CASE("one process attaches a vault once, until vault and leases are gone") {
  MemoryFileSystem fs;
  auto vault = std::make_unique<Vault>(attach(fs));
  write_image(*vault, kOwn0, identity_of("gpt2", 2, {4, 5}), 100);
  REQUIRE(contains(message_of([&] { attach(fs); }),
                   "the vault of job \"gpt2\", rank 2 in /vault is attached already in this "
                   "process (incarnation 1)"));
  REQUIRE_NOTHROW(attach(fs, 3));
  REQUIRE_NOTHROW(attach(fs, 2, "gpt2-large"));
  REQUIRE_NOTHROW(vault->check_owned());  // the refusals took nothing away
  auto lease = vault->read(kOwn0);
  vault.reset();
  REQUIRE_THROWS_AS(attach(fs), InvalidState);
  REQUIRE(is_filled_with(lease.image(), 5));
  lease.release();
  const auto again = attach(fs);
  REQUIRE(again.incarnation() == 1);
  REQUIRE(again.taken_over());
  REQUIRE(again.slot(kOwn0).image.identity.id == ImageId{4, 5});
  REQUIRE(again.max_generation() == 4);
}

TEST_CASE("a dead owner's slots are taken over; a living one's are left, and it is fenced") {
  MemoryFileSystem mine;
  const auto theirs = mine.as_process(4711);
  auto first = attach(*theirs);
  write_image(first, kOwn0, identity_of("gpt2", 2, {2, 5}), 100);
  write_image(first, kWard, identity_of("gpt2", 0, {2, 5}), 100);
  first.note_generation(6);
  auto lease = first.begin_write(kOwn1, identity_of("gpt2", 2, {2, 10}), 100);

  auto second = attach(mine);
  REQUIRE(second.incarnation() == 2);
  REQUIRE_FALSE(second.taken_over());
  REQUIRE(second.slots().empty());
  REQUIRE(second.max_generation() == 6);
  REQUIRE_NOTHROW(second.check_owned());

  const std::string fenced = "fenced: incarnation 1 is superseded by 2, pid " +
                             std::to_string(mine.process().pid) +
                             " (job \"gpt2\", rank 2 in /vault)";
  REQUIRE(message_of([&] { first.check_owned(); }) == fenced);
  REQUIRE(message_of([&] { (void)first.read(kOwn0); }) == fenced);
  REQUIRE(message_of([&] {
            (void)first.begin_write(kOwn0, identity_of("gpt2", 2, {2, 15}), 100);
          }) == fenced);
  REQUIRE(message_of([&] { first.note_generation(9); }) == fenced);
  REQUIRE(message_of([&] { first.remove_all(); }) == fenced);
  REQUIRE(message_of([&] { (void)first.free_superseded(); }) == fenced);
  REQUIRE(message_of([&] { lease.seal(info_of(identity_of("gpt2", 2, {2, 10}), 100)); }) == fenced);
  REQUIRE_FALSE(lease.valid());
  REQUIRE(first.slot(kOwn0).state == SlotState::kSealed);
  REQUIRE(first.slot(kOwn1).state == SlotState::kWriting);

  // Freed, though its owner still maps them; its lock file stays while it lives.
  write_image(second, kOwn0, identity_of("gpt2", 2, {7, 5}), 100);
  REQUIRE(second.free_superseded() == 3 * 8192);
  REQUIRE(meshstage::list_vaults("/vault", mine).size() == 2);
  REQUIRE(second.slot(kOwn0).state == SlotState::kSealed);
  {
    const Vault gone = std::move(first);
  }
  REQUIRE(second.free_superseded() == 0);
  REQUIRE(meshstage::list_vaults("/vault", mine).size() == 1);
}

TEST_CASE("the highest generation seen stays with the vault") {
  MemoryFileSystem fs;
  {
    auto vault = attach(fs);
    vault.note_generation(7);
    vault.note_generation(5);
    REQUIRE(vault.max_generation() == 7);
    // Noted before the slot could fail to remember it.
    (void)vault.begin_write(kOwn0, identity_of("gpt2", 2, {8, 1}, {9, 1}), 10);
    REQUIRE(vault.max_generation() == 9);
  }
  REQUIRE(attach(fs).max_generation() == 9);
}

TEST_CASE("finish removes everything, and the vault says so afterwards") {
  MemoryFileSystem fs;
  {
    const auto other_process = fs.as_process(5);
    const auto old = attach(*other_process);
    auto vault = attach(fs);
    const auto other = attach(fs, 3);
    write_image(vault, kOwn0, identity_of("gpt2", 2, {1, 5}), 100);
    auto lease = vault.read(kOwn0);
    REQUIRE_THROWS_AS(vault.remove_all(), InvalidState);
    lease.release();
    vault.remove_all();
    REQUIRE(contains(message_of([&] { old.check_owned(); }), "fenced"));
    REQUIRE(contains(message_of([&] { vault.check_owned(); }), "was removed"));
    REQUIRE(contains(
        message_of([&] { (void)vault.begin_write(kOwn0, identity_of("gpt2", 2, {1, 6}), 1); }),
        "was removed"));
    REQUIRE(vault.slots().empty());
  }
  const auto names = fs.list("/vault");
  const std::string uid = std::to_string(fs.process().uid);
  REQUIRE(names == std::vector<std::string>{"meshstage-" + uid + "-gpt2-r3-i1.lock",
                                            "meshstage-" + uid + "-gpt2-r3.control"});
}

TEST_CASE("every flipped byte of a header is noticed, and the slot is not trusted") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  const auto written = write_image(vault, kOwn0, identity_of("gpt2", 2, {3, 85}, {3, 80}), 100);
  std::string path;
  for (const auto& name : fs.list("/vault")) {
    if (contains(name, "-own0")) path = "/vault/" + name;
  }
  const auto file = fs.open(path, meshstage::OpenMode::kReadWrite);
  const auto is_of_epoch = [](std::uint64_t at) {
    return at > meshstage::detail::kWordAt && at < meshstage::detail::kWordAt + 8;
  };
  int unnoticed = 0;
  for (std::uint64_t at = 0; at < meshstage::detail::kHeaderBytes; ++at) {
    std::byte b{};
    (void)file->read_at(std::span(&b, 1), at);
    for (const unsigned mask : {0x01U, 0x80U, 0xffU}) {
      const std::byte flipped = b ^ static_cast<std::byte>(mask);
      (void)file->write_at(std::span(&flipped, 1), at);
      const auto info = vault.slot(kOwn0);
      const bool noticed =
          info.state == SlotState::kEmpty && !info.damaged.empty() && info.image.image_bytes == 0;
      // A higher epoch means that the slot was taken since, and changes nothing else.
      const bool the_same = info.state == SlotState::kSealed && info.image == written;
      unnoticed += !noticed && !(is_of_epoch(at) && the_same);
      (void)file->write_at(std::span(&b, 1), at);
    }
  }
  REQUIRE(unnoticed == 0);
  REQUIRE(vault.slot(kOwn0).state == SlotState::kSealed);

  const std::byte wrong{0x55};
  (void)file->write_at(std::span(&wrong, 1), 20);
  REQUIRE(contains(message_of([&] { (void)vault.read(kOwn0); }),
                   "the header does not match its digest"));
  const auto lease = vault.begin_write(kOwn0, identity_of("gpt2", 2, {3, 90}), 100);
  REQUIRE_FALSE(lease.previous());
}

TEST_CASE("a sound header of another job, rank, version or size is not trusted either") {
  MemoryFileSystem fs;
  auto vault = attach(fs);
  const auto good = write_image(vault, kOwn0, identity_of("gpt2", 2, {3, 85}), 100);
  std::string path;
  for (const auto& name : fs.list("/vault")) {
    if (contains(name, "-own0")) path = "/vault/" + name;
  }
  const auto file = fs.open(path, meshstage::OpenMode::kReadWrite);
  const auto damage_of = [&](const meshstage::ImageInfo& image) {
    const auto page =
        meshstage::detail::encode_header({SlotState::kSealed, image, 1, 1, vault.epoch()});
    meshstage::write_fully(*file, page, 0);
    const auto info = vault.slot(kOwn0);
    return info.state == SlotState::kSealed ? std::string("trusted") : info.damaged;
  };
  REQUIRE(damage_of(good) == "trusted");
  auto other = good;
  other.identity.job = "gpt3";
  REQUIRE(contains(damage_of(other), "gpt3"));
  other = good;
  other.identity.rank = 1;
  REQUIRE(contains(damage_of(other), "rank 1"));
  other = good;
  other.image_bytes = 4097;
  REQUIRE(contains(damage_of(other), "4097 bytes does not fit"));
  other = good;
  other.manifest_bytes = 101;
  REQUIRE(contains(damage_of(other), "does not fit"));
}
