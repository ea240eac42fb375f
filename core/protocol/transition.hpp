#pragma once
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/protocol/state.hpp>

/// The replication and recovery protocol of one rank as a pure function: transition(state, event)
/// changes the state and returns actions. No I/O, no clock, no threads, no randomness. The same
/// function runs in production (core/replicate's Driver gives it events and carries out its
/// actions), in the tests and in the explorer. PROTOCOL.md beside this file has the rules and the
/// argument.
///
/// What the driver must do (the protocol's safety rests on it):
/// - it gives one event at a time, and carries out all actions of an event in order before the next
/// event; a slot is WRITING before a byte of its image is written, and before ReplicaReady;
/// - it gives Formed{g} before any message of g, and only when every write and transfer of the
/// generation before has ended and no receive target of it can be written again (rule 8);
/// - it ends every WriteOwn, AcceptReplica and Fetch with exactly one event (…Sealed, …Failed,
/// Fetched or FetchFailed), after AbortRound and AbortTransfers too; after Broken it may end them
/// silently;
/// - it delivers messages of one pair of ranks in the order in which they were sent, or not at all;
/// - it gives a Sealed event when all bytes are written, digests match, the slot's header is SEALED
/// and all stores are fenced.
namespace meshstage::protocol {

/// Takes one event and appends the actions to `out`, in order. Any event is safe in any state: one
/// that does not fit gives Refuse and changes nothing. Time and memory are proportional to the
/// number of a Have's claims, for other events to the number of wards.
MESHSTAGE_API void transition(State& state, const Event& event, std::vector<Action>& out);

}  // namespace meshstage::protocol
