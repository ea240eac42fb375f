#include <meshstage/core/vault/names_impl.hpp>

#include <charconv>

namespace meshstage::detail {

namespace {

constexpr std::string_view kPrefix = "meshstage-";
constexpr std::string_view kControl = ".control";
constexpr std::string_view kLock = ".lock";
constexpr std::string_view kTemporary = ".tmp-";
constexpr std::string_view kOwn = "-own";

std::string base_name(std::uint32_t uid, std::string_view job, int rank) {
  return std::string(kPrefix) + std::to_string(uid) + "-" + std::string(job) + "-r" +
         std::to_string(rank);
}

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (text.size() < suffix.size() || text.substr(text.size() - suffix.size()) != suffix)
    return false;
  text.remove_suffix(suffix.size());
  return true;
}

/// A decimal number, written as to_string() writes it.
template <class T>
std::optional<T> to_number(std::string_view digits) {
  T value{};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < T{})
    return std::nullopt;
  if (std::to_string(value) != digits) return std::nullopt;
  return value;
}

/// Takes `mark` and the number behind it off the end: "...-i12", "-i" gives 12.
template <class T>
std::optional<T> take_number(std::string_view& text, std::string_view mark) {
  const std::size_t at = text.find_last_not_of("0123456789");
  if (at == std::string_view::npos) return std::nullopt;
  const auto value = to_number<T>(text.substr(at + 1));
  std::string_view rest = text.substr(0, at + 1);
  if (!value || !take_suffix(rest, mark)) return std::nullopt;
  text = rest;
  return value;
}

/// Takes "-own0" or "-w3-1" off the end.
bool take_slot(std::string_view& text, VaultFileName& out) {
  const auto index = take_number<int>(text, "");
  if (!index || *index > 1) return false;
  out.slot.index = *index;
  if (take_suffix(text, kOwn)) {
    out.slot.owner_rank = -1;  // the rank itself, known later
    return true;
  }
  if (!take_suffix(text, "-")) return false;
  const auto ward = take_number<int>(text, "-w");
  out.slot.owner_rank = ward.value_or(0);
  return ward.has_value();
}

std::optional<VaultFileName> parse_lasting_name(std::string_view name) {
  const std::string_view whole = name;
  VaultFileName out;
  if (take_suffix(name, kControl)) {
    out.kind = VaultFileKind::kControl;
  } else {
    if (take_suffix(name, kLock)) {
      out.kind = VaultFileKind::kLock;
    } else {
      out.kind = VaultFileKind::kSlot;
      if (!take_slot(name, out)) return std::nullopt;
    }
    const auto incarnation = take_number<std::uint64_t>(name, "-i");
    if (!incarnation || *incarnation == 0) return std::nullopt;
    out.incarnation = *incarnation;
  }
  const auto rank = take_number<int>(name, "-r");
  if (!rank || name.substr(0, kPrefix.size()) != kPrefix) return std::nullopt;
  out.rank = *rank;
  name.remove_prefix(kPrefix.size());
  const std::size_t dash = name.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto uid = to_number<std::uint32_t>(name.substr(0, dash));
  out.job = name.substr(dash + 1);
  if (!uid || !is_valid_job_name(out.job)) return std::nullopt;
  out.uid = *uid;
  if (out.kind == VaultFileKind::kSlot) {
    if (out.slot.owner_rank < 0) out.slot.owner_rank = out.rank;
    // "-w2-0" of rank 2 is a name nobody writes.
    if (slot_name(out.uid, out.job, out.rank, out.incarnation, out.slot) != whole)
      return std::nullopt;
  }
  return out;
}

}  // namespace

std::string control_name(std::uint32_t uid, std::string_view job, int rank) {
  return base_name(uid, job, rank) + std::string(kControl);
}

std::string lock_name(std::uint32_t uid, std::string_view job, int rank,
                      std::uint64_t incarnation) {
  return base_name(uid, job, rank) + "-i" + std::to_string(incarnation) + std::string(kLock);
}

std::string slot_name(std::uint32_t uid, std::string_view job, int rank, std::uint64_t incarnation,
                      SlotKey key) {
  std::string name = base_name(uid, job, rank) + "-i" + std::to_string(incarnation);
  if (key.owner_rank == rank) {
    name += kOwn;
  } else {
    name += "-w" + std::to_string(key.owner_rank) + "-";
  }
  return name + std::to_string(key.index);
}

std::optional<VaultFileName> parse_vault_name(std::string_view name) {
  if (auto out = parse_lasting_name(name)) return out;
  const std::size_t at = name.rfind(kTemporary);
  if (at == std::string_view::npos) return std::nullopt;
  auto out = parse_lasting_name(name.substr(0, at));
  if (!out || out->kind == VaultFileKind::kSlot) return std::nullopt;
  out->kind = VaultFileKind::kTemporary;
  return out;
}

}  // namespace meshstage::detail
