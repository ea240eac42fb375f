// The order that rank 0 gives all calls of a group over NCCL: a pure function of the posts.
#include <vector>

#include <meshstage/core/comm/nccl/sequencer_impl.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::nccl;

namespace {

using Decisions = std::vector<Decision>;

Post message(Call call, std::uint64_t id, int peer, std::uint64_t tag, std::uint64_t bytes) {
  return {.id = id, .call = call, .peer = peer, .tag = tag, .bytes = bytes};
}
Post collective(Call call, std::uint64_t id, std::uint64_t bytes) {
  return {.id = id, .call = call, .bytes = bytes};
}

}  // namespace

TEST_CASE("nccl sequencer: a message is decided on when both ends have posted it") {
  Sequencer sequencer(3);
  CHECK(sequencer.post(0, message(Call::kSend, 1, 1, 7, 100)).empty());
  CHECK(sequencer.post(0, message(Call::kSend, 2, 1, 8, 100)).empty());
  // Another tag, another direction, another pair: none of them fits.
  CHECK(sequencer.post(1, message(Call::kSend, 1, 0, 8, 100)).empty());
  CHECK(sequencer.post(2, message(Call::kReceive, 1, 0, 8, 100)).empty());
  CHECK(sequencer.post(1, message(Call::kReceive, 2, 0, 8, 100)) ==
        Decisions{{1, 2, Verdict::kLaunch}, {0, 2, Verdict::kLaunch}});
  CHECK(sequencer.post(1, message(Call::kReceive, 3, 0, 7, 100)) ==
        Decisions{{1, 3, Verdict::kLaunch}, {0, 1, Verdict::kLaunch}});
}

TEST_CASE("nccl sequencer: messages of one pair and tag are matched in order and by length") {
  Sequencer sequencer(2);
  for (const std::uint64_t id : {1U, 2U})
    CHECK(sequencer.post(1, message(Call::kReceive, id, 0, 5, id * 10)).empty());
  CHECK(sequencer.post(0, message(Call::kSend, 8, 1, 5, 10)) ==
        Decisions{{0, 8, Verdict::kLaunch}, {1, 1, Verdict::kLaunch}});
  CHECK(sequencer.post(0, message(Call::kSend, 9, 1, 5, 10)) ==
        Decisions{{0, 9, Verdict::kOtherLength}, {1, 2, Verdict::kOtherLength}});
}

TEST_CASE("nccl sequencer: a collective is decided on when every rank has called it") {
  Sequencer sequencer(3);
  CHECK(sequencer.post(2, collective(Call::kAllReduce, 1, 80)).empty());
  CHECK(sequencer.post(2, collective(Call::kBarrier, 2, 0)).empty());
  CHECK(sequencer.post(0, collective(Call::kAllReduce, 1, 80)).empty());
  CHECK(sequencer.post(1, collective(Call::kAllReduce, 4, 80)) ==
        Decisions{{0, 1, Verdict::kLaunch}, {1, 4, Verdict::kLaunch}, {2, 1, Verdict::kLaunch}});
  CHECK(sequencer.post(0, collective(Call::kBarrier, 2, 0)).empty());
  CHECK(sequencer.post(1, collective(Call::kBarrier, 5, 0)).size() == 3);
}

TEST_CASE("nccl sequencer: ranks that call different collectives are told which rank differs") {
  Sequencer sequencer(2);
  CHECK(sequencer.post(0, collective(Call::kAllReduce, 1, 80)).empty());
  CHECK_THROWS_AS(sequencer.post(1, collective(Call::kAllReduce, 1, 88)), InvalidState);
  Sequencer other(2);
  CHECK(other.post(0, collective(Call::kAllReduce, 1, 80)).empty());
  CHECK_THROWS_AS(other.post(1, collective(Call::kAllGather, 1, 80)), InvalidState);
  CHECK_THROWS_AS(other.post(1, message(Call::kSend, 2, 2, 1, 1)), CorruptData);
  CHECK_THROWS_AS(other.post(2, message(Call::kSend, 2, 0, 1, 1)), CorruptData);
}

TEST_CASE("nccl messages: what is encoded is decoded, and nothing shorter, longer or unknown") {
  const Post post{.id = 1,
                  .call = Call::kReduceScatter,
                  .element = 2,
                  .reduce = 3,
                  .peer = 4,
                  .tag = std::uint64_t{1} << 63U,
                  .bytes = 6};
  auto bytes = encode(post);
  CHECK(type_of(bytes) == MessageType::kPost);
  CHECK(decode_post(bytes) == post);
  for (std::size_t n = 1; n < bytes.size(); ++n)
    CHECK_THROWS_AS(decode_post(std::span(bytes).first(n)), CorruptData);
  auto longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_THROWS_AS(decode_post(longer), CorruptData);
  bytes[9] = std::byte{200};  // the call
  CHECK_THROWS_AS(decode_post(bytes), CorruptData);
  const AbortNote note{.drain = true, .kind = 3, .rank = -1, .text = "why"};
  const auto decoded = decode_abort(encode(note));
  CHECK(decoded.drain);
  CHECK(decoded.kind == 3);
  CHECK(decoded.rank == -1);
  CHECK(decoded.text == "why");
  const Decision decision{.rank = 0, .id = 9, .verdict = Verdict::kOtherLength};
  CHECK(decode_decision(encode(decision)) == decision);
  const std::vector<unsigned char> id(128, 7);
  CHECK(decode_id(encode_id(id)) == id);
  CHECK_THROWS_AS(type_of({}), CorruptData);
  CHECK_THROWS_AS(type_of(std::vector<std::byte>(1, std::byte{77})), CorruptData);
}
