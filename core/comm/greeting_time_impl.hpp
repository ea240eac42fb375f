#pragma once
#include <chrono>

namespace meshstage::detail {

/// A connection that has not said what a peer says first is dropped after this: on the links the
/// hello, at a Gloo port the pair's nonce.
inline constexpr std::chrono::milliseconds kGreetingTime{1000};

}  // namespace meshstage::detail
