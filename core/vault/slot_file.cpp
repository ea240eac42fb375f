#include <meshstage/core/vault/slot_file.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/state_impl.hpp>

namespace meshstage {

SlotFile SlotFile::open(const VaultListing& vault, SlotKey key, FileSystem& fs) {
  auto path =
      vault.directory / detail::slot_name(vault.uid, vault.job, vault.rank, vault.incarnation, key);
  try {
    auto file = detail::open_private(fs, path);
    return SlotFile(std::move(path), std::move(file));
  } catch (const SystemError& e) {
    if (!detail::is_missing(e)) throw;
    throw make_error<NotFound>("the slot " + path.native() + " is gone", vault.rank, {},
                               path.native());
  }
}

SlotInfo SlotFile::info() const { return detail::read_header(*file_); }

void SlotFile::read_image(std::span<std::byte> into, std::uint64_t offset) const {
  const std::uint64_t capacity = info().capacity;
  const std::size_t got = offset <= capacity && into.size() <= capacity - offset
                              ? file_->read_at(into, detail::kHeaderBytes + offset)
                              : 0;
  if (got != into.size()) {
    throw make_error<CorruptData>("the slot " + path_.native() + " ends at image byte " +
                                      std::to_string(capacity) + ", before byte " +
                                      std::to_string(offset) + " + " + std::to_string(into.size()),
                                  {}, {}, path_.native());
  }
}

}  // namespace meshstage
