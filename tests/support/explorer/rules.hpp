#pragma once
#include <array>
#include <string_view>

#include <meshstage/core/protocol/transition.hpp>

/// The protocol's rules by name, so that tests and the explorer's command line can leave one out.
namespace meshstage::explorer {

struct NamedRule {
  const char* name;
  bool protocol::Rules::* member;
};

inline constexpr std::array<NamedRule, 36> kRules = {{
    {"found-anywhere", &protocol::Rules::found_anywhere},
    {"generations-apart", &protocol::Rules::generations_apart},
    {"verify-claims", &protocol::Rules::verify_claims},
    {"stage-beside-base", &protocol::Rules::stage_beside_base},
    {"vote-needs-replicas", &protocol::Rules::vote_needs_replicas},
    {"vote-needs-lent", &protocol::Rules::vote_needs_lent},
    {"promise", &protocol::Rules::promise},
    {"receiver-knows-outcome", &protocol::Rules::receiver_knows_outcome},
    {"all-must-vote", &protocol::Rules::all_must_vote},
    {"note-first", &protocol::Rules::note_first},
    {"beyond-unknown", &protocol::Rules::beyond_unknown},
    {"ask-beyond", &protocol::Rules::ask_beyond},
    {"look", &protocol::Rules::look},
    {"newest-covered", &protocol::Rules::newest_covered},
    {"old-if-newer", &protocol::Rules::old_if_newer},
    {"publish-old", &protocol::Rules::publish_old},
    {"prove-old", &protocol::Rules::prove_old},
    {"look-old", &protocol::Rules::look_old},
    {"old-anywhere", &protocol::Rules::old_anywhere},
    {"count-kept", &protocol::Rules::count_kept},
    {"keep-old", &protocol::Rules::keep_old},
    {"keep-old-replicas", &protocol::Rules::keep_old_replicas},
    {"complete-claims", &protocol::Rules::whole_claims},
    {"restore-holders", &protocol::Rules::restore_holders},
    {"fetch-beside-base", &protocol::Rules::fetch_beside_base},
    {"lent-stays-own", &protocol::Rules::lent_stays_own},
    {"agree-first", &protocol::Rules::agree_first},
    {"structure-first", &protocol::Rules::structure_first},
    {"publish-cut", &protocol::Rules::publish_cut},
    {"quarantine", &protocol::Rules::quarantine},
    {"finish-together", &protocol::Rules::finish_together},
    {"finish-is-a-no", &protocol::Rules::finish_is_a_no},
    {"orders-with-base", &protocol::Rules::orders_with_base},
    {"names-itself", &protocol::Rules::names_itself},
    {"waits-for-disk", &protocol::Rules::waits_for_disk},
    {"prune-together", &protocol::Rules::prune_together},
}};

static_assert(sizeof(protocol::Rules) == kRules.size(), "every rule has a name here");

/// The switch of that name; nullptr if there is none.
inline bool* find_rule(protocol::Rules& rules, std::string_view name) {
  for (const NamedRule& rule : kRules) {
    if (name == rule.name) return &(rules.*rule.member);
  }
  return nullptr;
}

}  // namespace meshstage::explorer
