// What every Store does. Call inside a TEST_CASE; it uses SECTIONs.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/comm/store.hpp>

namespace meshstage::testing {

/// `open` gives another view of the same store at each call.
void store_conforms(const std::function<std::shared_ptr<Store>()>& open);
/// Ranks as threads, each with a view of its own, form a generation over it, lose one, read its
/// cause, and form the next with its replacement.
void ranks_form_over(const std::function<std::shared_ptr<Store>()>& open);
/// A client that was turned away at least once, then `start` starts the server, and the client has
/// it: `store` is its view of the address where the server will be, `after` one to use it by then
/// (the same, or one with more patience).
void server_may_start_later(Store& store, Store& after, const std::function<void()>& start);
/// Nobody ever listens where `store` looks: waiting for that ends at the deadline or at a stop,
/// with an error that says what was tried, and `hint`.
void silence_is_told(Store& store, const std::string& hint);

}  // namespace meshstage::testing
