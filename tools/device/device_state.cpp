#include "tools/device/device_state.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/resource.hpp>

namespace meshstage::tools {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlignment = 64;
// Storages below this go by one kernel.
constexpr std::size_t kSmall = std::size_t{64} << 10U;

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

std::optional<int> parse_index(std::string_view text) {
  int index = 0;
  const auto* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, index);
  if (error != std::errc() || after != end || index < 0) return std::nullopt;
  return index;
}

}  // namespace

Device choose_device(const std::string& text, int local_rank) {
  constexpr std::string_view kCuda = "cuda";
  if (text == "cpu") return kCpu;
  std::optional<int> index;
  if (text.starts_with("cuda:")) index = parse_index(std::string_view(text).substr(5));
  if (text != kCuda && !index) {
    throw InvalidArgument("--device " + text + ": write cpu, cuda or cuda:1, for example");
  }
  const auto support = device_support(DeviceType::kCuda);
  if (support.problem != DeviceProblem::kNone) {
    throw DeviceUnusable("--device " + text + " cannot be used: " + support.detail);
  }
  const auto count = static_cast<int>(support.devices.size());
  if (index.value_or(0) >= count) {
    throw DeviceUnusable("--device " + text + " cannot be used: there are " +
                         std::to_string(count) + " devices, counted from 0");
  }
  return {DeviceType::kCuda, static_cast<std::int16_t>(index.value_or(local_rank % count))};
}

Collectives choose_collectives(const std::string& text, Device device) {
  if (text == "host") return Collectives::kHost;
  if (text != "nccl") {
    throw InvalidArgument("--collectives " + text + ": write host or nccl");
  }
  if (device.is_cpu()) {
    throw InvalidArgument("--collectives nccl: NCCL takes memory of devices; give --device cuda");
  }
  if (const auto nccl = nccl_support(); !nccl.problem.empty()) {
    throw DeviceUnusable("--collectives nccl cannot be used: " + nccl.problem);
  }
  return Collectives::kNccl;
}

PinnedBlock::PinnedBlock(Device device, std::uint64_t bytes) {
  const auto size = rounded(std::max<std::uint64_t>(bytes, 1), kPage);
  pages_ = {static_cast<std::byte*>(host_memory().allocate(size, kPage)), size};
  try {
    locked_ = std::make_unique<PinnedPages>(DeviceRuntime::of(device.type).pinner(device), pages_);
  } catch (...) {
    host_memory().deallocate(pages_.data(), pages_.size(), kPage);
    throw;
  }
}

PinnedBlock::~PinnedBlock() {
  locked_.reset();
  host_memory().deallocate(pages_.data(), pages_.size(), kPage);
}

// What the device may still use when the DeviceState is gone.
struct DeviceState::Bounce {
  Bounce(Device device, std::uint64_t bytes) : block(device, bytes) {}
  PinnedBlock block;
  std::vector<Storage> twins;
};

DeviceState::DeviceState(Device device)
    : device_(device),
      runtime_(DeviceRuntime::of(device.type)),
      stream_(runtime_.open_stream(device)) {}

DeviceState::~DeviceState() {
  if (bounce_) runtime_.keep(copied_, std::move(bounce_));
}

Storage& DeviceState::twin_of(const Storage& host) {
  const auto [found, added] = by_host_.try_emplace(host.identity(), twins_.size());
  if (!added) return twins_[found->second].device;
  bounce_.reset();  // too small from now on
  const std::size_t offset =
      twins_.empty() ? 0 : twins_.back().offset + rounded(twins_.back().host.nbytes(), kAlignment);
  auto memory = runtime_.allocate(device_, host.nbytes());
  auto* const begin = memory.get();
  twins_.push_back(
      {host, Storage::wrap(begin, host.nbytes(), std::move(memory), {.external = true}, device_),
       offset});
  by_device_[twins_.back().device.identity()] = twins_.size() - 1;
  bytes_ += host.nbytes();
  return twins_.back().device;
}

Tensor DeviceState::twin(const Tensor& host) {
  wait();  // put() may be copying through memory that is replaced
  return Tensor::on_storage(twin_of(host.storage()), host.dtype(), host.shape(), host.strides(),
                            host.storage_offset());
}

Value DeviceState::twin(const Value& host) {
  if (const auto* tensor = host.get_if<Tensor>()) {
    const auto* const attributes = host.attributes();
    return attributes != nullptr ? Value(twin(*tensor), *attributes) : Value(twin(*tensor));
  }
  const auto all = [this](const Sequence& sequence) {
    std::vector<Value> values;
    for (const auto& value : sequence) values.push_back(twin(value));
    return values;
  };
  if (const auto* list = host.get_if<List>()) return List(all(*list));
  if (const auto* tuple = host.get_if<Tuple>()) return Tuple(all(*tuple));
  if (const auto* dict = host.get_if<Dict>()) {
    Dict twins;
    for (const auto& [key, value] : *dict) twins.set(key, twin(value));
    return twins;
  }
  if (host.get_if<NodePtr>() != nullptr) {
    throw InvalidArgument("a node cannot be taken to a device: " + host.describe());
  }
  return host;
}

Tensor DeviceState::host(const Tensor& on_device) const {
  const auto found = by_device_.find(on_device.storage().identity());
  if (found == by_device_.end()) throw InvalidArgument("the tensor is no twin");
  return Tensor::on_storage(twins_[found->second].host, on_device.dtype(), on_device.shape(),
                            on_device.strides(), on_device.storage_offset());
}

void DeviceState::prepare() {
  if (bounce_) return;
  const std::size_t bytes = twins_.empty() ? 0 : twins_.back().offset + twins_.back().host.nbytes();
  bounce_ = std::make_shared<Bounce>(device_, bytes);
  for (const auto& twin : twins_) bounce_->twins.push_back(twin.device);
}

void DeviceState::copy(CopyDirection direction) {
  std::vector<DeviceCopy> small;
  std::vector<DeviceCopy> large;
  for (const auto& twin : twins_) {
    const auto bytes = twin.host.nbytes();
    auto* const host = bounce_->block.data() + twin.offset;
    auto* const device = twin.device.data();
    const bool to_host = direction == CopyDirection::kToHost;
    (bytes < kSmall ? small : large)
        .push_back({to_host ? host : device, to_host ? device : host, bytes});
  }
  try {
    stream_.wait(runtime_.record(trainer_stream()));
    stream_.gather(direction, small);
    stream_.copy(direction, large);
    copied_ = stream_.record();
  } catch (...) {
    runtime_.keep_for_good(std::move(bounce_));  // the device may still use it
    throw;
  }
}

void DeviceState::put() {
  wait();
  prepare();
  for (const auto& twin : twins_) {
    if (twin.host.nbytes() == 0) continue;
    std::memcpy(bounce_->block.data() + twin.offset, twin.host.data(), twin.host.nbytes());
  }
  copy(CopyDirection::kToDevice);
  runtime_.hold(trainer_stream(), copied_);
}

void DeviceState::get() {
  wait();
  prepare();
  copy(CopyDirection::kToHost);
  copied_.wait();
  for (const auto& twin : twins_) {
    if (twin.host.nbytes() == 0) continue;
    std::memcpy(twin.host.data(), bounce_->block.data() + twin.offset, twin.host.nbytes());
  }
}

void DeviceState::wait() { copied_.wait(); }

}  // namespace meshstage::tools
