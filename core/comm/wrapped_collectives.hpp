#pragma once
#include <functional>
#include <memory>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::collectives {

/// Runs one own collective of the wrapped group: calls `call` once, with this deadline or an
/// earlier one. Throws what `call` throws, or a clearer error.
using Around = std::function<void(Deadline deadline, const std::function<void(Deadline)>& call)>;

/// The wrapped group's own collectives, as the group around it offers them.
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

/// The own collectives of `group`, each run by `around`; null if it has none.
[[nodiscard]] inline std::unique_ptr<Own> wrapped(ProcessGroup& group, Around around) {
  Own* const inner = group.own_collectives();
  return inner == nullptr ? nullptr : std::make_unique<Wrapped>(*inner, std::move(around));
}

}  // namespace meshstage::collectives
