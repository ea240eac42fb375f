#include <algorithm>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/points/points.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <random>
#include <string>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::protocol;

namespace {

const WireContext kContext{0x1122334455667788, 4};

Claim any_claim() {
  Claim claim;
  claim.at = 3;
  claim.owner = 1;
  claim.place = Place::kHeldSlot;
  claim.slot = 1;
  claim.world_size = 4;
  claim.id = {2, 85};
  claim.base = {2, 80};
  claim.sizes = {1ULL << 40U, 4096, {1, 2}};
  claim.image_digest = {3, 4};
  return claim;
}

Claim borrowing_claim() {
  Claim claim = any_claim();
  claim.sizes.borrowed_bytes = 1ULL << 30U;
  claim.sizes.loans = 3;
  claim.borrowed = {{0, {5, 6}}, {2, {7, 8}}};
  claim.lent = {{0, {9, 10}}};
  return claim;
}

Claim file_claim() {
  Claim claim = any_claim();
  claim.place = Place::kOwnFile;
  claim.slot = 0;
  return claim;
}

Claim stray_claim() {
  Claim claim = any_claim();
  claim.place = Place::kStray;
  claim.vault = 2;
  return claim;
}

StreamStart any_start() {
  return {1, {3, 17}, Content::kLent, true, 4096 * 21, 4096, 8192, 16384, 2, false, 7};
}

Want any_want() {
  return {{3, 17},
          {{"model.w%2E0", 5000}, {"", 1}, {std::string("\0\xFFx", 3), kMostImageBytes / 2}}};
}

Failure another_cut() { return {ErrorKind::kStructureMismatch, 1, {}, "w", "S(0) against S(1)"}; }

std::vector<Body> all_bodies() {
  const ImageId id{2, 85}, base{1, 80};
  Failure failure;
  failure.kind = ErrorKind::kStructureMismatch;
  failure.rank = 2;
  failure.ranks = {0, 3};
  failure.path = "model.h.0.weight";
  failure.why = "F32[2] against F32[3]";
  return {Offer{id, base, {1000, 100, {5, 6}}},
          Offer{id, base, {1000, 100, {5, 6}, 900, 4}},
          Accept{id, false},
          Accept{id, false, {{1, 2}, {3, 4}}},
          Sealed{id, {7, 8}},
          Yes{id},
          Yes{id, {true, false, 7}},
          Yes{id, {false, true, 0}},
          Complete{id},
          Complete{id, {true, false}},
          Complete{id, {false, true}},
          Offer{id, base, {1000, 100, {5, 6}}, {true, true}},
          Failed{id, 3, "no room: 1 of 2 bytes"},
          Have{false, {any_claim(), any_claim()}, base},
          Have{false, {borrowing_claim(), any_claim(), borrowing_claim()}, base},
          Have{true, {file_claim()}, kNoImage, "rank 1: block 3 does not match its digest"},
          Have{true, {file_claim(), stray_claim()}, base},
          AskDisk{kNoImage},
          AskDisk{base, id},
          Choice{id, base, {{any_claim(), 2}}},
          Choice{id, base, {{borrowing_claim(), 1}, {any_claim(), 2}}},
          Ready{},
          Ready{another_cut()},
          Established{id},
          GiveUp{failure},
          OnDisk{id},
          AllOnDisk{id},
          WantFinish{},
          Finish{},
          Death{-1, ErrorKind::kPeerSilent, "silent"},
          Borrow{id, 1ULL << 40U, {11, 12}},
          Differ{id},
          any_start(),
          StreamStart{0, {1, 1}, Content::kImage, false, 8192, 4096, 4096, 0, 0},
          any_want(),
          Want{id, {}},
          Overdue{id, 3},
          Overdue{kNoImage, 1},
          Publish{{id, 16}, true},
          Publish{{id, 4}, false, another_cut()},
          Published{"no room", {0, 70}},
          Moved{0, true},
          Moved{~std::uint64_t{0}, false}};
}

std::string refusal(const std::vector<std::byte>& bytes, int sender = 2,
                    WireContext context = kContext) {
  try {
    (void)decode(context, sender, bytes);
    return "";
  } catch (const CorruptData& error) {
    return error.what();
  }
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<std::byte> bytes_of(const Body& body) { return encode(kContext, 2, {9, body}); }

/// The message with one byte changed.
std::vector<std::byte> with(std::vector<std::byte> bytes, std::size_t at, int value) {
  bytes.at(at) = static_cast<std::byte>(value);
  return bytes;
}

// Where a claim's loans are.
constexpr std::size_t kSizesEnd = 4 + 4 + 1 + 1 + 4 + 16 + 16 + 32;
constexpr std::size_t kMoreSizes = 8 + 4;
constexpr std::size_t kFirstClaim = kWireHeaderBytes + 1 + 4;  // of a Have

}  // namespace

TEST_CASE("every message survives the wire") {
  std::size_t kinds = 0;
  for (const Body& body : all_bodies()) {
    const Message message{9, body};
    REQUIRE(decode(kContext, 2, encode(kContext, 2, message)) == message);
    kinds |= std::size_t{1} << body.index();
  }
  REQUIRE(kinds == (std::size_t{1} << std::variant_size_v<Body>)-1);
}

TEST_CASE("the bytes of a message are these") {
  const auto bytes = bytes_of(Accept{{2, 85}, true});
  std::string hex;
  for (const std::byte b : bytes) {
    constexpr const char* kDigits = "0123456789abcdef";
    hex += kDigits[static_cast<unsigned>(b) >> 4U];
    hex += kDigits[static_cast<unsigned>(b) & 15U];
  }
  REQUIRE(hex ==
          "4d53504d"
          "0a00"
          "0100"
          "8877665544332211"
          "04000000"
          "02000000"
          "0900000000000000"
          "0200000000000000"
          "5500000000000000"
          "01"
          "00000000");
}

TEST_CASE("a message cut short anywhere is refused, and so is one with more behind it") {
  for (const Body& body : all_bodies()) {
    auto bytes = bytes_of(body);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      const std::vector<std::byte> cut(bytes.begin(),
                                       bytes.begin() + static_cast<std::ptrdiff_t>(length));
      REQUIRE(says(refusal(cut), "from rank 2"));
    }
    bytes.push_back(std::byte{0});
    REQUIRE(refusal(bytes) != "");
  }
}

