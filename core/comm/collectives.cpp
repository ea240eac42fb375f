#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/reduce.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

namespace meshstage::collectives {

namespace {

using Transfers = std::vector<std::unique_ptr<Transfer>>;

/// Long messages go in pieces, so that a rank passes on the first while it gets the second.
constexpr std::size_t kPiece = std::size_t{256} << 10;

/// One tag for each kind of message: two collectives of one kind follow each other in order.
enum class Kind : std::uint64_t {
  kArrive = 1,
  kLeave,
  kBroadcast,
  kGather,
  kReduce,
  kResult,
  kScatter,
  kAllToAll
};

std::uint64_t tag(Kind kind) {
  return ProcessGroup::kFirstReservedTag + static_cast<std::uint64_t>(kind);
}

void wait_all(Transfers& transfers, Deadline deadline) {
  for (auto& t : transfers) t->wait(deadline);
}

template <class Bytes>
Bytes piece(Bytes data, std::size_t index) {
  const std::size_t begin = index * kPiece;
  return data.subspan(begin, std::min(kPiece, data.size() - begin));
}
std::size_t pieces(std::size_t bytes) { return (bytes + kPiece - 1) / kPiece; }

void check_root(const ProcessGroup& group, int root) {
  if (root >= 0 && root < group.size()) return;
  throw InvalidArgument("rank " + std::to_string(root) + " does not exist in a group of " +
                        std::to_string(group.size()));
}

void check_size(std::size_t got, std::size_t wanted, const char* what) {
  if (got == wanted) return;
  throw InvalidArgument(std::string(what) + " has " + std::to_string(got) + " bytes, but needs " +
                        std::to_string(wanted));
}

void check_full(const ProcessGroup& group, const char* what) {
  if (fully_linked(group)) return;
  throw InvalidArgument(std::string(what) +
                        " needs a group in which every rank is linked to every other");
}

/// The default works on host memory, and what is done here has no other version.
void check_default(ProcessGroup& group, const char* what) {
  if (group.own_collectives() == nullptr) return;
  throw InvalidArgument(std::string(what) + " is not made for a group over a device's memory");
}

void check_reducible(std::size_t bytes, Element element, ReduceOp op) {
  if (bytes % bytes_of(element) != 0) {
    throw InvalidArgument(std::to_string(bytes) + " bytes are no whole number of elements of " +
                          std::to_string(bytes_of(element)) + " bytes");
  }
  const bool floating = element == Element::kF16 || element == Element::kBF16 ||
                        element == Element::kF32 || element == Element::kF64;
  if (op == ReduceOp::kAvg && !floating) {
    throw InvalidArgument("an average of integers is not defined; sum them and divide");
  }
}

/// Blocks of different sizes, by rank.
struct Blocks {
  std::vector<std::size_t> sizes;
  [[nodiscard]] std::size_t size(int rank) const { return sizes[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::size_t offset(int rank) const {
    return std::accumulate(sizes.begin(), sizes.begin() + rank, std::size_t{0});
  }
};

/// Towards `root` along the tree: each rank collects what lies behind it and passes it on.
void gather_blocks(ProcessGroup& group, std::span<const std::byte> mine, const Blocks& blocks,
                   std::span<std::byte> all, int root, Deadline deadline) {
  const int rank = group.rank();
  const int up = tree::next_hop(rank, root);
  // Whose blocks come through which neighbour, in rank order.
  std::vector<std::pair<int, std::vector<int>>> behind;
  std::vector<int> mine_and_behind;
  for (const int n : tree::neighbours(rank, group.size())) {
    if (n != up || rank == root) behind.emplace_back(n, std::vector<int>());
  }
  for (int r = 0; r < group.size(); ++r) {
    const int through = tree::next_hop(rank, r);
    const bool is_behind = r == rank || rank == root || through != up;
    if (is_behind) mine_and_behind.push_back(r);
    for (auto& [neighbour, ranks] : behind) {
      if (r != rank && neighbour == through) ranks.push_back(r);
    }
  }
  const auto total = [&](const std::vector<int>& ranks) {
    std::size_t bytes = 0;
    for (const int r : ranks) bytes += blocks.size(r);
    return bytes;
  };
  std::vector<std::vector<std::byte>> incoming(behind.size());
  std::vector<std::byte> outgoing;
  Transfers receives;
  for (std::size_t i = 0; i < behind.size(); ++i) {
    incoming[i].resize(total(behind[i].second));
    receives.push_back(group.receive(behind[i].first, tag(Kind::kGather), incoming[i]));
  }
  wait_all(receives, deadline);
  // Where rank r's block goes: its place in `all` at the root, behind the others elsewhere.
  if (rank != root) outgoing.resize(total(mine_and_behind));
  std::vector<std::byte*> place(static_cast<std::size_t>(group.size()));
  std::size_t at = 0;
  for (const int r : mine_and_behind) {
    place[static_cast<std::size_t>(r)] =
        rank == root ? all.data() + blocks.offset(r) : outgoing.data() + at;
    at += blocks.size(r);
  }
  const auto put = [&](int r, const std::byte* from) {
    if (blocks.size(r) == 0) return;
    std::memcpy(place[static_cast<std::size_t>(r)], from, blocks.size(r));
  };
  put(rank, mine.data());
  for (std::size_t i = 0; i < behind.size(); ++i) {
    const std::byte* from = incoming[i].data();
    for (const int r : behind[i].second) {
      put(r, from);
      from += blocks.size(r);
    }
  }
  if (rank != root) group.send(up, tag(Kind::kGather), outgoing)->wait(deadline);
}

}  // namespace

std::size_t bytes_of(Element element) noexcept {
  std::size_t bytes = 0;
  arithmetic::with_element(element, [&]<class E>(E) { bytes = sizeof(typename E::Stored); });
  return bytes;
}

void barrier(ProcessGroup& group, Deadline deadline) {
  if (auto* const backend = group.own_collectives()) return backend->barrier(deadline);
  const auto up = tree::parent(group.rank());
  const std::vector<int> children = tree::children(group.rank(), group.size());
  std::array<std::byte, 2> in{};
  std::array<std::byte, 1> in_from_parent{};
  const std::array<std::byte, 1> out{std::byte{1}};
  Transfers transfers;
  for (std::size_t i = 0; i < children.size(); ++i) {
    transfers.push_back(
        group.receive(children[i], tag(Kind::kArrive), std::span(in).subspan(i, 1)));
  }
  wait_all(transfers, deadline);
  if (up) {
    auto answer = group.receive(*up, tag(Kind::kLeave), in_from_parent);
    group.send(*up, tag(Kind::kArrive), out)->wait(deadline);
    answer->wait(deadline);
  }
  transfers.clear();
  for (const int child : children) transfers.push_back(group.send(child, tag(Kind::kLeave), out));
  wait_all(transfers, deadline);
}

void leave_together(ProcessGroup& group, Deadline deadline) {
  try {
    barrier(group, deadline);
  } catch (const Error&) {  // the caller throws the error that was agreed on
  }
}

void broadcast(ProcessGroup& group, std::span<std::byte> data, int root, Deadline deadline) {
  check_root(group, root);
  if (auto* const backend = group.own_collectives())
    return backend->broadcast(data, root, deadline);
  const int rank = group.rank();
  const int from = tree::next_hop(rank, root);
  std::vector<int> to = tree::neighbours(rank, group.size());
  if (rank != root) std::erase(to, from);
  Transfers receives;
  Transfers sends;
  if (rank != root) {
    for (std::size_t i = 0; i < pieces(data.size()); ++i) {
      receives.push_back(group.receive(from, tag(Kind::kBroadcast), piece(data, i)));
    }
  }
  for (std::size_t i = 0; i < pieces(data.size()); ++i) {
    if (rank != root) receives[i]->wait(deadline);
    for (const int r : to) {
      sends.push_back(
          group.send(r, tag(Kind::kBroadcast), piece(std::span<const std::byte>(data), i)));
    }
  }
  wait_all(sends, deadline);
}

void gather(ProcessGroup& group, std::span<const std::byte> mine, std::span<std::byte> all,
            int root, Deadline deadline) {
  check_root(group, root);
  check_default(group, "gather");
  const auto size = static_cast<std::size_t>(group.size());
  if (group.rank() == root) check_size(all.size(), size * mine.size(), "the target of a gather");
  gather_blocks(group, mine, Blocks{std::vector(size, mine.size())}, all, root, deadline);
}

void all_gather(ProcessGroup& group, std::span<const std::byte> mine, std::span<std::byte> all,
                Deadline deadline) {
  const auto size = static_cast<std::size_t>(group.size());
  check_size(all.size(), size * mine.size(), "the target of an all_gather");
  if (auto* const backend = group.own_collectives())
    return backend->all_gather(mine, all, deadline);
  gather_blocks(group, mine, Blocks{std::vector(size, mine.size())}, all, 0, deadline);
  broadcast(group, all, 0, deadline);
}

std::vector<std::vector<std::byte>> all_gather_bytes(ProcessGroup& group,
                                                     std::span<const std::byte> mine,
                                                     Deadline deadline) {
  check_default(group, "all_gather_bytes");
  const auto size = static_cast<std::size_t>(group.size());
  const std::uint64_t own = mine.size();
  std::vector<std::uint64_t> sizes(size);
  all_gather(group, std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(sizes)),
             deadline);
  const Blocks blocks{{sizes.begin(), sizes.end()}};
  std::vector<std::byte> all(blocks.offset(group.size()));
  gather_blocks(group, mine, blocks, all, 0, deadline);
  broadcast(group, all, 0, deadline);
  std::vector<std::vector<std::byte>> result;
  for (int r = 0; r < group.size(); ++r) {
    const auto block = std::span(all).subspan(blocks.offset(r), blocks.size(r));
    result.emplace_back(block.begin(), block.end());
  }
  return result;
}

namespace {

/// The sum of halves overflows where their mean does not, so it is made, and travels, as floats. In
/// parts, so that the memory stays small.
void average_halves(ProcessGroup& group, std::span<std::byte> data, Deadline deadline) {
  constexpr std::size_t kPartBytes = std::size_t{8} << 20U;
  for (std::size_t at = 0; at < data.size(); at += kPartBytes) {
    const auto part = data.subspan(at, std::min(kPartBytes, data.size() - at));
    std::vector<float> sums(part.size() / 2, -0.0F);
    arithmetic::add_halves(sums, part);
    all_reduce(group, std::as_writable_bytes(std::span(sums)), Element::kF32, ReduceOp::kAvg,
               deadline);
    arithmetic::store_halves(part, sums);
  }
}

}  // namespace

void all_reduce(ProcessGroup& group, std::span<std::byte> data, Element element, ReduceOp op,
                Deadline deadline) {
  check_reducible(data.size(), element, op);
  if (auto* const backend = group.own_collectives())
    return backend->all_reduce(data, element, op, deadline);
  if (element == Element::kF16 && op == ReduceOp::kAvg) {
    average_halves(group, data, deadline);
    return;
  }
  const auto up = tree::parent(group.rank());
  const std::vector<int> children = tree::children(group.rank(), group.size());
  const std::size_t count = pieces(data.size());
  // A piece up, a piece down: while one is added here the next is on its way, and the results of
  // earlier ones come back. Two buffers for each child; all declared before what writes into them.
  std::array<std::array<std::vector<std::byte>, 2>, 2> buffers;
  std::array<Transfers, 2> from_children;
  Transfers up_sends(count);
  Transfers results(count);
  Transfers down_sends;
  const auto post = [&](std::size_t i) {
    if (i >= count) return;
    for (std::size_t c = 0; c < children.size(); ++c) {
      auto& buffer = buffers[c][i % 2];
      buffer.resize(piece(data, i).size());
      from_children[c].push_back(group.receive(children[c], tag(Kind::kReduce), buffer));
    }
  };
  const auto pass_down = [&](std::size_t i) {
    for (const int child : children) {
      down_sends.push_back(group.send(child, tag(Kind::kResult), piece(data, i)));
    }
  };
  const auto await_result = [&](std::size_t i) {
    up_sends[i]->wait(deadline);  // the piece is overwritten by its result
    results[i] = group.receive(*up, tag(Kind::kResult), piece(data, i));
  };
  post(0);
  for (std::size_t i = 0; i < count; ++i) {
    post(i + 1);
    for (std::size_t c = 0; c < children.size(); ++c) {
      from_children[c][i]->wait(deadline);
      arithmetic::reduce(piece(data, i), buffers[c][i % 2], element, op);
    }
    if (up) {
      up_sends[i] = group.send(*up, tag(Kind::kReduce), piece(data, i));
      if (i > 0) await_result(i - 1);
    } else {
      if (op == ReduceOp::kAvg) arithmetic::divide(piece(data, i), group.size(), element);
      pass_down(i);
    }
  }
  if (up) {
    if (count > 0) await_result(count - 1);
    for (std::size_t i = 0; i < count; ++i) {
      results[i]->wait(deadline);
      pass_down(i);
    }
  }
  wait_all(down_sends, deadline);
}

void reduce_scatter(ProcessGroup& group, std::span<const std::byte> data, std::span<std::byte> mine,
                    Element element, ReduceOp op, Deadline deadline) {
  check_full(group, "reduce_scatter");
  const auto size = static_cast<std::size_t>(group.size());
  const auto own = static_cast<std::size_t>(group.rank());
  check_size(data.size(), size * mine.size(), "the data of a reduce_scatter");
  check_reducible(mine.size(), element, op);
  if (auto* const backend = group.own_collectives()) {
    return backend->reduce_scatter(data, mine, element, op, deadline);
  }
  if (mine.empty()) return;
  const auto part = [&](std::size_t r) { return data.subspan(r * mine.size(), mine.size()); };
  std::array<std::vector<std::byte>, 2> buffers;
  for (auto& b : buffers) b.resize(mine.size());
  std::vector<float> sums;  // of halves to be averaged: see average_halves()
  if (element == Element::kF16 && op == ReduceOp::kAvg) sums.assign(mine.size() / 2, -0.0F);
  std::vector<std::size_t> others;
  for (std::size_t r = 0; r < size; ++r) {
    if (r != own) others.push_back(r);
  }
  Transfers sends;
  Transfers receives;
  const auto post = [&](std::size_t i) {
    if (i >= others.size()) return;
    receives.push_back(
        group.receive(static_cast<int>(others[i]), tag(Kind::kScatter), buffers[i % 2]));
  };
  for (const std::size_t r : others) {
    sends.push_back(group.send(static_cast<int>(r), tag(Kind::kScatter), part(r)));
  }
  post(0);
  std::size_t next = 0;  // of the others
  for (std::size_t r = 0; r < size; ++r) {
    std::span<const std::byte> term = part(own);
    if (r != own) {
      post(next + 1);
      receives[next]->wait(deadline);
      term = buffers[next % 2];
      ++next;
    }
    if (!sums.empty()) {
      arithmetic::add_halves(sums, term);
    } else if (r == 0) {
      std::memcpy(mine.data(), term.data(), mine.size());
    } else {
      arithmetic::reduce(mine, term, element, op);
    }
  }
  if (!sums.empty()) {
    arithmetic::divide(std::as_writable_bytes(std::span(sums)), group.size(), Element::kF32);
    arithmetic::store_halves(mine, sums);
  } else if (op == ReduceOp::kAvg) {
    arithmetic::divide(mine, group.size(), element);
  }
  wait_all(sends, deadline);
}

void all_to_all(ProcessGroup& group, std::span<const std::span<const std::byte>> parts,
                std::span<const std::span<std::byte>> incoming, Deadline deadline) {
  check_default(group, "all_to_all");
  check_full(group, "all_to_all");
  const auto size = static_cast<std::size_t>(group.size());
  const auto own = static_cast<std::size_t>(group.rank());
  if (parts.size() != size || incoming.size() != size) {
    throw InvalidArgument("all_to_all needs one part for each of " + std::to_string(size) +
                          " ranks, in both directions");
  }
  check_size(incoming[own].size(), parts[own].size(), "the own part of an all_to_all");
  Transfers transfers;
  for (std::size_t r = 0; r < size; ++r) {
    if (r == own) continue;
    const int peer = static_cast<int>(r);
    transfers.push_back(group.receive(peer, tag(Kind::kAllToAll), incoming[r]));
    transfers.push_back(group.send(peer, tag(Kind::kAllToAll), parts[r]));
  }
  if (!parts[own].empty()) {
    std::memcpy(incoming[own].data(), parts[own].data(), parts[own].size());
  }
  wait_all(transfers, deadline);
}

}  // namespace meshstage::collectives
