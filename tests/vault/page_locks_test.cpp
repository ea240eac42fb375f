// Slots that a device copies to and from: what is page-locked, when, and what a refusal does.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <sys/mman.h>

#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"
#include "tests/support/temp_directory.hpp"
#include "tests/vault/vault_support.hpp"

using namespace meshstage;

namespace {

constexpr SlotKey kOwn{2, 0}, kOther{2, 1}, kWard{1, 0};

// Notes whether memory is mapped when it is unlocked.
class WatchingPinner final : public MemoryPinner {
 public:
  void pin(std::span<std::byte> pages) override { inner.pin(pages); }
  void unpin(std::span<std::byte> pages) noexcept override {
    std::vector<unsigned char> there(pages.size() / 4096);
    unmapped += ::mincore(pages.data(), pages.size(), there.data()) == 0 ? 0 : 1;
    inner.unpin(pages);
  }
  test::FakePinner inner;
  int unmapped = 0;
};

struct Home {
  TempDirectory directory;
  [[nodiscard]] Vault attach() const {
    return Vault::attach({.job = "gpt2", .rank = 2, .directory = directory.path()});
  }
};

ImageIdentity step(std::uint64_t n, int rank = 2) { return identity_of("gpt2", rank, {1, n}); }

}  // namespace

TEST_CASE("page locks: own slots are locked whole when they are begun, wards' are not") {
  const Home place;
  WatchingPinner pinner;
  auto vault = place.attach();
  write_image(vault, kOther, step(1), 5000);
  CHECK(vault.page_locks().bytes == 0);
  vault.use_pinner(pinner);
  const auto lease = vault.begin_write(kOwn, step(2), 10'000);
  const auto ward = vault.begin_write(kWard, step(2, 1), 10'000);
  CHECK(pinner.inner.locks(lease.image()));
  CHECK_FALSE(pinner.inner.locks(ward.image().first(1)));
  CHECK(vault.page_locks().bytes == 12'288);
  // What was there before is locked for who reads it.
  const auto read = vault.read(kOther);
  CHECK_FALSE(pinner.inner.locks(read.image()));
  vault.lock_pages(read);
  vault.lock_pages(read);
  CHECK(pinner.inner.locks(read.image()));
  CHECK(pinner.inner.ranges() == 2);
  CHECK(vault.page_locks().refused == 0);
}

TEST_CASE("page locks: a slot that grows is unlocked, mapped anew and locked; then it is kept") {
  const Home place;
  WatchingPinner pinner;
  {
    auto vault = place.attach();
    vault.use_pinner(pinner);
    write_image(vault, kOwn, step(1), 5000);
    write_image(vault, kOwn, step(2), 100'000);
    {
      const auto read = vault.read(kOwn);
      CHECK(pinner.inner.locks(read.image()));
      CHECK(is_filled_with(read.image(), 2));
    }
    const auto lease = vault.begin_write(kOwn, step(3), 4000);
    CHECK(pinner.inner.locks(lease.image()));
    CHECK(pinner.inner.ranges() == 1);
  }
  CHECK(pinner.inner.ranges() == 0);
  CHECK(pinner.inner.wrong_unpins == 0);
  CHECK(pinner.unmapped == 0);
}

TEST_CASE("page locks: a lease that outlives the vault keeps them, and removal ends them") {
  const Home place;
  WatchingPinner pinner;
  {
    WriteLease lease;
    {
      auto vault = place.attach();
      vault.use_pinner(pinner);
      lease = vault.begin_write(kOwn, step(1), 5000);
    }
    CHECK(pinner.inner.locks(lease.image()));
  }
  CHECK(pinner.inner.ranges() == 0);
  auto vault = place.attach();
  vault.use_pinner(pinner);
  write_image(vault, kOwn, step(2), 5000);
  CHECK(pinner.inner.ranges() == 1);
  vault.remove_all();
  CHECK(pinner.inner.ranges() == 0);
  CHECK(pinner.unmapped == 0);
}

TEST_CASE("page locks: where they are refused the slot is used without, with one warning") {
  const Home place;
  WatchingPinner pinner;
  pinner.inner.refuse_from = 0;
  std::vector<std::string> warnings;
  auto vault = place.attach();
  vault.use_pinner(pinner, [&](const std::string& text) { warnings.push_back(text); });
  write_image(vault, kOwn, step(1), 5000);
  write_image(vault, kOther, step(2), 5000);
  CHECK(vault.page_locks().refused == 2);
  CHECK(vault.page_locks().bytes == 0);
  // Not at every step: only when the slot has grown.
  write_image(vault, kOwn, step(3), 5000);
  CHECK(vault.page_locks().refused == 2);
  CHECK(is_filled_with(vault.read(kOwn).image(), 3));
  pinner.inner.refuse_from = 10;
  write_image(vault, kOwn, step(4), 50'000);
  CHECK(vault.page_locks().bytes > 50'000);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], contains_text("slot own0") && contains_text("locks no more memory"));
}

TEST_CASE("page locks: a forked child unlocks nothing") {
  const Home place;
  WatchingPinner pinner;
  auto vault = std::make_unique<Vault>(place.attach());
  vault->use_pinner(pinner);
  write_image(*vault, kOwn, step(1), 5000);
  const pid_t child = ::fork();
  if (child == 0) {
    vault.reset();
    ::_exit(pinner.inner.ranges() == 1 ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(pinner.inner.ranges() == 1);
}
