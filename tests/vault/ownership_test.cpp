// Real processes, real files: who owns what after a death, a stop, a fork, an exec.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"
#include "tests/support/temp_directory.hpp"
#include "tests/vault/vault_support.hpp"

using meshstage::ImageId;
using meshstage::InvalidState;
using meshstage::list_vaults;
using meshstage::SlotState;
using meshstage::Vault;

namespace {

Vault attach(const TempDirectory& directory, int rank = 1) {
  return Vault::attach({.job = "job.1", .rank = rank, .directory = directory.path()});
}

}  // namespace

TEST_CASE("killed while WRITING: the sealed slot is there for the next owner, the other is not") {
  const TempDirectory directory;
  VaultWorker worker(directory.path(), "job.1", 1, "sealed");
  REQUIRE(worker.ready() == "ready 1");
  worker.kill();
  auto vault = attach(directory);
  REQUIRE(vault.incarnation() == 1);
  REQUIRE(vault.taken_over());
  REQUIRE(vault.slot({1, 0}).state == SlotState::kSealed);
  REQUIRE(vault.slot({1, 0}).image == info_of(identity_of("job.1", 1, {1, 7}), 5000));
  REQUIRE(is_filled_with(vault.read({1, 0}).image(), 7));
  REQUIRE(vault.slot({1, 1}).state == SlotState::kWriting);
  REQUIRE(vault.slot({1, 1}).image.identity.id == ImageId{1, 8});
  REQUIRE_THROWS_AS(vault.read({1, 1}), InvalidState);
  write_image(vault, {1, 1}, identity_of("job.1", 1, {2, 8}, {1, 7}), 5000);
  REQUIRE(is_filled_with(vault.read({1, 1}).image(), 8));
}

TEST_CASE(
    "a stopped owner is superseded, and is fenced when it goes on; its pid is only for display") {
  const TempDirectory directory;
  VaultWorker zombie(directory.path(), "job.1", 1, "sealed");
  REQUIRE(zombie.ask("check") == "fine");
  zombie.signal(SIGSTOP);
  auto vault = attach(directory);
  REQUIRE(vault.incarnation() == 2);
  REQUIRE(vault.slots().empty());
  write_image(vault, {1, 0}, identity_of("job.1", 1, {2, 9}), 5000);

  auto listed = list_vaults(directory.path());
  REQUIRE(listed.size() == 2);
  REQUIRE(listed[0].owner_alive);
  REQUIRE(listed[0].owner_pid == zombie.pid());
  REQUIRE_FALSE(listed[0].newest);
  REQUIRE(listed[0].slots.size() == 2);
  REQUIRE(listed[0].slots[0].second.image.identity.id == ImageId{1, 7});
  REQUIRE(listed[1].owner_alive);
  REQUIRE(listed[1].owner_pid == ::getpid());
  REQUIRE(listed[1].newest);
  REQUIRE(listed[1].bytes == 4096 + 8192);
  REQUIRE_THROWS_AS(meshstage::remove_vault(listed[0]), InvalidState);
  REQUIRE_THROWS_AS(meshstage::remove_vault(listed[1]), InvalidState);
  // Looking took nothing away: another process still sees our lock.
  {
    VaultWorker third(directory.path(), "job.1", 1, "hold");
    REQUIRE(third.ready() == "ready 3");
  }
  REQUIRE_THROWS_AS(vault.check_owned(), InvalidState);

  zombie.signal(SIGCONT);
  const std::string fenced = "fenced: incarnation 1 is superseded by 3, pid ";
  REQUIRE(zombie.ask("check").rfind(fenced, 0) == 0);
  REQUIRE(zombie.ask("write").rfind(fenced, 0) == 0);
  REQUIRE(zombie.ask("read").rfind(fenced, 0) == 0);
  REQUIRE(is_filled_with(
      vault.slots().size() == 1 ? std::vector{std::byte{9}} : std::vector<std::byte>(), 9));

  zombie.kill();
  listed = list_vaults(directory.path());
  REQUIRE_FALSE(listed[0].owner_alive);
  REQUIRE(meshstage::remove_vault(listed[0]) == 2 * (4096 + 8192));
  REQUIRE(list_vaults(directory.path()).size() == 2);
}

TEST_CASE("superseded slots are freed on request, with the lock files of the dead") {
  const TempDirectory directory;
  VaultWorker zombie(directory.path(), "job.1", 1, "sealed");
  auto vault = attach(directory);
  REQUIRE(vault.incarnation() == 2);
  REQUIRE(vault.free_superseded() == 2 * (4096 + 8192));
  REQUIRE(list_vaults(directory.path()).size() == 2);
  zombie.kill();
  REQUIRE(vault.free_superseded() == 0);
  REQUIRE(list_vaults(directory.path()).size() == 1);
  vault.remove_all();
  REQUIRE(std::filesystem::is_empty(directory.path()));
}

TEST_CASE("the last one removed takes the common file with it") {
  const TempDirectory directory;
  VaultWorker(directory.path(), "job.1", 1, "writing").kill();
  const auto listed = list_vaults(directory.path());
  REQUIRE(listed.size() == 1);
  REQUIRE_FALSE(listed[0].owner_alive);
  REQUIRE(listed[0].slots[0].second.state == SlotState::kWriting);
  REQUIRE(meshstage::remove_vault(listed[0]) == 4096 + 8192 + 4096);
  REQUIRE(std::filesystem::is_empty(directory.path()));
  REQUIRE(list_vaults(directory.path()).empty());
  REQUIRE(list_vaults(directory.path() / "none").empty());
}