TEST_CASE("messages of another version are refused") {
  for (const int version : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11}) {
    REQUIRE(says(refusal(with(bytes_of(Yes{{2, 85}}), 4, version)),
                 "version: " + std::to_string(version) + ", this library reads 10; use one build"));
  }
}

TEST_CASE("what is wrong with a stream start or a want is named") {
  const auto start = [](auto&& change) {
    StreamStart s = any_start();
    change(s);
    return refusal(bytes_of(s));
  };
  REQUIRE(start([](StreamStart&) {}).empty());
  REQUIRE(
      says(start([](StreamStart& s) { s.owner = 4; }), "stream-start from rank 2: owner: rank"));
  REQUIRE(says(start([](StreamStart& s) { s.image_bytes = kMostImageBytes + 1; }), "image bytes"));
  REQUIRE(says(start([](StreamStart& s) { s.image_bytes = ~0ULL; }), "image bytes"));
  REQUIRE(says(start([](StreamStart& s) { s.block_bytes = 0; }), "block bytes: 0"));
  REQUIRE(
      says(start([](StreamStart& s) { s.manifest_bytes = s.image_bytes + 1; }), "manifest bytes"));
  REQUIRE(says(start([](StreamStart& s) { s.connections = 0; }), "connections: 0"));
  REQUIRE(says(start([](StreamStart& s) { s.borrowed_bytes = s.image_bytes; }), "borrowed bytes"));
  REQUIRE(says(start([](StreamStart& s) { s.borrowed_bytes = ~0ULL - 4095; }), "borrowed bytes"));
  const auto bytes = bytes_of(any_start());
  REQUIRE(says(refusal(with(bytes, kWireHeaderBytes + 4 + 16, 2)), "content: 2 is above 1"));
  REQUIRE(says(refusal(with(bytes, kWireHeaderBytes + 4 + 17, 2)), "with manifest: 2"));

  const auto want = [](std::vector<NamedStorage> storages) {
    return refusal(bytes_of(Want{{3, 17}, std::move(storages)}));
  };
  REQUIRE(want({{"", 1}, {"\xff", kMostImageBytes - 1}}).empty());
  REQUIRE(says(want({{"a", 0}}), "want from rank 2: storage's bytes: 0"));
  REQUIRE(says(want({{"a", kMostImageBytes + 1}}), "storage's bytes"));
  REQUIRE(says(want({{"a", 2}, {"b", kMostImageBytes - 1}}), "storage's bytes"));  // all together
  REQUIRE(says(want({{"a", 2}, {"b", ~0ULL}}), "storage's bytes"));
  const auto named = bytes_of(Want{{1, 1}, {{std::string(40, 'n'), 1}}});
  const std::size_t count = kWireHeaderBytes + 16;
  REQUIRE(says(refusal(with(named, count, 200)), "storages: 200 of them do not fit"));
  REQUIRE(says(refusal(with(named, count, 2)), "the message ends before it"));
  REQUIRE(says(refusal(with(named, count + 4 + 8, 41)), "storage's name: 41 of them do not fit"));
}

