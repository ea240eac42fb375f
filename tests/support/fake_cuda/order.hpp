#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace meshstage::fake_cuda {

/// A moment in a stream.
struct Point {
  bool done = false;
};
using PointPtr = std::shared_ptr<Point>;

/// Something issued: it happens step by step, in no order among its steps, when everything before
/// it in its stream is done, and the points that it comes after.
struct Operation {
  std::vector<std::function<void()>> steps;
  std::vector<PointPtr> after;
  std::function<bool()> gate = {};  ///< Null or asked when all before it is done: may it happen?
  PointPtr point = std::make_shared<Point>();
};

struct Stream {
  int device = 0;
  bool blocking = true;  ///< The legacy stream orders it, and it the legacy stream.
  std::deque<Operation> operations;
  PointPtr last;
};

/// When what was issued happens: as late as possible, and otherwise as a seed says. The fake is one
/// lock; this has none of its own.
class Order {
 public:
  void reseed(std::uint64_t seed);
  Stream* open(int device, bool blocking);
  /// What was issued still happens.
  bool close(Stream* stream);
  [[nodiscard]] bool is_open(const Stream* stream) const;
  /// The legacy stream of a device, made at its first use.
  Stream* legacy(int device);

  PointPtr issue(Stream& stream, Operation operation);
  /// Lets one step happen that `point` waits for, and now and then another; false if the point is
  /// done.
  bool step_towards(const PointPtr& point);
  /// Whether the last step found a gate closed, so that only something outside can help.
  [[nodiscard]] bool at_a_gate() const { return at_a_gate_; }
  [[nodiscard]] std::size_t pending() const;
  [[nodiscard]] std::size_t open_streams() const;
  std::uint64_t random() { return random_(); }

 private:
  Stream* needed(const PointPtr& point) const;
  void step(Stream& stream);
  std::vector<std::unique_ptr<Stream>> streams_;  // closed ones, too, while they have operations
  std::vector<const Stream*> open_;
  std::vector<std::pair<int, Stream*>> legacy_;
  std::mt19937_64 random_{1};
  bool restless_ = false;
  bool at_a_gate_ = false;
};

}  // namespace meshstage::fake_cuda
