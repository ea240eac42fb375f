#pragma once
#include <string>

namespace meshstage {

/// Writes the line, and its end, to standard error: for what no log takes. Does nothing if there is
/// no memory. Threads: any; lines do not mix.
void write_to_standard_error(const std::string& line) noexcept;

/// Gives `line` to the user's `callback`; if there is none, `text` goes to standard error. Throws
/// what the callback throws.
template <class Callback, class Line>
void tell_or_write(const Callback& callback, const Line& line, const std::string& text) {
  if (callback) {
    callback(line);
  } else {
    write_to_standard_error(text);
  }
}

}  // namespace meshstage
