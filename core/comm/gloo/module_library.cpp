// The module libmeshstage_gloo.so: with guarded_pair_impl.hpp the only file that includes Gloo.
// See module_table_impl.hpp.
#include <gloo/config.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <memory>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/gloo/guarded_pair_impl.hpp>
#include <meshstage/core/comm/gloo/module_table_impl.hpp>

namespace meshstage::gloo_module {

namespace transport = ::gloo::transport;

// Gloo's own timeouts poison a whole context, so none is ever reached: deadlines are kept by the
// caller, who interrupts.
constexpr std::chrono::milliseconds kNoTimeout = std::chrono::hours(24 * 365);

struct Group {
  std::shared_ptr<transport::Device> device;
  std::shared_ptr<transport::Context> context;
  std::vector<int> peers;
  Mutex closing;
  bool closed MESHSTAGE_GUARDED_BY(closing) = false;
};

struct Transfer {
  std::unique_ptr<transport::UnboundBuffer> buffer;
  bool is_send = false;
};

namespace {

// Gloo writes with writev(2), which raises SIGPIPE on a connection that the peer has closed. The
// signal goes to the thread that wrote: it is blocked meanwhile and taken out again if we caused
// it. Gloo's own thread inherits the mask of the thread that makes the device, so there it stays
// blocked.
class SigpipeGuard {
 public:
  SigpipeGuard() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &old_);
  }
  SigpipeGuard(const SigpipeGuard&) = delete;
  SigpipeGuard& operator=(const SigpipeGuard&) = delete;
  ~SigpipeGuard() {
    if (!was_pending_) {
      const timespec now{};
      while (sigtimedwait(&pipe_, nullptr, &now) == SIGPIPE) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &old_, nullptr);
  }

 private:
  sigset_t pipe_{};
  sigset_t old_{};
  bool was_pending_ = false;
};

void put(ErrorText* error, const char* text) {
  std::snprintf(error->text, sizeof(error->text), "%s", text);
}

// Runs `f`; an exception becomes text and `failed`. Gloo throws nothing but std::exception.
template <class R, class F>
R guarded(ErrorText* error, R failed, F&& f) noexcept {
  try {
    return f();
  } catch (const std::exception& e) {
    put(error, e.what());
  }
  return failed;
}

Nonce nonce_at(const unsigned char* bytes) {
  Nonce nonce{};
  std::memcpy(nonce.data(), bytes, nonce.size());
  return nonce;
}

Group* open(const char* host, int rank, int size, const int* peers, const unsigned char* nonces,
            std::size_t peer_count, ErrorText* error) {
  return guarded<Group*>(error, nullptr, [&] {
    const SigpipeGuard no_signal;
    auto group = std::make_unique<Group>();
    transport::tcp::attr attributes(host);
    group->device = transport::tcp::CreateDevice(attributes);
    group->context = group->device->createContext(rank, size);
    group->context->setTimeout(kNoTimeout);
    group->peers.assign(peers, peers + peer_count);
    auto* const context = static_cast<transport::tcp::Context*>(group->context.get());
    auto* const device = static_cast<transport::tcp::Device*>(group->device.get());
    for (const int peer : group->peers) {  // as createPair(), but with our pairs
      context->getPair(peer) =
          std::make_unique<GuardedPair>(context, device, peer, kNoTimeout, nonce_at(nonces));
      nonces += kNonceBytes;
    }
    return group.release();
  });
}

std::size_t address(Group* group, int peer, unsigned char* bytes, std::size_t capacity) {
  const std::vector<char> own = group->context->getPair(peer)->address().bytes();
  std::memcpy(bytes, own.data(), own.size() < capacity ? own.size() : capacity);
  return own.size();
}

Result connect(Group* group, int peer, const unsigned char* bytes, std::size_t length,
               const unsigned char* nonce, ErrorText* error) {
  return guarded(error, kFailed, [&] {
    const SigpipeGuard no_signal;
    auto& pair = group->context->getPair(peer);
    static_cast<GuardedPair&>(*pair).set_peer_nonce(nonce_at(nonce));
    pair->connect(std::vector<char>(bytes, bytes + length));
    return kDone;
  });
}

Transfer* send(Group* group, int peer, std::uint64_t slot, const void* bytes, std::size_t length,
               ErrorText* error) {
  return guarded<Transfer*>(error, nullptr, [&] {
    const SigpipeGuard no_signal;
    auto transfer = std::make_unique<Transfer>();
    transfer->is_send = true;
    // Gloo only reads it; its buffers do not know const.
    transfer->buffer = group->context->createUnboundBuffer(const_cast<void*>(bytes), length);
    transfer->buffer->send(peer, slot, 0, length);
    return transfer.release();
  });
}

Transfer* receive(Group* group, int peer, std::uint64_t slot, void* target, std::size_t length,
                  ErrorText* error) {
  return guarded<Transfer*>(error, nullptr, [&] {
    const SigpipeGuard no_signal;
    auto transfer = std::make_unique<Transfer>();
    transfer->buffer = group->context->createUnboundBuffer(target, length);
    transfer->buffer->recv(peer, slot, 0, length);
    return transfer.release();
  });
}

Result wait(Transfer* transfer, ErrorText* error) {
  return guarded(error, kFailed, [&] {
    const bool complete = transfer->is_send ? transfer->buffer->waitSend(nullptr, kNoTimeout)
                                            : transfer->buffer->waitRecv(nullptr, kNoTimeout);
    return complete ? kDone : kInterrupted;
  });
}

void interrupt(Transfer* transfer) {
  if (transfer->is_send) {
    transfer->buffer->abortWaitSend();
  } else {
    transfer->buffer->abortWaitRecv();
  }
}

std::uint64_t moved(Group* group, int peer) {
  return static_cast<GuardedPair&>(*group->context->getPair(peer)).moved();
}

void release(Transfer* transfer) { delete transfer; }

void close_pairs(Group* group) {
  const MutexLock lock(group->closing);
  if (group->closed) return;
  group->closed = true;
  const SigpipeGuard no_signal;
  for (const int peer : group->peers) {
    if (auto& pair = group->context->getPair(peer)) pair->close();
  }
}

void destroy(Group* group) {
  close_pairs(group);
  delete group;
}

constexpr Table kTable = {kGlooModuleAbi, "Gloo " GLOO_MODULE_VERSION,
                          open,           address,
                          connect,        send,
                          receive,        wait,
                          interrupt,      moved,
                          release,        close_pairs,
                          destroy};

}  // namespace

}  // namespace meshstage::gloo_module

// Of the type by which core/os/module_file.cpp calls it.
extern "C" __attribute__((visibility("default"))) const void* meshstage_gloo_module_table() {
  return &meshstage::gloo_module::kTable;
}
