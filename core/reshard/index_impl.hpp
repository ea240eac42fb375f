#pragma once
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/tree/boxes.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage::detail {

/// What one old rank has at a path.
struct OldValue {
  int rank = 0;
  Value value;
};

/// Every path of the old ranks' states, with what each rank has there, by rank ascending. Nodes
/// that a reader reads are not gone into.
class OldIndex {
 public:
  OldIndex(std::span<const Value> old, const BoxReaders& readers);

  /// Null if no rank has the path. Marks the path as taken.
  [[nodiscard]] const std::vector<OldValue>* take(const std::string& path);
  /// Marks the paths below this one for which `passes` as taken.
  void pass_below(const std::string& path, const std::function<bool(const std::string&)>& passes);
  /// The first path, in the order of rank 0's state, that every rank has and nobody took; empty if
  /// there is none.
  [[nodiscard]] std::string left() const;
  /// The paths that some rank lacks, and whether somebody took them. Every rank of the new job that
  /// reads the same old states gets the same order.
  [[nodiscard]] std::vector<OfSome> of_some() const;
  /// The first path that some rank lacks, and a rank that has it; nothing if all have the same.
  [[nodiscard]] std::optional<std::pair<std::string, int>> lacking() const;
  [[nodiscard]] int ranks() const noexcept { return ranks_; }

 private:
  void add(int rank, const Value& value, Walk& walk);
  struct Entry {
    std::vector<OldValue> values;
    bool taken = false;
  };
  const BoxReaders& readers_;
  int ranks_;
  std::unordered_map<std::string, std::size_t> places_;
  std::vector<std::string> paths_;
  std::deque<Entry> entries_;
};

}  // namespace meshstage::detail
