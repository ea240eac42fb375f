// Each system call of the vault fails in turn: a clear error, nothing lost, and it works again
// afterwards.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <cerrno>
#include <functional>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/vault/vault_support.hpp"

using meshstage::FaultyFileSystem;
using meshstage::FileOperation;
using meshstage::MemoryFileSystem;
using meshstage::SlotState;
using meshstage::Vault;

namespace {

Vault attach(meshstage::FileSystem& fs) {
  return Vault::attach({.job = "gpt2", .rank = 2, .directory = "/vault", .fs = &fs});
}

/// Runs `action` with its first, second, ... system call failing with `error`, until none is left
/// to fail. `check` is told whether the action threw.
int fail_each(FaultyFileSystem& fs, int error, const std::function<void()>& action,
              const std::function<void(bool threw)>& check) {
  int failed = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    fs.fail_any(nth, error);
    bool threw = false;
    try {
      action();
    } catch (const meshstage::Error& e) {
      threw = true;
      const std::string what = e.what();
      CAPTURE(what);
      CHECK((e.kind() == meshstage::ErrorKind::kIo ||
             e.kind() == meshstage::ErrorKind::kOutOfMemory));
      CHECK(what.find("errno") != std::string::npos);
    }
    const auto fired = fs.fired();
    fs.clear_faults();
    INFO("call " << nth << " failed: " << (fired ? to_string(*fired) : "none") << ", errno "
                 << error);
    check(threw);
    if (!fired) return failed;
    ++failed;
  }
}

}  // namespace

TEST_CASE("attach: each call failing leaves a vault that attaches, with its slots") {
  for (const int error : {EIO, EACCES, EMFILE, ENOSPC}) {
    for (const bool was_there : {false, true}) {
      int round = 0;
      MemoryFileSystem disk;
      FaultyFileSystem fs(disk);
      if (was_there) {
        auto vault = attach(disk);
        write_image(vault, {2, 0}, identity_of("gpt2", 2, {1, 5}), 100);
      }
      const int failed = fail_each(
          fs, error,
          [&] {
            if (!was_there) {  // start from nothing each time
              for (const auto& v : meshstage::list_vaults("/vault", disk))
                meshstage::remove_vault(v, disk);
              for (const auto& name :
                   disk.stat("/vault") ? disk.list("/vault") : std::vector<std::string>()) {
                disk.unlink("/vault/" + name);
              }
            }
            ++round;
            (void)attach(fs);
          },
          [&](bool) {
            auto vault = attach(disk);
            REQUIRE(vault.incarnation() == 1);
            if (was_there) {
              REQUIRE(vault.slot({2, 0}).state == SlotState::kSealed);
            }
            if (was_there) return;
            vault.remove_all();
            REQUIRE(disk.list("/vault").empty());
          });
      REQUIRE(failed >= 5);
      REQUIRE(round == failed + 1);
    }
  }
}

TEST_CASE("attach beside images that stay: each call failing leaves them, and one incarnation") {
  for (const int error : {EIO, EACCES, EMFILE, ENOSPC}) {
    MemoryFileSystem disk;
    FaultyFileSystem fs(disk);
    const auto attach_for_three = [](meshstage::FileSystem& by) {
      return Vault::attach({.job = "gpt2",
                            .rank = 2,
                            .directory = "/vault",
                            .fs = &by,
                            .world_size = 3,
                            .keeps_others = true});
    };
    const int failed = fail_each(
        fs, error,
        [&] {
          for (const auto& name :
               disk.stat("/vault") ? disk.list("/vault") : std::vector<std::string>()) {
            disk.unlink("/vault/" + name);
          }
          {
            auto left = attach(disk);
            write_image(left, {2, 0}, identity_of("gpt2", 2, {1, 5}), 100);
          }
          (void)attach_for_three(fs);
        },
        [&](bool) {
          auto vault = attach_for_three(disk);
          REQUIRE(vault.incarnation() == 2);
          const auto kept = vault.left_in_older();
          REQUIRE(kept.size() == 1);
          REQUIRE(is_filled_with(kept[0].bytes, 5));
        });
    REQUIRE(failed >= 8);
  }
}

TEST_CASE(
    "begin_write: each call failing leaves the other slot alone and this one to be begun again") {
  for (const int error : {EIO, ENOSPC, ENOMEM, EMFILE}) {
    MemoryFileSystem disk;
    FaultyFileSystem fs(disk);
    auto vault = attach(fs);
    write_image(vault, {2, 0}, identity_of("gpt2", 2, {1, 5}), 100);
    std::uint64_t bytes = 100;
    const int failed = fail_each(
        fs, error,
        [&] {
          bytes += 4096;  // grows each time
          auto lease = vault.begin_write({2, 1}, identity_of("gpt2", 2, {1, 10}), bytes);
        },
        [&](bool threw) {
          REQUIRE(vault.slot({2, 0}).state == SlotState::kSealed);
          REQUIRE(is_filled_with(vault.read({2, 0}).image(), 5));
          if (!threw) return;
          REQUIRE_NOTHROW(write_image(vault, {2, 1}, identity_of("gpt2", 2, {1, 10}), 50));
        });
    REQUIRE(failed >= 3);
  }
}

