#pragma once
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <meshstage/core/comm/socket/framing_impl.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>

namespace meshstage::framing {

struct Frame {
  std::uint16_t type = 0;
  std::span<const std::byte> payload;  ///< Valid until the stream is read again.
  const char* wrong = nullptr;         ///< What is wrong with the bytes that came, or null.
};

/// One end of a connection that carries frames. The socket does not block: the stream's owner waits
/// for it. Threads: one at a time.
class FrameStream {
 public:
  FrameStream() = default;
  FrameStream(const FrameFormat& format, net::Descriptor fd)
      : format_(&format), fd_(std::move(fd)) {}

  [[nodiscard]] net::Descriptor& descriptor() noexcept { return fd_; }
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  /// From now on a frame with a longer payload is wrong, and the stream takes no more memory than
  /// for one such frame. Meant for a connection whose other end has not yet said who it is.
  void limit_payload(std::size_t bytes) noexcept { limit_ = bytes; }
  void lift_limit() noexcept { limit_.reset(); }

  /// Reads once, a bounded amount, so that one busy peer does not starve the others. Returns what
  /// recv() returns: the number of bytes, 0 at the end, -1 with errno.
  ssize_t read_some() {
    constexpr std::size_t kMost = std::size_t{256} * 1024;
    const std::size_t room = limit_ ? std::min(kMost, kHeaderBytes + *limit_) : kMost;
    in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(std::exchange(taken_, 0)));
    const std::size_t old = in_.size();
    in_.resize(old + room);
    const ssize_t n = ::recv(fd_.get(), in_.data() + old, room, 0);
    const int error = errno;
    in_.resize(old + static_cast<std::size_t>(n > 0 ? n : 0));
    errno = error;
    return n;
  }
  /// The next whole frame, or a Frame that says what is wrong with the bytes; nothing if more bytes
  /// must come first.
  std::optional<Frame> next() {
    const std::span<const std::byte> left = std::span(in_).subspan(taken_);
    if (left.size() < kHeaderBytes) return std::nullopt;
    const Header header = decode_header(*format_, left.data(), heard_);
    if (header.wrong != nullptr) return Frame{0, {}, header.wrong};
    if (limit_ && header.length > *limit_) return Frame{0, {}, "a frame that is too long for now"};
    if (left.size() - kHeaderBytes < header.length) return std::nullopt;
    Frame frame{header.type, left.subspan(kHeaderBytes, header.length), nullptr};
    frame.wrong = header.wrong_payload(frame.payload);
    ++heard_;
    taken_ += kHeaderBytes + header.length;
    return frame;
  }
  /// Drops the bytes that were read but not taken.
  void forget_input() noexcept {
    in_.clear();
    taken_ = 0;
  }

  void queue(std::uint16_t type, std::span<const std::byte> payload) {
    out_.push_back(encode_frame(*format_, type, payload, sent_++));
    out_bytes_ += out_.back().size();
  }
  [[nodiscard]] bool has_output() const noexcept { return !out_.empty(); }
  [[nodiscard]] std::size_t output_bytes() const noexcept { return out_bytes_; }
  struct Flushed {
    std::size_t bytes = 0;
    bool full = false;  ///< The socket takes no more for now.
    int error = 0;      ///< errno of a broken connection; the output is dropped then.
  };
  /// Writes what the socket takes.
  Flushed flush() {
    Flushed result;
    while (!out_.empty() && !result.full) {
      const auto& frame = out_.front();
      const ssize_t n =
          ::send(fd_.get(), frame.data() + offset_, frame.size() - offset_, MSG_NOSIGNAL);
      if (n < 0 && errno == EAGAIN) {
        result.full = true;
      } else if (n < 0 && errno != EINTR) {
        result.error = errno;
        out_.clear();
        offset_ = out_bytes_ = 0;
      } else if (n >= 0) {
        result.bytes += static_cast<std::size_t>(n);
        offset_ += static_cast<std::size_t>(n);
        if (offset_ < frame.size()) continue;
        out_bytes_ -= frame.size();
        out_.pop_front();
        offset_ = 0;
      }
    }
    return result;
  }

 private:
  const FrameFormat* format_ = nullptr;
  net::Descriptor fd_;
  std::vector<std::byte> in_;
  std::size_t taken_ = 0;  // of in_, by next()
  std::deque<std::vector<std::byte>> out_;
  std::size_t offset_ = 0;  // of the first of out_, already written
  std::size_t out_bytes_ = 0;
  std::optional<std::size_t> limit_;
  std::uint32_t sent_ = 0;   // also the number of the next frame
  std::uint32_t heard_ = 0;  // also the number that is due
};

}  // namespace meshstage::framing
