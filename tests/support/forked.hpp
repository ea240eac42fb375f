#pragma once
#include <functional>

namespace meshstage::test {

/// Runs `body` in a child made by fork() of this process. True if the child then ends with status 0
/// within ten seconds; a child that hangs is killed.
[[nodiscard]] bool ends_in_forked_child(const std::function<void()>& body);

}  // namespace meshstage::test
