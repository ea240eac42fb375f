// Any bytes as the first page of a slot, as they are and with a right digest: the slot is not
// trusted and says why, or what it says fits the slot, and reading it stays inside.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/vault.hpp>

using namespace meshstage;
using detail::HeaderPage;
using detail::kHeaderBytes;

namespace {

constexpr SlotKey kSlot{2, 0};  // an own slot in the vault of rank 2, a held one in any other
constexpr std::uint64_t kCapacity = 4096;

/// A vault in memory with one sealed image, made once; its slot's file is what is written to.
struct Target {
  MemoryFileSystem fs;
  Vault vault;
  std::unique_ptr<File> file;

  explicit Target(int rank)
      : vault(Vault::attach({.job = "fuzz", .rank = rank, .directory = "/vault", .fs = &fs})) {
    auto lease = vault.begin_write(kSlot, {"fuzz", 2, 4, {1, 5}, {}}, kCapacity);
    lease.seal({lease_identity(), kCapacity, 4096, 64, {1, 2}, {3, 4}});
    for (const auto& name : fs.list("/vault")) {
      if (name.ends_with("-own0") || name.ends_with("-w2-0")) {
        file = fs.open("/vault/" + name, OpenMode::kReadWrite);
      }
    }
  }
  static ImageIdentity lease_identity() { return {"fuzz", 2, 4, {1, 5}, {}}; }
};

void check_decoded(const HeaderPage& page) {
  const SlotInfo info = detail::decode_header(page);
  if (!info.damaged.empty() || info.state == SlotState::kEmpty) return;
  const auto& identity = info.image.identity;
  if (identity.job.size() > kMaxJobBytes) std::abort();
  const auto again =
      detail::decode_header(detail::encode_header({info.state, info.image, info.writer_pid, 0}));
  if (!again.damaged.empty() || again.image != info.image || again.state != info.state) {
    std::abort();
  }
}

void check_in_vault(Target& target, HeaderPage page) {
  // The word's state is the fuzzer's, its epoch the vault's: of another one nothing is trusted.
  const std::uint64_t word =
      std::to_integer<std::uint64_t>(page[detail::kWordAt]) | target.vault.epoch() << 8U;
  std::memcpy(page.data() + detail::kWordAt, &word, sizeof word);
  write_fully(*target.file, page, 0);
  const SlotInfo info = target.vault.slot(kSlot);
  if (info.state == SlotState::kSealed) {
    const auto& image = info.image;
    const auto stored = stored_bytes(kSlot, target.vault.options().rank, image);
    if (!info.damaged.empty() || stored > kCapacity) std::abort();
    if (image.manifest_bytes > stored) std::abort();
    if (image.identity.job != "fuzz" || image.identity.rank != 2) std::abort();
    const ReadLease lease = target.vault.read(kSlot);
    if (lease.image().size() != stored) std::abort();
    try {
      (void)verify_replica(lease.image());
    } catch (const CorruptData&) {
    }
  }
  try {
    const auto lease = target.vault.begin_write(kSlot, Target::lease_identity(), 100);
    if (lease.previous() && lease.previous()->manifest_bytes > kCapacity) std::abort();
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target own(2);
  static Target held(1);
  HeaderPage page{};
  if (size != 0) std::memcpy(page.data(), data, std::min(size, page.size()));
  check_decoded(page);
  check_in_vault(own, page);
  check_in_vault(held, page);
  const auto digest = detail::header_digest(page);
  std::memcpy(page.data() + kHeaderBytes - 16, &digest.low, 8);
  std::memcpy(page.data() + kHeaderBytes - 8, &digest.high, 8);
  check_decoded(page);
  check_in_vault(own, page);
  check_in_vault(held, page);
  return 0;
}
