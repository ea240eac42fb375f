// An allocation that fails. failing_new.cpp replaces the operator new of the program that has it.
#pragma once

namespace meshstage::test {

/// The n-th allocation (from 1, counted from now) of all threads of that name throws bad_alloc,
/// once. `thread` must live until allocation_failed().
void fail_allocation(const char* thread, int nth);
/// Whether it was made, and failed. From now on none fails. True, too, if fail_allocation() was not
/// called since the last time.
[[nodiscard]] bool allocation_failed();

}  // namespace meshstage::test
