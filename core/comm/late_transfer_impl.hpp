#pragma once
#include <cstddef>
#include <exception>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/exception_of.hpp>

/// Private to comm.
namespace meshstage::detail {

/// "rank 3 (8 bytes to it from rank 1)", of a transfer between `peer` and this `rank`. The peer
/// comes first, because an error of the transfer is about the peer.
[[nodiscard]] inline std::string transfer_text(int peer, std::size_t bytes, bool is_send,
                                               int rank) {
  return "rank " + std::to_string(peer) + " (" + std::to_string(bytes) +
         (is_send ? " bytes to it from rank " : " bytes from it to rank ") + std::to_string(rank) +
         ")";
}

/// The transfer of a group that was late last, until it is done. If a transfer of the group is
/// given up, the late one is the reason. Threads: one at a time; the group's mutex guards it.
class LateTransfer {
 public:
  /// Throws `why`, that `transfer` is late.
  [[noreturn]] void raise(const void* transfer, std::exception_ptr why) {
    note(transfer, why);
    std::rethrow_exception(std::move(why));
  }
  /// The same where `why` was thrown already.
  void note(const void* transfer, std::exception_ptr why) noexcept {
    transfer_ = transfer;
    why_ = std::move(why);
  }
  void done(const void* transfer) noexcept {
    if (transfer_ == transfer) note(nullptr, nullptr);
  }
  /// With what the group ends because a transfer is given up: with the error of the late one, or
  /// with Cancelled, whose text `text` makes.
  template <class Text>
  [[nodiscard]] std::exception_ptr reason(Text text) const noexcept {
    return why_ ? why_ : exception_of([&] { return Cancelled(text()); });
  }

 private:
  const void* transfer_ = nullptr;
  std::exception_ptr why_;
};

}  // namespace meshstage::detail
