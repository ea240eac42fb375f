#include "tests/comm/nccl_support.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <utility>

#include "tests/support/catch.hpp"

namespace meshstage::test {
namespace {

// Never closed: the module finds the same library by its name.
void* library() {
  static void* const handle = [] {
    void* const found = ::dlopen(MESHSTAGE_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    if (found == nullptr) throw std::runtime_error(::dlerror());
    return found;
  }();
  return handle;
}

void copy(CopyDirection direction, void* to, const void* from, std::size_t bytes) {
  auto stream = DeviceRuntime::of(DeviceType::kCuda).open_stream(Cuda::kDevice);
  const DeviceCopy one{to, from, bytes};
  stream.copy(direction, {&one, 1});
  stream.record().wait();
}

class CopyingTransfer final : public Transfer {
 public:
  CopyingTransfer(std::unique_ptr<Transfer> inner, std::shared_ptr<std::byte> memory,
                  std::span<std::byte> target)
      : memory_(std::move(memory)), inner_(std::move(inner)), target_(target) {}
  void wait(Deadline deadline) override {
    inner_->wait(deadline);
    const auto target = std::exchange(target_, {});
    if (!target.empty()) copy(CopyDirection::kToHost, target.data(), memory_.get(), target.size());
  }

 private:
  std::shared_ptr<std::byte> memory_;
  std::unique_ptr<Transfer> inner_;  // goes first
  std::span<std::byte> target_;      // of a receive that is not complete
};

class CopyingGroup final : public ProcessGroup {
 public:
  explicit CopyingGroup(std::shared_ptr<ProcessGroup> inner) : inner_(std::move(inner)) {}
  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    auto memory = allocate(bytes.size());
    if (!bytes.empty()) copy(CopyDirection::kToDevice, memory.get(), bytes.data(), bytes.size());
    auto inner = inner_->send(peer, tag, {memory.get(), bytes.size()});
    return std::make_unique<CopyingTransfer>(std::move(inner), std::move(memory),
                                             std::span<std::byte>());
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    auto memory = allocate(target.size());
    auto inner = inner_->receive(peer, tag, {memory.get(), target.size()});
    return std::make_unique<CopyingTransfer>(std::move(inner), std::move(memory), target);
  }
  void abort(std::exception_ptr cause) noexcept override { inner_->abort(std::move(cause)); }
  void close() noexcept override { inner_->close(); }

 private:
  static std::shared_ptr<std::byte> allocate(std::size_t bytes) {
    return DeviceRuntime::of(DeviceType::kCuda).allocate(Cuda::kDevice, bytes);
  }
  const std::shared_ptr<ProcessGroup> inner_;
};

class CopyingTransport final : public Transport {
 public:
  explicit CopyingTransport(std::shared_ptr<Transport> inner) : inner_(std::move(inner)) {}
  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    return inner_->connect_links(request, store, deadline, std::move(stop));
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    return std::make_shared<CopyingGroup>(
        inner_->connect_group(request, store, deadline, std::move(stop)));
  }

 private:
  const std::shared_ptr<Transport> inner_;
};

}  // namespace

Nccl::Nccl(std::uint64_t seed) : cuda_(seed) { fake().reset(); }

Nccl::~Nccl() {
  fake().fail_call(0, 0);
  CHECK(fake().communicators() == 0);
}

const fake_nccl::Control& Nccl::fake() {
  const auto get =
      reinterpret_cast<fake_nccl::GetControl>(::dlsym(library(), fake_nccl::kControlSymbol));
  if (get == nullptr) throw std::runtime_error("not the fake NCCL");
  return *get();
}

std::shared_ptr<Transport> Nccl::transport(InProcessFabric& fabric, int rank,
                                           StreamHandle trainer) {
  return make_nccl_transport(fabric.attach(rank),
                             {.trainer = {Cuda::kDevice, trainer}, .nccl_module = {}});
}

std::vector<std::shared_ptr<ProcessGroup>> Nccl::groups(InProcessFabric& fabric, int world) {
  return testing::make_groups([&](int rank) { return transport(fabric, rank); }, world,
                              testing::Linked::kAll);
}

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {const_cast<std::byte*>(tensor.storage().data()), tensor.storage().nbytes()};
}

std::shared_ptr<Transport> with_host_memory(std::shared_ptr<Transport> inner) {
  return std::make_shared<CopyingTransport>(std::move(inner));
}

}  // namespace meshstage::test
