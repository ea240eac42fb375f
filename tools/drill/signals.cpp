#include "tools/drill/signals.hpp"

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools::drill {

Signals::Signals() {
  sigset_t wanted;
  ::sigemptyset(&wanted);
  for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) ::sigaddset(&wanted, s);
  ::pthread_sigmask(SIG_BLOCK, &wanted, &before_);
  descriptor_ = Descriptor(::signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC));
  if (descriptor_.get() < 0) {
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    throw_errno("signalfd", "", error);
  }
}

Signals::~Signals() {
  take();  // so that none of them acts once it is let through again
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

std::optional<int> Signals::take() {
  std::optional<int> ending;
  signalfd_siginfo info{};
  while (::read(descriptor_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    if (info.ssi_signo != SIGCHLD) ending = static_cast<int>(info.ssi_signo);
  }
  return ending;
}

}  // namespace meshstage::tools::drill
