#pragma once
// The names of a vault's files, with P = meshstage-<uid>-<job>-r<rank>:
//   P.control                    newest incarnation, owners, generation: control_impl.hpp
//   P-i<incarnation>.lock        empty; its record lock is the ownership
//   P-i<incarnation>-own0        slots of the rank itself (0 and 1): header page + image
//   P-i<incarnation>-w<ward>-0   slots for a ward (0 and 1)
// and while one of the first two is being made, its name + ".tmp-<pid>-<instance>".
// Names are parsed from the right, so every valid job name can be read back.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <meshstage/core/vault/slot.hpp>

namespace meshstage::detail {

enum class VaultFileKind : std::uint8_t { kControl, kLock, kSlot, kTemporary };

struct VaultFileName {
  VaultFileKind kind = VaultFileKind::kControl;
  std::uint32_t uid = 0;
  std::string job;
  int rank = 0;
  std::uint64_t incarnation = 0;  // kLock, kSlot
  SlotKey slot;                   // kSlot
};

std::string control_name(std::uint32_t uid, std::string_view job, int rank);
std::string lock_name(std::uint32_t uid, std::string_view job, int rank, std::uint64_t incarnation);
std::string slot_name(std::uint32_t uid, std::string_view job, int rank, std::uint64_t incarnation,
                      SlotKey key);
/// Nothing for any other file. A temporary file gives the name that it was to get.
std::optional<VaultFileName> parse_vault_name(std::string_view name);

}  // namespace meshstage::detail
