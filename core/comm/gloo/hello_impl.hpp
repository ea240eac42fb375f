#pragma once
#include <array>
#include <cstdint>

namespace meshstage::gloo_address {

inline constexpr std::uint32_t kHelloVersion = 2;

/// What the two ends of a new connection tell each other. Every version has this size and slot, and
/// begins with the magic and the version.
struct Hello {
  std::array<char, 8> magic{'m', 's', 'g', 'l', 'o', 'o', 'h', 'i'};
  std::uint32_t version = kHelloVersion;
  std::int32_t world_size = 0;
  std::uint64_t job = 0;
  std::uint64_t generation = 0;
  std::uint64_t name = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
  std::array<char, 16> unused{};
};
static_assert(sizeof(Hello) == 64);
inline constexpr std::uint64_t kHelloSlot = 0x6d7368656c6c6f21;

}  // namespace meshstage::gloo_address
