#pragma once
#include <gloo/transport/tcp/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/tcp/pair.h>
#include <unistd.h>

#include <exception>
#include <mutex>
#include <utility>

namespace meshstage::gloo_module {

/// Gloo's connection to one peer, which fails alone where Gloo would end the process.
///
/// Gloo's own thread calls handleEvents() of each pair, and nobody catches what it throws: a peer
/// that resets its connection before it was accepted (it was killed, or gave up connecting), a
/// message longer than its receive, one that nobody waits for, or bytes that are no message reach
/// std::terminate. Here they make the pair fail, as a broken connection does: who waits for it, or
/// for a transfer of it, gets the exception.
class GuardedPair final : public ::gloo::transport::tcp::Pair {
 public:
  using Pair::Pair;

  /// Gloo's thread. As Pair's, but for the catch; the lock is held through both, because a thread
  /// of ours that closes the pair holds it while it waits for Gloo's thread.
  void handleEvents(int events) override {
    const std::unique_lock lock(m_, std::try_to_lock);
    if (!lock) return;  // The event shows again.
    try {
      if (state_ == CONNECTED) {
        handleReadWrite(events);
      } else if (state_ == LISTENING) {
        handleListening();
      } else if (state_ == CONNECTING) {
        handleConnecting();
      }
    } catch (const std::exception&) {
      fail(std::current_exception());
    }
  }

 private:
  void fail(std::exception_ptr cause) {
    if (ex_ != nullptr || state_ == CLOSED) return;
    if (state_ == LISTENING && fd_ >= 0) {
      // Accepted, but not yet known to the loop, which Pair would take it from.
      ::close(fd_);
      fd_ = -1;
    }
    // The receive whose message had begun is in no list that Pair tells: put it back.
    if (rx_.ubuf) {
      localPendingRecv_[rx_.preamble.slot].emplace_front(rx_.ubuf, rx_.offset, rx_.nbytes);
    }
    signalException(std::move(cause));
  }
};

}  // namespace meshstage::gloo_module
