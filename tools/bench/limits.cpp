#include "tools/bench/limits.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/memory/first_touch.hpp>

namespace meshstage::tools::bench {
namespace {

constexpr std::uint64_t kDigestBlock = std::uint64_t{4} << 20U;
constexpr std::uint64_t kBuffer = std::uint64_t{256} << 20U;  // more than a cache

Storage warm(std::uint64_t bytes, int fill) {
  auto storage = Storage::allocate(std::max<std::uint64_t>(bytes, 1));
  std::memset(storage.data(), fill, storage.nbytes());
  return storage;
}

[[noreturn]] void fail(const char* call) { throw_errno(call, "a socket of the benchmark", errno); }

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

int tcp_socket() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  return fd;
}

void send_bytes(int fd, std::span<const std::byte> from, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes;) {
    const auto in = at % from.size();
    const auto n = ::send(fd, from.data() + in,
                          std::min<std::uint64_t>(bytes - at, from.size() - in), MSG_NOSIGNAL);
    if (n <= 0) fail("send");
    at += static_cast<std::uint64_t>(n);
  }
}

void receive_bytes(int fd, std::span<std::byte> to, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes;) {
    const auto in = at % to.size();
    const auto n =
        ::recv(fd, to.data() + in, std::min<std::uint64_t>(bytes - at, to.size() - in), 0);
    if (n <= 0) fail("recv");
    at += static_cast<std::uint64_t>(n);
  }
}

}  // namespace

unsigned fastest(const std::function<void(unsigned)>& once, unsigned most) {
  unsigned best = 1;
  double least = 0;
  for (const unsigned n : kTried) {
    if (n > most) break;
    Samples samples;
    for (int i = 0; i < 3; ++i) samples.add(seconds_of([&] { once(n); }));
    if (least != 0 && samples.median() >= least) continue;
    least = samples.median();
    best = n;
  }
  return best;
}

MemoryLimit::MemoryLimit(std::uint64_t bytes)
    : bytes_(bytes),
      from_(warm(bytes, 1)),
      to_(warm(bytes, 2)),
      digests_((bytes + kDigestBlock - 1) / kDigestBlock) {}

void MemoryLimit::each_part(unsigned threads,
                            const std::function<void(std::uint64_t, std::uint64_t)>& part) {
  const auto blocks = digests_.size();
  const auto parts = std::min<std::size_t>(threads, std::max<std::size_t>(blocks, 1));
  crew_.run(
      parts,
      [&](std::size_t i) {
        const auto begin = blocks * i / parts * kDigestBlock;
        const auto end = std::min(bytes_, blocks * (i + 1) / parts * kDigestBlock);
        part(begin, end - begin);
      },
      threads);
}

void MemoryLimit::copy(unsigned threads) {
  each_part(threads, [&](std::uint64_t at, std::uint64_t n) {
    fast_copy(to_.bytes().subspan(at, n), from_.bytes().subspan(at, n),
              bytes_ >= kStreamingCrossover ? CopyHint::kStreaming : CopyHint::kCached);
  });
}

void MemoryLimit::digest(unsigned threads) {
  each_part(threads, [&](std::uint64_t at, std::uint64_t n) {
    for (std::uint64_t done = 0; done < n; done += kDigestBlock) {
      digests_[(at + done) / kDigestBlock] =
          digest64(from_.bytes().subspan(at + done, std::min(kDigestBlock, n - done)));
    }
  });
}

bool MemoryLimit::copied() const {
  const auto to = to_.bytes();
  for (std::size_t i = 0; i < digests_.size(); ++i) {
    const auto at = i * kDigestBlock;
    if (digests_[i] != digest64(to.subspan(at, std::min(kDigestBlock, bytes_ - at)))) return false;
  }
  return true;
}

SlotLimit::SlotLimit(const std::filesystem::path& vault_directory, std::uint64_t had,
                     std::uint64_t bytes)
    : had_(std::min(had, bytes)), bytes_(bytes) {
  auto& fs = real_file_system();
  fs.make_directories(vault_directory);
  const auto path = vault_directory / ("meshstage-bench-slot-" + std::to_string(::getpid()));
  file_ = fs.open(path, OpenMode::kCreateExclusive);
  fs.unlink(path);  // the memory goes with the process, however it ends
  if (had_ == 0) return;
  reserve_memory(*file_, 0, had_);
  mapping_ = Mapping(*file_, had_, MapAccess::kReadWrite);
  first_touch(mapping_.bytes());
}

