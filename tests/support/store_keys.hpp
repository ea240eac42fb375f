// The Store's keys of one generation, as core/comm/membership.hpp lists them: for tests that play
// another rank.
#pragma once
#include <cstdint>
#include <string>

namespace meshstage::test {

inline std::string twenty_digits(std::uint64_t generation) {
  const std::string digits = std::to_string(generation);
  return std::string(20 - digits.size(), '0') + digits;
}
inline std::string generation_key(const std::string& job, std::uint64_t generation,
                                  const std::string& what) {
  return job + "/gen/" + twenty_digits(generation) + "/" + what;
}
inline std::string claim_key(const std::string& job, std::uint64_t generation) {
  return job + "/claim/" + twenty_digits(generation);
}

}  // namespace meshstage::test
