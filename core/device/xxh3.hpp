#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

/// XXH3 of more than 240 bytes, as specified, in pieces that may be computed in parallel; for the
/// host's compilers and for nvcc. The input is a row of stripes of 64 bytes; 16 stripes are a
/// group. Each of eight lanes adds up one product for each stripe, within a group in any order.
/// After each group the lanes are scrambled: only this step depends on the groups before. At the
/// end the last 64 bytes are added again, with a secret of their own, and the lanes are folded:
/// once for XXH3-64, which is the lower half of XXH3-128, and once for the upper half. The secret
/// moves by 8 bytes from stripe to stripe.
namespace meshstage::detail::xxh3 {

using Word = std::uint64_t;
inline constexpr std::size_t kLanes = 8;
using Lanes = std::array<Word, kLanes>;

inline constexpr std::size_t kStripe = 64;       ///< Bytes.
inline constexpr std::size_t kGroup = 16;        ///< Stripes.
inline constexpr std::size_t kLeastBytes = 241;  ///< Shorter inputs are digested otherwise.
inline constexpr std::size_t kSecretBytes = 192;
inline constexpr std::size_t kScrambleSecret = kSecretBytes - kStripe;
inline constexpr std::size_t kLastSecret = kSecretBytes - kStripe - 7;
inline constexpr std::size_t kFoldSecret = 11;
inline constexpr std::size_t kUpperFoldSecret = kSecretBytes - kStripe - kFoldSecret;

inline constexpr Word kPrime32A = 0x9E3779B1, kPrime32B = 0x85EBCA77, kPrime32C = 0xC2B2AE3D;
inline constexpr Word kPrime64A = 0x9E3779B185EBCA87, kPrime64B = 0xC2B2AE3D27D4EB4F,
                      kPrime64C = 0x165667B19E3779F9, kPrime64D = 0x85EBCA77C2B2AE63,
                      kPrime64E = 0x27D4EB2F165667C5;

/// The initial lanes.
inline constexpr Lanes kBegin{kPrime32C, kPrime64A, kPrime64B, kPrime64C,
                              kPrime64D, kPrime32B, kPrime64E, kPrime32A};

/// The specification's default secret, as little-endian words.
using Secret = std::array<Word, kSecretBytes / sizeof(Word)>;
inline constexpr Secret kSecret{
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};

/// The word of a secret that begins with byte `at`.
constexpr Word secret_word(const Secret& secret, std::size_t at) {
  const std::size_t shift = 8 * (at % sizeof(Word));
  const Word low = secret[at / sizeof(Word)];
  return shift == 0 ? low : low >> shift | secret[at / sizeof(Word) + 1] << (64 - shift);
}

/// The product that a word of a stripe adds to its own lane; `key` is the secret's word for it. The
/// word itself is added to the neighbour of lane i, lane i ^ 1.
constexpr Word product(Word data, Word key) {
  const Word keyed = data ^ key;
  return (keyed & 0xFFFFFFFF) * (keyed >> 32U);
}

/// A lane after a group; `key` is the secret's word for it (kScrambleSecret).
constexpr Word scramble(Word lane, Word key) { return (lane ^ lane >> 47U ^ key) * kPrime32A; }

/// Half of the digest. `at`: kFoldSecret with lower_begin(), or kUpperFoldSecret with
/// upper_begin().
constexpr Word fold(const Lanes& lanes, const Secret& secret, std::size_t at, Word sum) {
  for (std::size_t i = 0; i < kLanes; i += 2) {
    __extension__ using Wide = unsigned __int128;
    const Wide wide = Wide{lanes[i] ^ secret_word(secret, at + 8 * i)} *
                      (lanes[i + 1] ^ secret_word(secret, at + 8 * i + 8));
    sum += static_cast<Word>(wide) ^ static_cast<Word>(wide >> 64U);
  }
  sum ^= sum >> 37U;
  sum *= 0x165667919E3779F9;
  return sum ^ sum >> 32U;
}
constexpr Word lower_begin(Word bytes) { return bytes * kPrime64A; }
constexpr Word upper_begin(Word bytes) { return ~(bytes * kPrime64B); }

}  // namespace meshstage::detail::xxh3
