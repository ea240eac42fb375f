// Calls of the Verifier with their answers, for a test that waits for them.
#pragma once
#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>

#include "tests/replicate/part_bench.hpp"
#include "tests/replicate/part_images.hpp"
#include "tests/support/require.hpp"

namespace meshstage::test::verifier {

/// What a call of the Verifier answered: a result, or why it failed.
template <class T>
struct Answer {
  std::optional<T> result;
  std::optional<ErrorKind> kind;
  std::string why;
};

/// Waits for the answer of `call(then, failed)`, made on the loop.
template <class T, class Call>
Answer<T> answer_of(PartBench& bench, const Call& call) {
  const auto promised = std::make_shared<std::promise<Answer<T>>>();
  bench.in_loop([&] {
    call([promised](const T& result) { promised->set_value({result, {}, {}}); },
         [promised](ErrorKind kind, const std::string& why) {
           promised->set_value({std::nullopt, kind, why});
         });
  });
  auto answer = promised->get_future();
  require(answer.wait_for(std::chrono::seconds(20)) == std::future_status::ready, "no answer");
  return answer.get();
}

inline protocol::SlotsVerified slots(PartBench& bench, const replicate::JobNotes& notes = {}) {
  return *answer_of<protocol::SlotsVerified>(bench, [&](const auto& then, const auto&) {
            bench.verifier.slots(notes, then);
          }).result;
}
inline replicate::Verifier::Found disk(PartBench& bench, ImageId newer_than = kNoImage) {
  return *answer_of<replicate::Verifier::Found>(bench, [&](const auto& then, const auto&) {
            bench.verifier.disk({newer_than, true}, then);
          }).result;
}
inline Answer<ImageInfo> load(PartBench& bench, const replicate::Verifier::Here& from,
                              const Storage& target, const ImageInfo& of) {
  return answer_of<ImageInfo>(bench, [&](const auto& then, const auto& failed) {
    bench.verifier.load(from, target.bytes(), sizes_of(of), then, failed);
  });
}
inline Answer<replicate::Verifier::Source> open(PartBench& bench, const protocol::Claim& claim,
                                                const replicate::Verifier::Here& here = {}) {
  return answer_of<replicate::Verifier::Source>(bench, [&](const auto& then, const auto& failed) {
    bench.verifier.open(claim, here, then, failed);
  });
}
/// Claims the image in the own slot 0 of rank 0.
inline protocol::Claim claim_to(const TestImage& image,
                                protocol::Place place = protocol::Place::kOwnSlot) {
  return protocol::claim_of(image.info, {}, 0, place, 0);
}

}  // namespace meshstage::test::verifier
