#include "tools/process/process.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <utility>

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