TEST_CASE("a process that replaces itself by exec attaches again, as the same pid and start time") {
  const TempDirectory directory;
  VaultWorker worker(directory.path(), "job.1", 1, "sealed");
  REQUIRE(worker.ask("exec") == "ready 1 taken over");
  REQUIRE(worker.ask("read") == "fine");
}

TEST_CASE("a forked child owns nothing, takes nothing away and unmaps nothing of its own") {
  const TempDirectory directory;
  auto vault = std::make_unique<Vault>(attach(directory));
  write_image(*vault, {1, 0}, identity_of("job.1", 1, {1, 7}), 5000);
  auto lease = vault->read({1, 0});
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 0;
    try {
      vault->check_owned();
      result = 1;
    } catch (const InvalidState&) {
    }
    // The slot's mapping was kept out of this process: something else may lie at its address.
    const auto address = reinterpret_cast<std::uintptr_t>(lease.image().data()) - 4096;
    auto* const mine = static_cast<volatile char*>(
        ::mmap(reinterpret_cast<void*>(address), 4096, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    if (mine == MAP_FAILED) result = 2;
    lease.release();
    vault.reset();
    if (result == 0) mine[0] = 1;  // SIGSEGV if that was unmapped
    ::_exit(result);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(status == 0);
  REQUIRE_NOTHROW(vault->check_owned());
  REQUIRE(list_vaults(directory.path())[0].owner_alive);
  VaultWorker other(directory.path(), "job.1", 1, "hold");
  REQUIRE(other.ready() == "ready 2");  // the child's end did not free the lock
}

TEST_CASE("files are the owner's alone, and others' files are refused") {
  const TempDirectory directory;
  {
    auto vault = attach(directory);
    write_image(vault, {1, 0}, identity_of("job.1", 1, {1, 7}), 5000);
    for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
      struct stat s{};
      REQUIRE(::stat(entry.path().c_str(), &s) == 0);
      REQUIRE((s.st_mode & 0777U) == 0600);
    }
  }
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    REQUIRE(::chmod(entry.path().c_str(), 0644) == 0);
    try {
      (void)attach(directory);
      FAIL("attached although " << entry.path() << " is open to others");
    } catch (const InvalidState& e) {
      REQUIRE(std::string(e.what()).find(entry.path().string() + " belongs to user ") !=
              std::string::npos);
    }
    REQUIRE(::chmod(entry.path().c_str(), 0600) == 0);
  }
  REQUIRE(attach(directory).taken_over());
}

TEST_CASE("pages behind a slot's end are given back, after a refusal and after a death") {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;
  const TempDirectory directory("/dev/shm");
  const auto identity = identity_of("job.1", 1, {1, 1});
  const auto slot_file =
      directory.path() / meshstage::detail::slot_name(::getuid(), "job.1", 1, 1, {1, 0});
  const auto stored = [&] {
    struct stat status{};
    return ::stat(slot_file.c_str(), &status) == 0
               ? static_cast<std::uint64_t>(status.st_blocks) * 512
               : ~std::uint64_t{0};
  };
  SECTION("a limit on the size of files") {
    REQUIRE(meshstage::test::ends_in_forked_child([&] {
      const rlimit small{8 * kMiB, 8 * kMiB};
      if (::setrlimit(RLIMIT_FSIZE, &small) != 0) ::_exit(2);
      auto vault = attach(directory);
      try {
        (void)vault.begin_write({1, 0}, identity, 64 * kMiB);
        ::_exit(3);
      } catch (const meshstage::OutOfMemory&) {
      }
      if (stored() != 4096) ::_exit(4);
    }));
  }
  SECTION("a process that ended while its slot grew") {
    auto vault = attach(directory);
    write_image(vault, {1, 0}, identity, 100);
    const auto file =
        meshstage::real_file_system().open(slot_file, meshstage::OpenMode::kReadWrite);
    if (!file->reserve_huge(4096, 64 * kMiB)) WARN("no huge pages in shared memory here");
    write_image(vault, {1, 0}, identity, 8 * kMiB);
    REQUIRE(stored() == 8 * kMiB + 4096);
  }
}

TEST_CASE("a missing directory is made, private") {
  const TempDirectory directory;
  const auto below = directory.path() / "a" / "b";
  const auto vault = Vault::attach({.job = "job", .rank = 0, .directory = below});
  struct stat s{};
  REQUIRE(::stat(below.c_str(), &s) == 0);
  REQUIRE((s.st_mode & 0777U) == 0700);
}

TEST_CASE("the default is shared memory, and a vault there leaves nothing behind once removed") {
  const std::string job = "meshstage-test-" + std::to_string(::getpid());
  auto vault = Vault::attach({.job = job, .rank = 0});
  write_image(vault, {0, 0}, identity_of(job, 0, {1, 1}), 100000);
  const auto count = [&] {
    int n = 0;
    for (const auto& v : list_vaults()) n += v.job == job;
    return n;
  };
  REQUIRE(count() == 1);
  vault.remove_all();
  REQUIRE(count() == 0);
}
