#pragma once
#include <cstdint>
#include <functional>
#include <string_view>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/protocol/points.hpp>

namespace meshstage {

/// A named protocol point that this rank has just passed: a change of persistent or agreed state.
struct PointEvent {
  protocol::Point point{};
  std::string_view name;  ///< to_string(point), "offer-sent" for example.
  int rank = 0;           ///< Of this process.
  std::uint64_t generation = 0;
  ImageId id;                ///< The image in question; kNoImage where there is none.
  int peer = -1;             ///< The other rank, -1 where there is none.
  std::uint64_t chunk = 0;   ///< For chunk points: which (from 1) ...
  std::uint64_t chunks = 0;  ///< ... of how many. 0 elsewhere.
};

/// Called at each point, on the library's threads, with no lock held that the trainer could need.
/// It may end the process (that is what the drill does); it must not call the Checkpointer.
using Observer = std::function<void(const PointEvent&)>;

}  // namespace meshstage
