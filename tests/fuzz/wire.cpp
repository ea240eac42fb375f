// Any bytes on a control link: CorruptData, or a message that encodes to the same bytes again; and
// any sequence of messages and events is safe for the protocol in any state. The input is a list of
// [kind, sender, length, bytes]; the header is made, so that the bodies are reached.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/transition.hpp>

using namespace meshstage;
using namespace meshstage::protocol;

namespace {

constexpr int kWorld = 4;
const WireContext kContext{0x1122334455667788, kWorld};

/// Takes a driver's part: answers what the protocol asks for, one way or the other.
class Driver {
 public:
  explicit Driver(int rank)
      : state_(make_state(make_config(rank, kWorld, {}, {}, {{1, 3}, {0}, {3}, {1, 2}}))) {
    feed(Formed{2});
  }
  void feed(const Event& event) {
    std::vector<Action> actions;
    transition(state_, event, actions);
    if (state_.rounds.size() > 10000 || state_.files.size() > 1000) std::abort();
    for (const auto& action : actions) {
      if (const auto* send = std::get_if<Send>(&action)) {
        if (send->to < 0 || send->to >= kWorld || send->to == state_.config->rank) std::abort();
        const auto bytes = encode(kContext, state_.config->rank, send->message);
        if (decode(kContext, state_.config->rank, bytes) != send->message) std::abort();
      }
      if (!std::holds_alternative<Send>(action)) asked_.push_back(action);
    }
  }
  /// Answers one thing that was asked for; `how`: which, and how it went.
  void answer(std::uint8_t how) {
    if (asked_.empty()) return;
    const auto at = asked_.begin() + static_cast<std::ptrdiff_t>(how % asked_.size());
    const Action action = *at;
    asked_.erase(at);
    const bool good = (how & 0x80U) == 0;
    std::visit([&](const auto& a) { answer(a, good); }, action);
  }
  void trainer(std::uint8_t what) {
    const std::uint64_t step = what / 4U;
    switch (what % 4U) {
      case 0:
        return feed(StageRequested{step, {8192, 4096, {1, 2}}});
      case 1:
        return feed(StageSkipped{step});
      case 2:
        return feed(FinishRequested{});
      default:
        return feed(Persisted{{2, step}});
    }
  }

 private:
  template <class A>
  void answer(const A& a, bool good) {
    if constexpr (std::is_same_v<A, VerifySlots>) {
      feed(SlotsVerified{good ? claims(Place::kOwnSlot) : std::vector<Claim>{}, kNoImage});
    } else if constexpr (std::is_same_v<A, VerifyDisk>) {
      feed(FilesVerified{good ? claims(Place::kOwnFile) : std::vector<Claim>{}, kNoImage});
    } else if constexpr (std::is_same_v<A, Fetch>) {
      check_slot(a.source.owner, a.slot);
      if (good) return feed(Fetched{a.source.owner});
      feed(FetchFailed{a.source.owner, ErrorKind::kIo, "no"});
    } else if constexpr (std::is_same_v<A, ServeLent>) {
      check_slot(state_.config->rank, a.slot);
      if (!names(state_.config->borrowers, a.to)) std::abort();
      if (!good) feed(FetchFailed{a.to, ErrorKind::kCorruptData, "no"});
    } else if constexpr (std::is_same_v<A, StopBorrowing>) {
      if (!names(lenders(), a.from)) std::abort();
    } else if constexpr (std::is_same_v<A, CheckStructure>) {
      check_slot(state_.config->rank, a.slot);
      feed(StructureChecked{good ? "" : "w", good ? "" : "differs"});
    } else if constexpr (std::is_same_v<A, RestoreTrainer>) {
      check_slot(state_.config->rank, a.slot);
    } else if constexpr (std::is_same_v<A, WriteOwn>) {
      check_slot(state_.config->rank, a.slot);
      if (good) return feed(own_sealed(a.id));
      feed(OwnFailed{a.id, "no"});
    } else if constexpr (std::is_same_v<A, AcceptReplica>) {
      check_slot(a.ward, a.slot);
      feed(ReplicaReady{a.ward, a.id, good});
      if (good) return feed(ReplicaSealed{a.ward, a.id});
      feed(ReplicaFailed{a.ward, a.id, "no"});
    } else if constexpr (std::is_same_v<A, AskStore>) {
      if (good) return feed(StoreAnswered{a.id});
      feed(StoreAnswered{a.id, StoreAnswered::Found::kNothing, "no Store"});
    }
  }
  void check_slot(int owner, int slot) const {
    const bool known = owner == state_.config->rank || names(state_.config->wards, owner);
    if (!known || slot < 0 || slot > 1) std::abort();
  }
  static bool names(const std::vector<int>& ranks, int rank) {
    return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
  }
  [[nodiscard]] const std::vector<int>& lenders() const {
    return state_.config->lenders[static_cast<std::size_t>(state_.config->rank)];
  }
  /// What every rank says that it borrows and lends.
  static constexpr Digest kLent{1, 2};
  [[nodiscard]] OwnSealed own_sealed(ImageId id) const {
    OwnSealed event{id, {7, 8}, {}, {}};
    event.borrowed.assign(lenders().size(), {id, 100, kLent});
    event.lent.assign(state_.config->borrowers.size(), kLent);
    return event;
  }
  [[nodiscard]] std::vector<Claim> claims(Place place) const {
    Claim claim;
    claim.at = claim.owner = state_.config->rank;
    claim.place = place;
    claim.world_size = kWorld;
    claim.id = {1, 85};
    claim.base = {1, 80};
    claim.sizes = {8192, 4096, {1, 2}};
    for (const int rank : state_.config->borrowers) claim.lent.push_back({rank, kLent});
    claim.sizes.loans = static_cast<std::uint32_t>(claim.lent.size());
    return {claim};
  }

  State state_;
  std::vector<Action> asked_;
};

void check_raw(std::span<const std::byte> bytes) {
  try {
    const Message message = decode(kContext, 2, bytes);
    const auto again = encode(kContext, 2, message);
    if (decode(kContext, 2, again) != message) std::abort();
  } catch (const CorruptData&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::span<const std::byte> in = std::as_bytes(std::span(data, size));
  check_raw(in);
  if (in.empty()) return 0;
  Driver driver(std::to_integer<int>(in[0]) % kWorld);
  in = in.subspan(1);
  while (in.size() >= 2) {
    const auto kind = std::to_integer<std::uint8_t>(in[0]);
    const auto next = std::to_integer<std::uint8_t>(in[1]);
    in = in.subspan(2);
    if (kind >= 0xC0U) {
      driver.answer(next);
      continue;
    }
    if (kind >= 0x80U) {
      driver.trainer(next);
      continue;
    }
    if (in.empty()) break;
    const int sender = next % kWorld;
    const auto length = std::min<std::size_t>(std::to_integer<std::size_t>(in[0]), in.size() - 1);
    auto bytes = encode(kContext, sender, {next < 0x80U ? 2U : next, Ready{}});
    bytes[6] = static_cast<std::byte>(kind % (std::variant_size_v<Body> + 1));
    bytes.insert(bytes.end(), in.begin() + 1, in.begin() + 1 + static_cast<std::ptrdiff_t>(length));
    in = in.subspan(1 + length);
    try {
      const Message message = decode(kContext, sender, bytes);
      if (encode(kContext, sender, message) != bytes) std::abort();
      driver.feed(Received{sender, message});
    } catch (const CorruptData& e) {
      if (e.rank() != sender) std::abort();
    }
  }
  return 0;
}
