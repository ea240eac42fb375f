#pragma once
#include <cstdint>
#include <functional>
#include <string_view>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/points/points.hpp>

namespace meshstage {

/// A named point of the protocol that this rank has just passed: a change of persistent or agreed
/// state.
struct PointEvent {
  Point point{};
  std::string_view name;  ///< to_string(point), "offered" for example.
  int rank = 0;           ///< This process's rank.
  std::uint64_t generation = 0;
  ImageId id;                ///< The image in question; kNoImage if there is none.
  int peer = -1;             ///< The other rank, -1 if there is none.
  std::uint64_t chunk = 0;   ///< For chunk points: the chunk's number, from 1; elsewhere 0.
  std::uint64_t chunks = 0;  ///< For chunk points: how many chunks there are; elsewhere 0.
};

/// The engine calls the observer at each point, on the library's threads, holding no lock that the
/// trainer could need. A vote may wait until the observer returns. An observer may end the process
/// (the drill's does), but must neither wait nor call the Checkpointer.
using Observer = std::function<void(const PointEvent&)>;

}  // namespace meshstage
