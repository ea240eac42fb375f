// What every Store does. Call inside a TEST_CASE; it uses SECTIONs.
#pragma once
#include <functional>
#include <memory>

#include <meshstage/core/comm/store.hpp>

namespace meshstage::testing {

/// `open` gives another view of the same store at each call.
void store_conforms(const std::function<std::shared_ptr<Store>()>& open);
/// Ranks as threads, each with a view of its own, form a generation over it, lose one, read its
/// cause, and form the next with its replacement.
void ranks_form_over(const std::function<std::shared_ptr<Store>()>& open);

}  // namespace meshstage::testing