void SlotLimit::grow() {
  if (bytes_ == had_) return;
  reserve_memory(*file_, had_, bytes_);
  mapping_ = Mapping(*file_, bytes_, MapAccess::kReadWrite);
  first_touch(mapping_.bytes());
}

std::uint64_t digest_files(const std::filesystem::path& directory, unsigned part, unsigned parts,
                           unsigned threads) {
  Crew crew("bench", threads);
  std::uint64_t all = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = MappedFile::open(real_file_system(), entry.path());
    const auto bytes = file->bytes();
    const std::uint64_t begin = bytes.size() * part / parts;
    const std::uint64_t end = bytes.size() * (part + 1) / parts;
    const auto mine = bytes.subspan(begin, end - begin);
    std::vector<std::uint64_t> digests((mine.size() + kDigestBlock - 1) / kDigestBlock);
    crew.run(digests.size(), [&](std::size_t i) {
      const auto at = i * kDigestBlock;
      digests[i] = digest64(mine.subspan(at, std::min(kDigestBlock, mine.size() - at)));
    });
    all += mine.size();
  }
  return all;
}

DeviceLimit::DeviceLimit(Device device, std::uint64_t bytes)
    : host_(device, bytes),
      device_(device),
      block_(DeviceRuntime::of(device.type).allocate(device, bytes)),
      bytes_(bytes),
      stream_(DeviceRuntime::of(device.type).open_stream(device)) {}

void DeviceLimit::copy(CopyDirection direction) {
  DeviceCopy all{host_.data(), block_.get(), bytes_};
  if (direction == CopyDirection::kToDevice) all = {block_.get(), host_.data(), bytes_};
  if (direction == CopyDirection::kWithinDevice) {
    if (second_block_ == nullptr)
      second_block_ = DeviceRuntime::of(device_.type).allocate(device_, bytes_);
    all.target = second_block_.get();
  }
  stream_.copy(direction, {&all, 1});
  stream_.record().wait();
}

Launcher::Launcher(Device device, std::uint64_t bytes)
    : bytes_(bytes),
      memory_(DeviceRuntime::of(device.type).allocate(device, 2 * bytes)),
      stream_(DeviceRuntime::of(device.type).open_stream(device)) {}

void Launcher::launch(const std::function<bool()>& over) {
  const DeviceCopy copy{memory_.get(), memory_.get() + bytes_, bytes_};
  do {
    launches_.done.add(seconds_of([&] {
      launches_.calls.add(
          seconds_of([&] { stream_.gather(CopyDirection::kWithinDevice, {&copy, 1}); }));
      const auto event = stream_.record();
      while (!event.done()) {
      }
    }));
  } while (!over());
}

TcpRing::TcpRing() : listener_(tcp_socket()), from_(warm(kBuffer, 1)), to_(warm(kBuffer, 2)) {
  auto address = loopback(0);
  socklen_t length = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener_, any, length) != 0 || ::listen(listener_, 64) != 0 ||
      ::getsockname(listener_, any, &length) != 0) {
    fail("listen");
  }
  port_ = ntohs(address.sin_port);
}

TcpRing::~TcpRing() {
  for (const int fd : out_) ::close(fd);
  for (const int fd : in_) ::close(fd);
  ::close(listener_);
}

void TcpRing::connect(std::uint16_t holder_port) {
  const int on = 1;
  for (unsigned i = 0; i < kTried.back(); ++i) {
    const auto address = loopback(holder_port);
    out_.push_back(tcp_socket());
    if (::connect(out_.back(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      fail("connect");
    ::setsockopt(out_.back(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  for (unsigned i = 0; i < kTried.back(); ++i) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) fail("accept");
    in_.push_back(fd);
  }
}

void TcpRing::exchange(std::uint64_t bytes, unsigned connections) {
  std::vector<std::exception_ptr> errors(std::size_t{2} * connections);
  std::vector<std::thread> threads;
  const auto start = [&](std::size_t i, const std::function<void()>& what) {
    threads.emplace_back([&errors, i, what] {
      try {
        what();
      } catch (const Error&) {
        errors[i] = std::current_exception();
      }
    });
  };
  const auto part = kBuffer / connections;
  for (unsigned i = 0; i < connections; ++i) {
    // Connections are numbered alike only by their order, so each carries as much.
    const auto share = bytes / connections;
    start(std::size_t{2} * i, [this, i, part, share] {
      send_bytes(out_[i], from_.bytes().subspan(i * part, part), share);
    });
    start(std::size_t{2} * i + 1, [this, i, part, share] {
      receive_bytes(in_[i], to_.bytes().subspan(i * part, part), share);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace meshstage::tools::bench
