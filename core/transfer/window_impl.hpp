#pragma once
#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/transfer/pieces.hpp>

namespace meshstage::transfer {

/// Transfers in flight, oldest first. If one throws, the others are destroyed before their memory
/// is freed (see Transfer).
class Window {
 public:
  explicit Window(const Link& link) : link_(link) {}

  template <class Post, class Done>
  void run(const std::vector<Piece>& pieces, Post&& post, Done&& done) {
    for (std::size_t next = 0, finished = 0; finished < pieces.size();) {
      if (next < pieces.size() && flying_.size() < kWindow) {
        flying_.push_back(post(next++));
        continue;
      }
      flying_.front()->wait_while_moving(link_.stall);
      flying_.pop_front();
      done(finished++);
      if (link_.on_piece) link_.on_piece(finished, pieces.size());
    }
  }

 private:
  const Link& link_;
  std::deque<std::unique_ptr<Transfer>> flying_;
};

}  // namespace meshstage::transfer