TEST_CASE("a mismatch that is none of a rank's structure is refused") {
  Failure failure = another_cut();
  failure.kind = ErrorKind::kIo;
  REQUIRE(says(refusal(bytes_of(Ready{failure})), "ready from rank 2: mismatch"));
  failure = another_cut();
  failure.rank = -1;
  REQUIRE(says(refusal(bytes_of(Publish{{{2, 85}, 4}, false, failure})), "mismatch"));
}

TEST_CASE("loans that cannot be are refused by name") {
  REQUIRE(says(refusal(bytes_of(Offer{{2, 85}, {}, {1000, 100, {}, 901, 1}})),
               "offer from rank 2: borrowed bytes: 901 is more than the image has"));
  REQUIRE(says(refusal(bytes_of(Offer{{2, 85}, {}, {1000, 100, {}, ~0ULL, 1}})), "borrowed bytes"));
  Claim claim = borrowing_claim();
  claim.sizes.borrowed_bytes = claim.sizes.image_bytes;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "borrowed bytes"));
  claim = borrowing_claim();
  claim.borrowed[1].rank = -1;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "claim's lenders: rank -1"));
  claim = borrowing_claim();
  claim.lent[0].rank = -2;
  REQUIRE(says(refusal(bytes_of(Choice{{2, 85}, {}, {{claim, 0}}})), "claim's borrowers: rank -2"));
  // Counts against what follows, before anything is allocated.
  const auto have = bytes_of(Have{false, {any_claim()}, {}});
  const std::size_t borrowed = kFirstClaim + kSizesEnd + kMoreSizes + 16;
  REQUIRE(says(refusal(with(have, borrowed, 200)), "claim's lenders: 200 of them do not fit"));
  REQUIRE(says(refusal(with(have, borrowed + 3, 255)), "claim's lenders: 4278190080 of them"));
  REQUIRE(says(refusal(with(have, borrowed + 4, 3)), "claim's borrowers: 3 of them"));
}

