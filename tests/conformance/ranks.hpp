// Ranks as threads: each runs the same function; what they throw is gathered for the main thread.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/transport.hpp>

namespace meshstage::testing {

/// Runs body(0..count-1) each on a thread of its own, joins them all; element r is what rank r
/// threw
/// ("" if nothing).
std::vector<std::string> run_ranks(int count, const std::function<void(int rank)>& body);
/// As run_ranks; throws std::runtime_error with all texts if there is one.
void run_ranks_without_error(int count, const std::function<void(int rank)>& body);

/// What error `f` throws: "" if none, else its what().
std::string error_of(const std::function<void()>& f);

/// Gives the transport of a rank; called on its thread.
using TransportOf = std::function<std::shared_ptr<Transport>(int rank)>;

enum class Linked { kTree, kAll };
ConnectRequest request_of(const std::string& name, int rank, int world, Linked linked);

/// Groups, or links, of `world` ranks over one fresh store.
std::vector<std::shared_ptr<ProcessGroup>> make_groups(const TransportOf& transport, int world,
                                                       Linked linked);
std::vector<std::shared_ptr<ControlLinks>> make_links(const TransportOf& transport, int world,
                                                      Linked linked);

}  // namespace meshstage::testing
