#pragma once
#include <functional>
#include <memory>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::collectives {

/// What a group that wraps another one does around each of that group's own collectives: makes the
/// call once, by this deadline or an earlier one, and passes on what it throws, or something
/// better.
using Around = std::function<void(Deadline deadline, const std::function<void(Deadline)>& call)>;

/// The own collectives of a group that is wrapped, for the group around it.
class Wrapped final : public Own {
 public:
  /// `inner` must outlive it.
  Wrapped(Own& inner, Around around) : inner_(inner), around_(std::move(around)) {}

  void barrier(Deadline deadline) override {
    around_(deadline, [&](Deadline by) { inner_.barrier(by); });
  }
  void broadcast(std::span<std::byte> data, int root, Deadline deadline) override {
    around_(deadline, [&](Deadline by) { inner_.broadcast(data, root, by); });
  }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all,
                  Deadline deadline) override {
    around_(deadline, [&](Deadline by) { inner_.all_gather(mine, all, by); });
  }
  void all_reduce(std::span<std::byte> data, Element element, ReduceOp op,
                  Deadline deadline) override {
    around_(deadline, [&](Deadline by) { inner_.all_reduce(data, element, op, by); });
  }
  void reduce_scatter(std::span<const std::byte> data, std::span<std::byte> mine, Element element,
                      ReduceOp op, Deadline deadline) override {
    around_(deadline, [&](Deadline by) { inner_.reduce_scatter(data, mine, element, op, by); });
  }

 private:
  Own& inner_;
  const Around around_;
};

/// Those of `group`; null if it has none.
[[nodiscard]] inline std::unique_ptr<Own> wrapped(ProcessGroup& group, Around around) {
  Own* const inner = group.own_collectives();
  return inner == nullptr ? nullptr : std::make_unique<Wrapped>(*inner, std::move(around));
}

}  // namespace meshstage::collectives
