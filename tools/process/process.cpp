#include "tools/process/process.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools {

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Descriptor::reset() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Pipe::Pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw_errno("pipe2", "", errno);
  read = Descriptor(ends[0]);
  write = Descriptor(ends[1]);
}

std::int64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

std::string End::text() const {
  return (signalled ? "signal " : "exit code ") + std::to_string(code);
}

End End::of(int wait_status) {
  return WIFSIGNALED(wait_status) ? End{true, WTERMSIG(wait_status)}
                                  : End{false, WEXITSTATUS(wait_status)};
}

std::vector<char*> exec_array(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (auto& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace meshstage::tools
