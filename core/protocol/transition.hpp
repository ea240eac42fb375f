#pragma once
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/protocol/state.hpp>

/// The replication and recovery protocol of one rank as a pure function: transition(state, event)
/// changes the state and says what is to be done. No I/O, no clock, no threads, no randomness. The
/// same function runs in production (the agent feeds it and carries out its actions), in the tests
/// and in the explorer. PROTOCOL.md beside this file has the rules and the argument.
///
/// What the driver owes (the protocol's safety rests on it):
/// - one event at a time, and all actions of an event carried out in order before the next event;
///   a slot is WRITING in memory before the action that said so returns;
/// - Formed{g} is fed only when every write and transfer of the generation before has ended and its
///   receive targets can never be written again (rule 8), and before any message of g;
/// - every WriteOwn, AcceptReplica and Fetch ends with exactly one event that says how (…Sealed,
///   …Failed, Fetched, FetchFailed), after AbortRound and after AbortTransfers too, except that
///   after Broken the driver may end them silently;
/// - messages of one pair of ranks arrive in the order they were sent, or not at all;
/// - Sealed events mean: all bytes written, digests match, slot header SEALED, all stores fenced.
namespace meshstage::protocol {

/// Takes one event. Appends to `out` what is to be done, in order. Any event is safe in any state:
/// what does not fit is answered by Refuse and changes nothing. Time and memory are proportional
/// to what the event is about (a Have to its claims, others to the number of wards).
MESHSTAGE_API void transition(State& state, const Event& event, std::vector<Action>& out);

}  // namespace meshstage::protocol