TEST_CASE("what is wrong with a message is named") {
  const auto accept = bytes_of(Accept{{2, 85}, true});
  REQUIRE(says(refusal(with(accept, 0, 0)), "magic"));
  REQUIRE(says(refusal(with(accept, 4, 99)), "version: 99"));
  REQUIRE(says(refusal(with(accept, 6, 200)), "kind: 200"));
  REQUIRE(says(refusal(with(accept, 8, 0)), "job"));
  REQUIRE(says(refusal(with(accept, 16, 5)), "world size: 5, this job has 4"));
  REQUIRE(says(refusal(with(accept, 20, 1)), "sender: it says rank 1"));
  REQUIRE(says(refusal(with(accept, 24, 0)), "generation"));
  REQUIRE(says(refusal(with(accept, 32, 0)), "accept from rank 2: id"));
  REQUIRE(says(refusal(with(accept, 48, 2)), "need manifest: 2 is above 1"));
  REQUIRE(says(refusal(with(accept, 49, 1)), "held blocks: 1 of them do not fit"));
  REQUIRE(says(refusal(accept, 3), "sender"));

  REQUIRE(says(refusal(bytes_of(Failed{{2, 85}, 4, {}})), "failed from rank 2: rank: rank 4"));
  REQUIRE(says(refusal(bytes_of(Failed{{2, 85}, -2, {}})), "rank -2"));
  REQUIRE(says(refusal(bytes_of(Offer{{2, 85}, {2, 85}, {}})), "base"));
  REQUIRE(says(refusal(bytes_of(Offer{{2, 85}, {}, {10, 11, {}}})), "manifest bytes: 11"));
  REQUIRE(says(refusal(bytes_of(Offer{{2, 85}, {}, {~0ULL, 0, {}}})), "image bytes"));
  Claim claim = any_claim();
  claim.at = 9;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "claim's place: rank 9"));
  claim = any_claim();
  claim.owner = 4;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "claim's owner"));
  claim = any_claim();
  claim.world_size = 0;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "world size"));
  claim = any_claim();
  claim.slot = 2;
  REQUIRE(says(refusal(bytes_of(Have{false, {claim}, {}})), "slot: 2"));
  REQUIRE(says(refusal(bytes_of(Have{true, {any_claim()}, {}})), "a slot among files"));
  REQUIRE(says(refusal(bytes_of(Have{false, {stray_claim()}, {}})), "a file among slots"));
  claim = stray_claim();
  claim.vault = -1;
  REQUIRE(says(refusal(bytes_of(Have{true, {claim}, {}})), "claim's vault: rank -1"));
  claim = file_claim();
  claim.vault = 0;
  REQUIRE(says(refusal(bytes_of(Have{true, {claim}, {}})), "claim's vault: rank 0"));
  claim = stray_claim();
  claim.vault = 4;
  REQUIRE(says(refusal(bytes_of(Have{true, {claim}, {}})), "claim's vault: rank 4"));
}

TEST_CASE("an image of a larger world reaches the root, which names both sizes") {
  Claim claim = any_claim();
  claim.owner = 7;
  claim.world_size = 8;
  claim.borrowed = {{6, {1, 2}}};
  claim.lent = {{5, {3, 4}}};
  const Message message{9, Have{false, {claim}, {}}};
  REQUIRE(decode(kContext, 2, encode(kContext, 2, message)) == message);
}

TEST_CASE("a count is checked against what follows before anything is allocated") {
  auto bytes = bytes_of(Have{false, {}, {}});
  for (std::size_t i = 33; i < 37; ++i) bytes[i] = std::byte{0xff};
  REQUIRE(says(refusal(bytes), "claims: 4294967295 of them do not fit"));
}

TEST_CASE("random and damaged messages are refused or read, never worse") {
  std::mt19937_64 random(1);
  std::size_t refused = 0, read = 0;
  const auto bodies = all_bodies();
  for (int i = 0; i < 20'000; ++i) {
    auto bytes = bytes_of(bodies[random() % bodies.size()]);
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 8));
    (refusal(bytes).empty() ? read : refused) += 1;
  }
  REQUIRE(refused > 10'000);
  REQUIRE(read > 100);
}

TEST_CASE("a long text is cut, so that no error makes a message too long") {
  const auto bytes = bytes_of(Failed{{2, 85}, 1, std::string(100'000, 'x')});
  REQUIRE(bytes.size() < 5000);
  REQUIRE(std::get<Failed>(decode(kContext, 2, bytes).body).why.size() == 4096);
}

TEST_CASE("every point has a name that parses back") {
  for (const Point point : all_points()) {
    const std::string_view name = to_string(point);
    REQUIRE(name != "unknown");
    REQUIRE(parse_point(name) == point);
  }
  REQUIRE_FALSE(parse_point("own-sealing").has_value());
  REQUIRE_FALSE(parse_point("").has_value());
}
