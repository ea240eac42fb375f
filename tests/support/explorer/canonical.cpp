#include <algorithm>
#include <tuple>

#include "tests/support/explorer/world.hpp"

/// Canonical bytes: every field that distinguishes two worlds, each in a self-delimiting form.
/// Small numbers take one byte, because that is what nearly all of them are.
namespace meshstage::explorer {

void put_number(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

void put_id(std::string& out, ImageId id) {
  put_number(out, id.generation);
  put_number(out, id.step);
}

namespace {

void put_orders(std::string& out, const Orders& orders) {
  put_number(out, (orders.end ? 1U : 0U) | (orders.persist ? 2U : 0U));
}
void put_wishes(std::string& out, const Wishes& wishes) {
  put_number(out, (wishes.end ? 1U : 0U) | (wishes.persist ? 2U : 0U) | 4U * wishes.since_disk);
}

template <class E>
void put_enum(std::string& out, E value) {
  out.push_back(static_cast<char>(value));
}

void put_rank(std::string& out, int rank) { put_number(out, static_cast<std::uint64_t>(rank + 1)); }

void put_text(std::string& out, const std::string& text) {
  put_number(out, text.size());
  out += text;
}

void put_slot(std::string& out, const Slot& slot) {
  put_enum(out, slot.state);
  put_id(out, slot.id);
  put_id(out, slot.base);
}

// Of sizes and digests what follows from id and owner is left out; the loans follow from the rest.
void put_claim(std::string& out, const Claim& claim) {
  put_rank(out, claim.at);
  put_rank(out, claim.owner);
  put_enum(out, claim.place);
  put_number(out, static_cast<std::uint64_t>(claim.slot));
  put_id(out, claim.id);
  put_id(out, claim.base);
  put_number(out, claim.sizes.borrowed_bytes);
  put_number(out, claim.image_digest.low);
  put_rank(out, claim.vault);
}

template <class List, class F>
void put_list(std::string& out, const List& list, F f) {
  put_number(out, list.size());
  for (const auto& item : list) f(out, item);
}

void put_choice(std::string& out, const protocol::Choice& choice) {
  put_id(out, choice.id);
  put_id(out, choice.base);
  put_list(out, choice.transfers, [](std::string& o, const Transfer& t) {
    put_claim(o, t.source);
    put_rank(o, t.to);
  });
}

void put_round(std::string& out, const Round& round) {
  put_id(out, round.id);
  put_enum(out, round.verdict);
  put_enum(out, round.own);
  put_number(out, round.below_yes | (round.requested ? 4U : 0U) | (round.voted ? 8U : 0U) |
                      (round.reported ? 16U : 0U) | (round.asked_persist ? 32U : 0U));
  put_wishes(out, round.below);
  put_list(out, round.wards, [](std::string& o, const WardPart& ward) {
    put_enum(o, ward.part);
    put_number(o, ward.sizes.borrowed_bytes);
    put_number(o, ward.image_digest ? ward.image_digest->low + 1 : 0);
  });
  put_number(out, round.lent.empty() ? 0 : round.lent.front().low + 1);
  for (const auto& borrow : round.borrows) {
    put_number(out, borrow ? 2 * borrow->digest.low + borrow->bytes + 1 : 0);
  }
  put_number(out, round.overdue);
}

struct PutBody {
  std::string& out;
  void operator()(const protocol::Offer& m) const {
    put_id(out, m.id), put_id(out, m.base), put_number(out, m.sizes.borrowed_bytes);
    put_orders(out, m.base_orders);
  }
  void operator()(const Accept& m) const { put_id(out, m.id); }
  void operator()(const Sealed& m) const { put_id(out, m.id), put_number(out, m.image_digest.low); }
  void operator()(const Borrow& m) const {
    put_id(out, m.id), put_number(out, m.bytes), put_number(out, m.digest.low);
  }
  void operator()(const Differ& m) const { put_id(out, m.id); }
  void operator()(const StreamStart& m) const {
    put_rank(out, m.owner), put_id(out, m.id), put_enum(out, m.content);
  }
  void operator()(const Want& m) const { put_id(out, m.id); }
  void operator()(const Yes& m) const { put_id(out, m.id), put_wishes(out, m.wishes); }
  void operator()(const Complete& m) const { put_id(out, m.id), put_orders(out, m.orders); }
  void operator()(const Failed& m) const {
    put_id(out, m.id), put_rank(out, m.rank), put_text(out, m.why);
  }
  void operator()(const Have& m) const {
    put_number(out, m.disk ? 1 : 0);
    put_list(out, m.claims, put_claim);
    put_id(out, m.evidence);
    put_id(out, m.beyond);
  }
  void operator()(const AskDisk& m) const { put_id(out, m.newer_than), put_id(out, m.up_to); }
  void operator()(const protocol::Choice& m) const { put_choice(out, m); }
  void operator()(const Ready& m) const { put_rank(out, m.mismatch ? m.mismatch->rank : -1); }
  void operator()(const Established& m) const { put_id(out, m.id); }
  void operator()(const GiveUp& m) const {
    put_enum(out, m.failure.kind), put_rank(out, m.failure.rank), put_text(out, m.failure.why);
  }
  void operator()(const OnDisk& m) const { put_id(out, m.id); }
  void operator()(const AllOnDisk& m) const { put_id(out, m.id); }
  void operator()(const WantFinish&) const {}
  void operator()(const Finish&) const {}
  void operator()(const Publish& m) const {
    put_id(out, m.step.id), put_number(out, m.replicas ? 1 : 0);
    put_rank(out, m.mismatch ? m.mismatch->rank : -1);
  }
  void operator()(const Published& m) const { put_list(out, m.written, put_rank); }
  void operator()(const Overdue& m) const { put_id(out, m.id), put_number(out, m.times); }
  void operator()(const Moved& m) const {
    put_number(out, m.count), put_number(out, m.asks ? 1 : 0);
  }
  void operator()(const Death& m) const { put_rank(out, m.rank), put_enum(out, m.kind); }
};

}  // namespace

void put(std::string& out, const Message& message) {
  put_number(out, message.generation);
  put_number(out, message.body.index());
  std::visit(PutBody{out}, message.body);
}

void put(std::string& out, const State& s) {
  put_enum(out, s.mode);
  put_number(out, s.generation);
  put_wishes(out, s.wishes);
  if (s.mode != Mode::kRecovering && s.mode != Mode::kReady)
    return;  // the rest is void until Formed
  for (const Slot& slot : s.own) put_slot(out, slot);
  for (const SlotPair& pair : s.held) put_slot(out, pair[0]), put_slot(out, pair[1]);
  put_id(out, s.base);
  put_orders(out, s.base_orders);
  put_id(out, s.newest_requested);
  put_number(out, (s.noted ? 1U : 0U) | (s.wants_finish ? 2U : 0U) | s.finish_below * 4U);
  put_list(out, s.rounds, put_round);
  put_list(out, s.files, [](std::string& o, const FileRound& f) {
    put_id(o, f.id);
    put_number(o, (f.mine ? 4U : 0U) | f.below);
  });
  const Recovery& r = s.recovery;
  put_enum(out, r.phase);
  if (r.phase == Recovery::Phase::kIdle) return;
  put_number(out, (r.mine ? 4U : 0U) | (r.structure_ok ? 8U : 0U) | r.below);
  put_list(out, r.claims, put_claim);
  put_id(out, r.evidence);
  put_id(out, r.beyond);
  put_id(out, r.newer_than);
  put_id(out, r.up_to);
  put_list(out, r.named, [](std::string& o, const OldStep& step) { put_id(o, step.id); });
  put_id(out, r.old.id);
  put_id(out, r.proven.id);
  put_number(out, r.looked ? 1 : 0);
  put_id(out, r.publishing.id);
  put_rank(out, r.mismatch ? r.mismatch->rank : -1);
  put_list(out, r.written, put_rank);
  put_list(out, r.others, put_claim);
  put_number(out, static_cast<std::uint64_t>(r.published));
  put_choice(out, r.choice);
  put_list(out, r.bridges, put_rank);
  put_list(out, r.lend_later, put_rank);
  put_number(out, r.connecting ? 1 : 0);
  put_number(out, static_cast<std::uint64_t>(r.fetching));
  put_number(out, static_cast<std::uint64_t>(r.own_slot + 1));
  put_number(out, r.overdue);
}

void put(std::string& out, const Job& job) {
  put_enum(out, job.kind);
  put_number(out, job.generation);
  put_rank(out, job.owner);
  put_number(out, static_cast<std::uint64_t>(job.slot));
  put_id(out, job.id);
  put_id(out, job.base);
  put_number(out, (job.digest_known ? 1U : 0U) | (job.sending ? 2U : 0U) | (job.aborted ? 4U : 0U));
  put_number(out, job.lenders);
  put_number(out, static_cast<std::uint64_t>(job.loan));
  if (job.kind != Job::Kind::kFetch) return;
  put_number(out, job.lent);
  put_claim(out, job.source);
}

void put(std::string& out, const MemorySlot& slot) {
  put_enum(out, slot.header);
  if (slot.header == MemorySlot::Header::kEmpty) return;
  put_id(out, slot.id);
  put_id(out, slot.base);
  put_number(out, (slot.whole ? 1U : 0U) | (slot.old ? 2U : 0U));
  if (!slot.whole) return;
  put_id(out, slot.content);
  put_rank(out, slot.content_owner);
  put_number(out, slot.lenders);
  put_number(out, static_cast<std::uint64_t>(slot.loan));
}

std::string World::bytes() const {
  std::string out;
  out.reserve(512);
  for (const int n :
       {left_.crashes, left_.host_losses, left_.losses_beyond, left_.lost_messages, left_.timeouts,
        left_.local_failures, left_.skips, left_.mismatches, left_.flips, left_.zombies,
        left_.differences, left_.early_ends, left_.ends, left_.unanswered, left_.reseats,
        left_.hangs, left_.waits, left_.slow_disks, left_.stuck_disks}) {
    out.push_back(static_cast<char>(n));
  }
  const auto put_file = [](std::string& o, const File& file) {
    put_rank(o, file.owner);
    put_id(o, file.id);
    put_number(o, file.lenders);
    put_number(o, static_cast<std::uint64_t>(file.loan));
  };
  put_number(out, old_files_);
  put_number(out, old_damaged_);
  put_number(out, nodes_.size());
  for (const Node& node : nodes_) {
    put_rank(out, node.rank);
    put_rank(out, node.host);
    put_number(out, (node.alive ? 1U : 0U) | (node.zombie ? 2U : 0U) | (node.pending ? 4U : 0U) |
                        (node.gave_up ? 8U : 0U) | (node.hung ? 16U : 0U));
    put_number(out, node.waited);
    put_enum(out, node.disk);
    if (node.alive) put(out, node.state);
    put_list(out, node.jobs, [](std::string& o, const Job& job) { put(o, job); });
    for (const MemorySlot& slot : node.own) put(out, slot);
    for (const MemorySlots& pair : node.held) put(out, pair[0]), put(out, pair[1]);
    put_list(out, node.files, put_file);
    put_number(out, static_cast<std::uint64_t>(node.next_step));
    put_number(out, node.unborrowed);
    put_number(out, node.old_held);
    put_number(out, node.old_files);
  }
  put_list(out, strays_, [](std::string& o, const Stray& stray) {
    put_rank(o, stray.host), put_rank(o, stray.rank);
    put_number(o, stray.taken), put_rank(o, stray.by);
    for (const MemorySlot& slot : stray.own) put(o, slot);
    for (const MemorySlots& pair : stray.held) put(o, pair[0]), put(o, pair[1]);
  });
  put_list(out, left_files_, [&](std::string& o, const LeftFiles& left) {
    put_rank(o, left.host), put_rank(o, left.writer);
    put_list(o, left.files, put_file);
  });
  // Only the order within one pair and generation matters.
  using Place = std::tuple<int, int, std::uint64_t, std::size_t>;
  std::vector<Place> order;
  order.reserve(letters_.size());
  for (std::size_t i = 0; i < letters_.size(); ++i) {
    const Letter& letter = *letters_[i];
    order.emplace_back(letter.from, letter.to, letter.message.generation, i);
  }
  std::sort(order.begin(), order.end());
  put_number(out, order.size());
  for (const auto& [from, to, generation, index] : order) {
    put_rank(out, from);
    put_rank(out, to);
    out += letters_[index]->bytes;
  }
  put_list(out, early_, [](std::string& o, const Early& f) {
    put_rank(o, f.from), put_rank(o, f.to), put_rank(o, f.owner);
    put_number(o, f.generation);
    put_enum(o, f.what);
    put_id(o, f.id);
  });
  put_list(out, dead_links_, [](std::string& o, const DeadLink& link) {
    put_rank(o, link.from), put_rank(o, link.to);
    put_number(o, link.generation);
  });
  put_number(out, store_generation_);
  put_id(out, agreed_);
  put_id(out, on_disk_);
  put_number(out, (note_.exists() ? 1U : 0U) | (degraded_ ? 2U : 0U) | (beyond_ ? 4U : 0U) |
                      (ever_agreed_ ? 8U : 0U) | (finished_ ? 16U : 0U));
  put_number(out, verdicts_.size());
  for (const auto& [id, complete] : verdicts_) put_id(out, id), out.push_back(complete ? 1 : 0);
  put_number(out, bounds_->ends > 0 ? last_.size() : 0);
  for (const auto& [id, last] : last_) {
    if (bounds_->ends > 0) put_id(out, id), out.push_back(last ? 1 : 0);
  }
  put_number(out, restored_generation_);
  put_number(out, restored_.size());
  for (const auto& [rank, id] : restored_) put_rank(out, rank), put_id(out, id);
  put_number(out, mismatch_generation_);
  put_number(out, lost_in_);
  put_number(out, wants_finish_);
  return out;
}

}  // namespace meshstage::explorer
