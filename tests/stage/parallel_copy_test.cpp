// Copies by several threads: the same bytes and digests as by one, in order for who follows.
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;

Tensor random_bytes(std::mt19937_64& random, std::uint64_t bytes) {
  auto tensor = Tensor::zeros({static_cast<std::int64_t>(bytes)}, DType::kU8);
  auto* at = tensor.storage().data();
  for (std::uint64_t i = 0; i < bytes; i += 8) {
    const auto word = random();
    std::memcpy(at + i, &word, std::min<std::uint64_t>(8, bytes - i));
  }
  return tensor;
}

// Tiny, odd, page-sized and huge storages in random order, views with strides among them.
Dict random_state(std::uint64_t seed, std::uint64_t huge_bytes) {
  std::mt19937_64 random(seed);
  Dict state;
  const auto count = 5 + random() % 40;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t kinds[] = {random() % 3,         random() % 200,    4096,
                                   64 * (random() % 64), random() % 100000, random() % huge_bytes};
    const auto tensor = random_bytes(random, kinds[random() % std::size(kinds)]);
    state.set("t" + std::to_string(i), tensor);
    if (tensor.nbytes() < 8) continue;
    const auto rows = static_cast<std::int64_t>(tensor.nbytes() / 4);
    state.set("v" + std::to_string(i),
              tensor.narrow(0, 0, rows * 4).view({rows, 4}).transpose(0, 1));
  }
  state.set("huge", random_bytes(random, huge_bytes + random() % 5000));
  state.set("scalar", static_cast<std::int64_t>(seed));
  return state;
}

struct Copied {
  Storage image;
  ImageInfo info;
};

// Over bytes that are all wrong, so that what is not written shows.
Storage dirty(const StagingPlan& plan) {
  auto image = Storage::allocate(plan.layout().image_bytes);
  std::memset(image.data(), 0xA5, image.nbytes());
  return image;
}

const ImageIdentity kIdentity{"job", 0, 1, {1, 5}, {}};

Copied copied(const StagingPlan& plan, const Value& state, CopyOptions options, bool digests) {
  Copied result{dirty(plan), {}};
  const auto image = result.image.bytes();
  Watermark progress;
  plan.write_manifest(image);
  auto made = plan.block_digests();
  if (digests) options.digests = &made;
  plan.copy(*plan.capture(state), image, progress, options);
  CHECK(progress.bytes() == plan.layout().trailer_begin);
  result.info =
      digests ? plan.seal(kIdentity, image, progress, made) : plan.seal(kIdentity, image, progress);
  CHECK(progress.bytes() == plan.layout().image_bytes);
  return result;
}

}  // namespace

TEST_CASE("several threads write the image of one, with the same digests") {
  Crew crew("test-copy", 4);
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const bool large = seed % 4 == 3;
    const auto state = random_state(seed, large ? 10 * kMiB : 64 * 1024);
    const auto blocks = std::uint64_t{4096} << 2 * (seed % 6);  // to 4 MiB
    const auto plan = StagingPlan::compile(state, nullptr, {.block_bytes = blocks});
    const auto one = copied(plan, state, {}, false);
    for (const bool digests : {false, true}) {
      for (const unsigned hands : {1U, 4U}) {
        const auto many = copied(plan, state, {.crew = &crew, .hands = hands}, digests);
        CAPTURE(seed, digests, hands, blocks);
        REQUIRE(many.info == one.info);
        REQUIRE(std::memcmp(many.image.data(), one.image.data(), one.image.nbytes()) == 0);
      }
    }
    CHECK(verify_image(one.image.bytes()) == one.info);
  }
}

