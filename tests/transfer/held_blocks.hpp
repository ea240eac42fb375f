#pragma once
#include <array>
#include <cstdint>
#include <string>

#include <meshstage/core/transfer/kept.hpp>

#include "tests/support/explorer/breadth_first.hpp"

/// A model of an owner and a holder with two slots each, whose images have two blocks. The owner
/// stages steps that change any of them; each step fails after any number of blocks, or is
/// complete; the holder's process may be replaced at any time. What stays is decided by
/// transfer::stays().
///
/// The promise: what a sealed replica has is what its owner staged.
namespace meshstage::held_blocks {

/// Each can be left out, and then the promise breaks (held_blocks_test.cpp).
struct Rules {
  /// The holder says what its slot has; else the owner takes its own slot of that number for it.
  bool told = true;
  /// The table ends when the slot is begun to be written; else it lives until the next seal.
  bool ends_when_begun = true;
  /// The table ends with its process; else the next one takes the trailer that it finds for it.
  bool ends_with_process = true;
};

constexpr int kBlocks = 2;
constexpr std::uint8_t kNone = 0xFF;
using Blocks = std::array<std::uint8_t, kBlocks>;

struct Slot {
  std::uint8_t sealed = 0;
  std::uint8_t step = 0;
  Blocks has{};      ///< The bytes.
  Blocks trailer{};  ///< What the image that was last sealed there said.
  Blocks table{kNone, kNone};
};

struct State {
  std::uint8_t steps = 0;  ///< That were staged.
  std::uint8_t base = 0;   ///< The newest complete one.
  std::array<Slot, 2> own, held;
};

struct Model {
  using State = held_blocks::State;
  Rules rules;
  int steps = 5;

  [[nodiscard]] State start() const { return {}; }
  void moves(const State& state, explorer::Moves<State>& to) const;
  [[nodiscard]] std::string violation(const State& state) const;
  [[nodiscard]] std::string at_rest(const State&) const { return {}; }
  [[nodiscard]] const char* milestone(const State& state) const;

 private:
  [[nodiscard]] State staged(const State& before, const Blocks& blocks, int arrive) const;
};

}  // namespace meshstage::held_blocks
