#include <array>

#include <meshstage/core/protocol/messages.hpp>

namespace meshstage::protocol {

const char* name_of(const Body& body) noexcept {
  static constexpr std::array<const char*, std::variant_size_v<Body>> kNames = {
      "offer",       "accept",  "sealed",   "yes",         "complete",
      "failed",      "have",    "ask-disk", "choice",      "ready",
      "established", "give-up", "on-disk",  "all-on-disk", "want-finish",
      "finish",      "death",   "borrow",   "differ",      "stream-start",
      "want",        "overdue", "publish",  "published",   "moved"};
  return kNames[body.index()];
}

}  // namespace meshstage::protocol
