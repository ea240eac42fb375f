#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/error.hpp>

#include <algorithm>

namespace meshstage {

void check_request(const ConnectRequest& request) {
  const std::string world = std::to_string(request.world_size);
  if (request.world_size < 1 || request.rank < 0 || request.rank >= request.world_size) {
    throw InvalidArgument("rank " + std::to_string(request.rank) + " of " + world +
                          " ranks does not exist");
  }
  std::vector<int> peers = request.peers;
  std::sort(peers.begin(), peers.end());
  for (std::size_t i = 0; i < peers.size(); ++i) {
    const std::string peer =
        "peer " + std::to_string(peers[i]) + " of rank " + std::to_string(request.rank) + " ";
    if (peers[i] < 0 || peers[i] >= request.world_size) {
      throw InvalidArgument(peer + "does not exist among " + world + " ranks");
    }
    if (peers[i] == request.rank) throw InvalidArgument(peer + "is the rank itself");
    if (i > 0 && peers[i] == peers[i - 1]) throw InvalidArgument(peer + "is named twice");
  }
}

}  // namespace meshstage