TEST_CASE(
    "growth that fails half-way is out of memory with all its parts, and the slot is unsealed") {
  MemoryFileSystem disk;
  FaultyFileSystem fs(disk);
  auto vault = attach(fs);
  write_image(vault, {2, 0}, identity_of("gpt2", 2, {1, 5}), 100);
  fs.fail(FileOperation::kReserve, 1, ENOSPC);
  try {
    (void)vault.begin_write({2, 0}, identity_of("gpt2", 2, {1, 10}), 10000);
    FAIL("grew");
  } catch (const meshstage::OutOfMemory& e) {
    const std::string what = e.what();
    CAPTURE(what);
    for (const char* part : {"8192 bytes (8.1 kB) needed in /vault", "available", "the limit is",
                             "a smaller state", "posix_fallocate", "errno 28"}) {
      CHECK(what.find(part) != std::string::npos);
    }
  }
  REQUIRE(vault.slot({2, 0}).state == SlotState::kWriting);
  REQUIRE(vault.slot({2, 0}).capacity == 4096);
  write_image(vault, {2, 0}, identity_of("gpt2", 2, {1, 10}), 10000);
}

TEST_CASE("removal: each call failing leaves what is removed by trying again") {
  for (std::uint64_t nth = 1;; ++nth) {
    MemoryFileSystem disk;
    FaultyFileSystem fs(disk);
    const auto other = disk.as_process(77);
    {
      auto old = attach(*other);
      write_image(old, {2, 0}, identity_of("gpt2", 2, {1, 5}), 100);
      auto vault = attach(fs);
      REQUIRE(vault.incarnation() == 2);
      write_image(vault, {2, 0}, identity_of("gpt2", 2, {2, 5}), 100);
      {
        const Vault dead = std::move(old);
      }
      fs.fail_any(nth, EIO);
      try {
        vault.free_superseded();
        vault.remove_all();
      } catch (const meshstage::SystemError& e) {
        REQUIRE(e.error_number() == EIO);
      }
      const bool fired = fs.fired().has_value();
      fs.clear_faults();
      if (!fired) {
        REQUIRE(disk.list("/vault").empty());
        REQUIRE(nth > 8);
        break;
      }
    }
    INFO("call " << nth);
    for (const auto& v : meshstage::list_vaults("/vault", disk)) meshstage::remove_vault(v, disk);
    auto vault = attach(disk);
    REQUIRE(vault.slots().empty());
    vault.remove_all();
    REQUIRE(disk.list("/vault").empty());
  }
}

TEST_CASE("names are parsed to the letter, whatever the job is called") {
  using namespace meshstage::detail;
  for (const std::string job :
       {"a", "a-r1", "x-r1-i2-own0", "a.lock", "b.control", "c.tmp-1", "1-2", "-", "w0-1"}) {
    for (const std::string& name :
         {control_name(7, job, 3), lock_name(7, job, 3, 12), slot_name(7, job, 3, 12, {3, 1}),
          slot_name(7, job, 3, 12, {0, 0}), lock_name(7, job, 3, 12) + ".tmp-5-99"}) {
      INFO(name);
      const auto parsed = parse_vault_name(name);
      REQUIRE(parsed);
      CHECK(parsed->uid == 7);
      CHECK(parsed->job == job);
      CHECK(parsed->rank == 3);
    }
    const auto slot = parse_vault_name(slot_name(7, job, 3, 12, {0, 1}));
    REQUIRE(slot->kind == VaultFileKind::kSlot);
    REQUIRE(slot->incarnation == 12);
    REQUIRE(slot->slot == meshstage::SlotKey{0, 1});
  }
  for (const char* name :
       {"", "meshstage-", "meshstage-7-a-r3", "meshstage-7-a-r3-i0.lock",
        "meshstage-7-a-r3-i01.lock", "meshstage-7-a-r3-i1-own2", "meshstage-7-a-r3-i1-w3-0",
        "meshstage-7-a-r3-i1-w-0", "meshstage-7--r3.control", "meshstage-x-a-r3.control",
        "meshstage-7-a-r-3.control", "meshstage-7-a/b-r3.control", "other-7-a-r3.control",
        "meshstage-7-a-r99999999999.control", "meshstage-7-a-r3-i1-own0.tmp-1-1",
        "meshstage-7-a-r3-i1-own00", "meshstage-7-a-r3-i1-own0 "}) {
    INFO(name);
    CHECK_FALSE(parse_vault_name(name));
  }
}
