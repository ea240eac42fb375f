#include "tests/transfer/held_blocks.hpp"

#include <optional>

namespace meshstage::held_blocks {
namespace {

// As core/protocol: never the base's slot, else one that is not sealed, else the older one.
std::size_t beside(const std::array<Slot, 2>& slots, std::uint8_t base) {
  for (std::size_t i = 0; i < 2; ++i) {
    if (base != 0 && slots[i].sealed != 0 && slots[i].step == base) return 1 - i;
  }
  if (slots[0].sealed != slots[1].sealed) return slots[0].sealed != 0 ? 1 : 0;
  return slots[0].step <= slots[1].step ? 0 : 1;
}

Digest digest(std::uint8_t block) { return {0, block}; }

}  // namespace

State Model::staged(const State& before, const Blocks& blocks, int arrive) const {
  State after = before;
  after.steps = static_cast<std::uint8_t>(before.steps + 1);
  const auto own = beside(before.own, before.base), held = beside(before.held, before.base);
  const Slot guess = before.own[own];
  after.own[own] = {1, after.steps, blocks, blocks, {kNone, kNone}};
  Slot& slot = after.held[held];
  const Blocks told = slot.table;
  slot.sealed = 0;
  slot.step = after.steps;
  if (rules.ends_when_begun) slot.table = {kNone, kNone};
  for (int i = 0; i < kBlocks && i < arrive; ++i) {
    const auto b = static_cast<std::size_t>(i);
    std::optional<Digest> there;
    if (rules.told && told[b] != kNone) there = digest(told[b]);
    if (!rules.told && guess.sealed != 0) there = digest(guess.has[b]);
    if (!there || !transfer::stays(*there, digest(blocks[b]))) slot.has[b] = blocks[b];
  }
  if (arrive > kBlocks) {
    slot.sealed = 1;
    slot.trailer = slot.table = blocks;
    after.base = after.steps;
  }
  return after;
}

void Model::moves(const State& state, explorer::Moves<State>& to) const {
  State replaced = state;
  for (Slot& slot : replaced.held) {
    slot.table = {kNone, kNone};
    if (!rules.ends_with_process && slot.step != 0) slot.table = slot.trailer;
  }
  to.add({0, 1, "is replaced"}, replaced);
  if (state.steps == steps) return;
  for (std::uint8_t a = 0; a < 2; ++a) {
    for (std::uint8_t b = 0; b < 2; ++b) {
      const Blocks blocks{a, b};
      for (int arrive = 0; arrive <= kBlocks + 1; ++arrive) {
        to.add({0, 0,
                arrive > kBlocks ? "stages, and it is complete: blocks"
                                 : "stages, and it fails on the way: blocks",
                10 * a + b},
               staged(state, blocks, arrive));
      }
    }
  }
}

std::string Model::violation(const State& state) const {
  for (const Slot& slot : state.held) {
    if (slot.sealed == 0 || slot.has == slot.trailer) continue;
    return "the sealed replica of step " + std::to_string(slot.step) + " has other blocks";
  }
  return {};
}

const char* Model::milestone(const State& state) const {
  for (const Slot& slot : state.held) {
    if (slot.sealed != 0 && slot.step > 2 && slot.table == slot.has)
      return "a table of a late step";
  }
  return nullptr;
}

}  // namespace meshstage::held_blocks