TEST_CASE("digests made while copying are those of the blocks, at every length of the last one") {
  for (std::int64_t bytes = 0; bytes < 2300; ++bytes) {
    std::mt19937_64 random(static_cast<std::uint64_t>(bytes));
    const auto state = random_bytes(random, 4096 * 3 + static_cast<std::uint64_t>(bytes));
    const auto plan = StagingPlan::compile(state, nullptr, {.block_bytes = 4096});
    const auto image = dirty(plan);
    Watermark progress;
    auto digests = plan.block_digests();
    plan.copy(*plan.capture(state), image.bytes(), progress, {.digests = &digests});
    REQUIRE(digests.complete());
    for (std::size_t i = 0; i < digests.block_count(); ++i) {
      CAPTURE(bytes, i);
      const auto block =
          image.bytes().subspan(plan.layout().data_begin + i * 4096, digests.block_size(i));
      REQUIRE(digests.digest(i) == digest_block(block));
      REQUIRE(digests.digests()[i] == digest64(block));
    }
  }
}

TEST_CASE("every length digests right while it is copied, from and to any address") {
  // The values entry is a plan's only part whose size is not rounded: blocks of every length.
  std::mt19937_64 random(1);
  for (std::size_t text = 0; text < 1500; text += 1 + text / 40) {
    const auto state = Value(Dict{{"text", std::string(text, 'x')}, {"n", 1}});
    const auto plan = StagingPlan::compile(state, nullptr, {.block_bytes = 4096});
    const auto& layout = plan.layout();
    std::vector<std::byte> room(layout.image_bytes + 64);
    for (const std::size_t shift : {0, 1, 8, 33}) {
      const auto image = std::span(room).subspan(shift, layout.image_bytes);
      Watermark progress;
      auto digests = plan.block_digests();
      plan.copy(*plan.capture(state), image, progress, {.digests = &digests});
      REQUIRE(digests.digest(0) ==
              digest_block(image.subspan(layout.data_begin, digests.block_size(0))));
    }
  }
}

TEST_CASE("who follows the watermark reads final bytes only, in order") {
  Crew crew("test-copy", 4);
  const auto state = random_state(99, 30 * kMiB);
  const auto plan = StagingPlan::compile(state);
  const auto& layout = plan.layout();
  const auto expected = copied(plan, state, {}, false);
  for (int round = 0; round < 4; ++round) {
    const auto image = dirty(plan);
    plan.write_manifest(image.bytes());
    Watermark progress;
    std::uint64_t wrong = 0, steps = 0;
    std::thread follower([&] {
      for (std::uint64_t at = layout.data_begin; at < layout.trailer_begin; ++steps) {
        const auto final = progress.wait(at + 1);
        wrong += std::memcmp(image.data() + at, expected.image.data() + at, final - at) != 0;
        at = final;
      }
    });
    auto digests = plan.block_digests();
    plan.copy(*plan.capture(state), image.bytes(), progress,
              {.crew = &crew, .digests = round % 2 == 0 ? nullptr : &digests});
    follower.join();
    CHECK(wrong == 0);
    CHECK(steps > 0);
  }
}

namespace {

// Throws at the n-th piece, whichever thread copies it.
class Breaks final : public Pace {
 public:
  explicit Breaks(int at) : left_(at) {}
  void before(std::uint64_t, Watermark&) override {
    if (--left_ == 0) throw IoError("the source went away");
  }

 private:
  std::atomic<int> left_;
};

// Holds back the thread that comes first until others have copied much more.
class HoldsFirst final : public Pace {
 public:
  void before(std::uint64_t, Watermark& progress) override {
    std::unique_lock lock(mutex_);
    const bool first = pieces_++ == 0;
    changed_.notify_all();
    if (!first) return;
    changed_.wait(lock, [this] { return pieces_ > 12; });
    final_ = progress.bytes();
  }
  [[nodiscard]] std::uint64_t final() const { return final_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int pieces_ = 0;
  std::uint64_t final_ = 0;
};

class Fails final : public Pace {
 public:
  void before(std::uint64_t, Watermark& progress) override {
    const std::lock_guard lock(mutex_);  // nobody counts between the fifth piece and the failure
    if (++pieces_ == 5) progress.fail(std::make_exception_ptr(Cancelled("enough")));
  }
  [[nodiscard]] int pieces() const { return pieces_; }

