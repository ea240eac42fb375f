#pragma once
#include <string>

namespace meshstage {

/// Ranks as an error's text lists them: "1, 3, 4". `ranks`: any range of int.
template <class Ranks>
[[nodiscard]] std::string ranks_text(const Ranks& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

}  // namespace meshstage
