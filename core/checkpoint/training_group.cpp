#include <algorithm>
#include <string>
#include <utility>

#include <meshstage/core/checkpoint/training_group_impl.hpp>
#include <meshstage/core/comm/nccl/group.hpp>
#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/comm/while_moving.hpp>
#include <meshstage/core/comm/wrapped_collectives.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/device/trainer_streams.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {
namespace {

using replicate::CollectiveWaits;

class LimitedTransfer final : public Transfer {
 public:
  LimitedTransfer(std::unique_ptr<Transfer> inner, std::chrono::milliseconds limit,
                  std::shared_ptr<CollectiveWaits> waits)
      : inner_(std::move(inner)), limit_(limit), waits_(std::move(waits)) {}
  void wait(Deadline deadline) override {
    if (!ended_by(deadline, limit_)) inner_->wait(deadline);  // says that it is late
  }
  [[nodiscard]] bool done_by(Deadline deadline) override { return ended_by(deadline, limit_); }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    (void)ended_by(Deadline::never(), std::min(silence, limit_));
  }

 private:
  /// False at the deadline. Throws PeerSilent when nothing has moved in the job for `silence`.
  [[nodiscard]] bool ended_by(Deadline deadline, std::chrono::milliseconds silence) {
    // Nearly every wait ends in the first part of the silence. In the second part the neighbours
    // answer for the first time, which must not look like bytes that move.
    constexpr int kPart = 16;
    const Deadline quiet = Deadline::after(silence);
    const auto in_part = [&] { return deadline.earlier(Deadline::after(silence / kPart)); };
    if (inner_->done_by(in_part())) return done();
    if (deadline.expired()) return false;
    const CollectiveWaits::Long wait(*waits_);
    if (inner_->done_by(in_part())) return done();
    bool complete = false;
    const auto over = [&](Deadline by) {
      complete = inner_->done_by(by.earlier(deadline));
      return complete || deadline.expired();
    };
    const auto moved = [this] { return waits_->moved(); };
    if (!done_while_moving(silence, over, moved, quiet)) {
      throw_if_late(silence);
      complete = true;
    }
    return complete && done();
  }
  bool done() noexcept {
    if (!std::exchange(counted_, true)) waits_->count_done();
    return true;
  }
  /// The group itself throws that this transfer is late, so that it knows why one is given up.
  void throw_if_late(std::chrono::milliseconds silence) {
    try {
      inner_->wait(Deadline::at(Deadline::Clock::now()));
    } catch (const PeerSilent& e) {
      throw make_error<PeerSilent>(e.message() + "; no byte of the collectives has moved for " +
                                       std::to_string(silence.count()) + " ms, at any rank",
                                   e.rank());
    }
  }

  std::unique_ptr<Transfer> inner_;
  const std::chrono::milliseconds limit_;
  const std::shared_ptr<CollectiveWaits> waits_;
  bool counted_ = false;  // the waiting thread's own
};

class LimitedGroup final : public ProcessGroup {
 public:
  LimitedGroup(std::shared_ptr<ProcessGroup> inner, std::chrono::milliseconds limit,
               std::shared_ptr<CollectiveWaits> waits)
      : inner_(std::move(inner)),
        limit_(limit),
        waits_(std::move(waits)),
        collectives_(collectives::wrapped(*inner_, [limit](Deadline deadline, const auto& call) {
          call(deadline.earlier(Deadline::after(limit)));
        })) {}

  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
  [[nodiscard]] std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                               std::span<const std::byte> bytes) override {
    return limited(inner_->send(peer, tag, bytes));
  }
  [[nodiscard]] std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                                  std::span<std::byte> target) override {
    return limited(inner_->receive(peer, tag, target));
  }
  [[nodiscard]] std::uint64_t moved(int peer) const override { return inner_->moved(peer); }
  void abort(std::exception_ptr cause) noexcept override { inner_->abort(std::move(cause)); }
  void close() noexcept override { inner_->close(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override { return collectives_.get(); }

 private:
  [[nodiscard]] std::unique_ptr<Transfer> limited(std::unique_ptr<Transfer> transfer) const {
    return std::make_unique<LimitedTransfer>(std::move(transfer), limit_, waits_);
  }

  const std::shared_ptr<ProcessGroup> inner_;
  const std::chrono::milliseconds limit_;
  const std::shared_ptr<CollectiveWaits> waits_;
  const std::unique_ptr<collectives::Own> collectives_;  // null if inner_ has none
};

}  // namespace

std::shared_ptr<ProcessGroup> with_limit(std::shared_ptr<ProcessGroup> group,
                                         std::chrono::milliseconds limit,
                                         std::shared_ptr<replicate::CollectiveWaits> waits) {
  return std::make_shared<LimitedGroup>(std::move(group), limit, std::move(waits));
}

void check_device_group(const CheckpointerOptions& options) {
  if (!options.device_group) return;
  const Device device = *options.device_group;
  const std::string option = "CheckpointerOptions::device_group " + to_string(device);
  if (device.type != DeviceType::kCuda || device.index < 0) {
    throw InvalidArgument(option + ": NCCL serves CUDA devices; group() is for host memory");
  }
  const auto refuse = [&](const std::string& why) {
    throw InvalidState(option + " cannot be used: " + why +
                       "; or leave the option empty: group() takes host memory");
  };
  const auto cuda = device_support(device.type);
  if (cuda.problem != DeviceProblem::kNone) refuse(cuda.detail);
  if (static_cast<std::size_t>(device.index) >= cuda.devices.size()) {
    refuse("there are " + std::to_string(cuda.devices.size()) + " devices, counted from 0");
  }
  if (const auto nccl = nccl_support(); !nccl.problem.empty()) refuse(nccl.problem);
}

std::shared_ptr<Transport> device_transport(const CheckpointerOptions& options) {
  if (!options.device_group) return nullptr;
  // The last one that is named for the device.
  const auto trainer = streams_on(*options.device_group, options.streams).back();
  return make_nccl_transport(options.transport, {.trainer = trainer, .nccl_module = {}});
}

}  // namespace meshstage::detail
