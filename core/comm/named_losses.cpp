#include <chrono>
#include <utility>

#include <meshstage/core/comm/named_losses_impl.hpp>
#include <meshstage/core/comm/wrapped_collectives.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {
namespace {

[[noreturn]] void rethrow_named(const PeerLost& seen, const NoteLoss& note) {
  if (seen.rank().value_or(-1) < 0) throw seen;
  DeathCause cause;
  constexpr std::chrono::milliseconds kNaming{500};
  try {
    cause = note(*seen.rank(), std::string("was lost: ") + seen.what(), Deadline::after(kNaming));
  } catch (const Error&) {
    throw seen;  // the Store is gone, too: what was seen is all there is to say
  }
  if (cause.rank == seen.rank()) throw seen;
  throw make_error<PeerLost>(describe(cause),
                             cause.rank < 0 ? std::nullopt : std::optional(cause.rank));
}

class NamedTransfer final : public Transfer {
 public:
  NamedTransfer(std::unique_ptr<Transfer> inner, std::shared_ptr<const NoteLoss> note)
      : inner_(std::move(inner)), note_(std::move(note)) {}
  void wait(Deadline deadline) override {
    named([&] { inner_->wait(deadline); });
  }
  [[nodiscard]] bool done_by(Deadline deadline) override {
    bool done = false;
    named([&] { done = inner_->done_by(deadline); });
    return done;
  }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    named([&] { inner_->wait_while_moving(silence); });
  }

 private:
  template <class Wait>
  void named(Wait&& wait) {
    try {
      wait();
    } catch (const PeerLost& e) {
      rethrow_named(e, *note_);
    }
  }
  std::unique_ptr<Transfer> inner_;
  std::shared_ptr<const NoteLoss> note_;
};

class NamedGroup final : public ProcessGroup {
 public:
  NamedGroup(std::shared_ptr<ProcessGroup> inner, NoteLoss note)
      : inner_(std::move(inner)),
        note_(std::make_shared<const NoteLoss>(std::move(note))),
        collectives_(collectives::wrapped(*inner_, [note = note_](Deadline by, const auto& call) {
          try {
            call(by);
          } catch (const PeerLost& e) {
            rethrow_named(e, *note);
          }
        })) {}

  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
  [[nodiscard]] std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                               std::span<const std::byte> bytes) override {
    return named([&] { return inner_->send(peer, tag, bytes); });
  }
  [[nodiscard]] std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                                  std::span<std::byte> target) override {
    return named([&] { return inner_->receive(peer, tag, target); });
  }
  [[nodiscard]] std::uint64_t moved(int peer) const override { return inner_->moved(peer); }
  void abort(std::exception_ptr cause) noexcept override { inner_->abort(std::move(cause)); }
  void close() noexcept override { inner_->close(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override { return collectives_.get(); }

 private:
  template <class Post>
  std::unique_ptr<Transfer> named(Post&& post) {
    try {
      return std::make_unique<NamedTransfer>(post(), note_);
    } catch (const PeerLost& e) {
      rethrow_named(e, *note_);
    }
  }

  const std::shared_ptr<ProcessGroup> inner_;
  const std::shared_ptr<const NoteLoss> note_;
  const std::unique_ptr<collectives::Own> collectives_;  // null if inner_ has none
};

}  // namespace

std::shared_ptr<ProcessGroup> with_named_losses(std::shared_ptr<ProcessGroup> group,
                                                NoteLoss note) {
  return std::make_shared<NamedGroup>(std::move(group), std::move(note));
}

}  // namespace meshstage::detail
