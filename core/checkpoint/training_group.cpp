#include <algorithm>
#include <utility>

#include <meshstage/core/checkpoint/training_group_impl.hpp>

namespace meshstage::detail {
namespace {

class LimitedTransfer final : public Transfer {
 public:
  LimitedTransfer(std::unique_ptr<Transfer> inner, std::chrono::milliseconds limit)
      : inner_(std::move(inner)), limit_(limit) {}
  void wait(Deadline deadline) override {
    if (deadline.is_never()) return inner_->wait_while_moving(limit_);
    inner_->wait(deadline.earlier(Deadline::after(limit_)));
  }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    inner_->wait_while_moving(std::min(silence, limit_));
  }

 private:
  std::unique_ptr<Transfer> inner_;
  const std::chrono::milliseconds limit_;
};

class LimitedGroup final : public ProcessGroup {
 public:
  LimitedGroup(std::shared_ptr<ProcessGroup> inner, std::chrono::milliseconds limit)
      : inner_(std::move(inner)), limit_(limit) {}

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
  void abort(std::exception_ptr cause) noexcept override { inner_->abort(std::move(cause)); }
  void close() noexcept override { inner_->close(); }

 private:
  [[nodiscard]] std::unique_ptr<Transfer> limited(std::unique_ptr<Transfer> transfer) const {
    return std::make_unique<LimitedTransfer>(std::move(transfer), limit_);
  }

  const std::shared_ptr<ProcessGroup> inner_;
  const std::chrono::milliseconds limit_;
};

}  // namespace

std::shared_ptr<ProcessGroup> with_limit(std::shared_ptr<ProcessGroup> group,
                                         std::chrono::milliseconds limit) {
  return std::make_shared<LimitedGroup>(std::move(group), limit);
}

}  // namespace meshstage::detail