 private:
  std::mutex mutex_;
  int pieces_ = 0;
};

}  // namespace

TEST_CASE("an exception on a helper's or the caller's thread ends the copy, and the crew goes on") {
  Crew crew("test-copy", 3);
  const auto state = random_state(7, 40 * kMiB);
  const auto plan = StagingPlan::compile(state);
  const auto image = dirty(plan);
  for (int at = 1; at < 12; ++at) {
    Breaks breaks(at);
    Watermark progress;
    REQUIRE_THROWS_AS(
        plan.copy(*plan.capture(state), image.bytes(), progress, {.pace = &breaks, .crew = &crew}),
        IoError);
    REQUIRE(progress.bytes() < plan.layout().trailer_begin);
  }
  const auto whole = copied(plan, state, {.crew = &crew}, true);
  CHECK(verify_image(whole.image.bytes()) == whole.info);
}

TEST_CASE("the watermark waits for a part that is late, however far other threads are") {
  Crew crew("test-copy", 2);
  const auto state = random_state(5, 60 * kMiB);
  const auto plan = StagingPlan::compile(state);
  const auto image = dirty(plan);
  HoldsFirst pace;
  Watermark progress;
  plan.copy(*plan.capture(state), image.bytes(), progress, {.pace = &pace, .crew = &crew});
  CHECK(pace.final() <= plan.layout().data_begin + 4 * kMiB);  // it had the first or second part
  CHECK(progress.bytes() == plan.layout().trailer_begin);
}

TEST_CASE("a failed watermark stops every thread soon") {
  Crew crew("test-copy", 3);
  const auto state = random_state(8, 40 * kMiB);
  const auto plan = StagingPlan::compile(state);
  const auto image = dirty(plan);
  Fails fails;
  Watermark progress;
  REQUIRE_THROWS_AS(
      plan.copy(*plan.capture(state), image.bytes(), progress, {.pace = &fails, .crew = &crew}),
      Cancelled);
  CHECK(fails.pieces() <= 5 + 3);
}

TEST_CASE("a stager of several threads stages what one of one thread does") {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    const auto state = Value(random_state(seed, 12 * kMiB));
    StateDictStager one({.copy_threads = 1}), many({.copy_threads = 4});
    const auto expected = one.stage(state);
    CHECK_FALSE(compare(expected, state));
    CHECK_FALSE(compare(many.stage(state), expected));
    CHECK_FALSE(compare(many.stage_async(state).get(), expected));  // over warm memory, too
  }
}

TEST_CASE("a stager's copy that fails on any thread leaves the stager good") {
  const auto state = Value(random_state(3, 12 * kMiB));
  for (int at = 1; at < 6; ++at) {
    Breaks breaks(at);
    StateDictStager stager({.pace = &breaks, .copy_threads = 3});
    REQUIRE_THROWS_AS(stager.stage(state), IoError);
    CHECK_FALSE(compare(stager.stage(state), state));
  }
}

TEST_CASE("digests of another plan, or not complete, are refused") {
  const auto state = Value(Tensor::zeros({100000}, DType::kU8));
  const auto plan = StagingPlan::compile(state, nullptr, {.block_bytes = 4096});
  const auto other = StagingPlan::compile(state, nullptr, {.block_bytes = 8192});
  const auto image = dirty(plan);
  Watermark progress;
  auto digests = other.block_digests();
  CHECK_THROWS_AS(plan.copy(*plan.capture(state), image.bytes(), progress, {.digests = &digests}),
                  InvalidArgument);
  digests = plan.block_digests();
  CHECK_THROWS_AS(plan.seal(kIdentity, image.bytes(), progress, digests), InvalidArgument);
  CHECK_THROWS_AS(digests.put(digests.block_count(), {}), InvalidArgument);
}
