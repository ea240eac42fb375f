#include <meshstage/core/comm/control_links.hpp>

namespace meshstage {

std::string_view to_string(LostReason reason) noexcept {
  switch (reason) {
    case LostReason::kEndOfFile:
      return "end of file";
    case LostReason::kSilent:
      return "silent";
    case LostReason::kProtocol:
      return "protocol error";
    case LostReason::kClosed:
      return "closed";
  }
  return "lost";
}

}  // namespace meshstage
