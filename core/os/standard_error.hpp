#pragma once
#include <string>

namespace meshstage {

/// Writes the line, and its end, to standard error: for what no log takes. Does nothing if there is
/// no memory. Threads: any; lines do not mix.
void write_to_standard_error(const std::string& line) noexcept;

}  // namespace meshstage
