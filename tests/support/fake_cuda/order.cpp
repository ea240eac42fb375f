#include "tests/support/fake_cuda/order.hpp"

#include <algorithm>

namespace meshstage::fake_cuda {
namespace {

bool ready(const Operation& operation) {
  return std::all_of(operation.after.begin(), operation.after.end(),
                     [](const PointPtr& point) { return point->done; });
}

}  // namespace

void Order::reseed(std::uint64_t seed) {
  random_.seed(seed);
  restless_ = seed % 2 == 1;
}

Stream* Order::open(int device, bool blocking) {
  auto& stream = streams_.emplace_back(std::make_unique<Stream>());
  stream->device = device;
  stream->blocking = blocking;
  open_.push_back(stream.get());
  return stream.get();
}

bool Order::close(Stream* stream) { return std::erase(open_, stream) != 0; }

bool Order::is_open(const Stream* stream) const {
  return std::find(open_.begin(), open_.end(), stream) != open_.end();
}

Stream* Order::legacy(int device) {
  for (const auto& [of, stream] : legacy_) {
    if (of == device) return stream;
  }
  auto& stream = streams_.emplace_back(std::make_unique<Stream>());
  stream->device = device;
  legacy_.emplace_back(device, stream.get());
  return stream.get();
}

PointPtr Order::issue(Stream& stream, Operation operation) {
  Stream* const default_stream = legacy(stream.device);
  if (&stream == default_stream) {
    for (const auto& other : streams_) {
      if (other->blocking && other->device == stream.device && other->last)
        operation.after.push_back(other->last);
    }
  } else if (stream.blocking && default_stream->last) {
    operation.after.push_back(default_stream->last);
  }
  stream.last = operation.point;
  stream.operations.push_back(std::move(operation));
  return stream.last;
}

Stream* Order::needed(const PointPtr& point) const {
  for (const auto& stream : streams_) {
    const auto& all = stream->operations;
    if (std::none_of(all.begin(), all.end(), [&](const auto& one) { return one.point == point; }))
      continue;
    const auto& head = all.front();
    for (const auto& before : head.after) {
      if (!before->done) return needed(before);
    }
    return stream.get();
  }
  return nullptr;
}

void Order::step(Stream& stream) {
  auto& operation = stream.operations.front();
  at_a_gate_ = operation.gate && !operation.gate();
  if (at_a_gate_) return;
  operation.gate = {};
  if (!operation.steps.empty()) {
    const auto chosen = random_() % operation.steps.size();
    std::swap(operation.steps[chosen], operation.steps.back());
    const auto happens = std::move(operation.steps.back());
    operation.steps.pop_back();
    happens();
  }
  if (!operation.steps.empty()) return;
  operation.point->done = true;
  stream.operations.pop_front();
}

bool Order::step_towards(const PointPtr& point) {
  if (point->done) return false;
  if (restless_ && random_() % 4 == 0) {
    std::vector<Stream*> heads;
    for (const auto& stream : streams_) {
      if (!stream->operations.empty() && ready(stream->operations.front()))
        heads.push_back(stream.get());
    }
    if (!heads.empty()) step(*heads[random_() % heads.size()]);
    return true;
  }
  if (auto* const stream = needed(point)) step(*stream);
  return true;
}

std::size_t Order::pending() const {
  std::size_t sum = 0;
  for (const auto& stream : streams_) sum += stream->operations.size();
  return sum;
}

std::size_t Order::open_streams() const { return open_.size(); }

}  // namespace meshstage::fake_cuda
