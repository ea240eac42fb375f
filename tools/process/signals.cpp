#include "tools/process/signals.hpp"

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools {

Signals::Signals(std::initializer_list<int> wanted_signals) {
  sigset_t wanted;
  ::sigemptyset(&wanted);
  ::sigaddset(&wanted, SIGCHLD);
  for (const int s : wanted_signals) ::sigaddset(&wanted, s);
  ::pthread_sigmask(SIG_BLOCK, &wanted, &before_);
  descriptor_ = Descriptor(::signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC));
  if (descriptor_.get() < 0) {
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    throw_errno("signalfd", "", error);
  }
}

Signals::~Signals() {
  (void)take_all();  // so that none of them acts once it is let through again
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

std::vector<int> Signals::take_all() {
  std::vector<int> taken;
  signalfd_siginfo info{};
  while (::read(descriptor_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    if (info.ssi_signo != SIGCHLD) taken.push_back(static_cast<int>(info.ssi_signo));
  }
  return taken;
}

std::optional<int> Signals::take() {
  const std::vector<int> taken = take_all();
  return taken.empty() ? std::nullopt : std::optional(taken.back());
}

}  // namespace meshstage::tools
