#pragma once
#include <cstddef>
#include <deque>
#include <memory>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/transfer/pieces.hpp>

namespace meshstage::transfer {

/// Transfers in flight, oldest first. If one throws, the others are destroyed before their memory
/// is freed (see Transfer).
class Window {
 public:
  explicit Window(const Link& link) : link_(link) {}

  /// Transfers `count` things in order. If `post(i)` returns null, thing i is not sent. Thing i is
  /// posted when at least `needs(i)` things are done.
  template <class Post, class Done, class Needs>
  void run(std::size_t count, Post&& post, Done&& done, Needs&& needs) {
    for (std::size_t next = 0, finished = 0; finished < count;) {
      if (next < count && flying_.size() < kWindow && needs(next) <= finished) {
        flying_.push_back(post(next++));
        continue;
      }
      if (flying_.front()) flying_.front()->wait_while_moving(link_.stall);
      flying_.pop_front();
      done(finished++);
    }
  }

 private:
  const Link& link_;
  std::deque<std::unique_ptr<Transfer>> flying_;
};

}  // namespace meshstage::transfer
