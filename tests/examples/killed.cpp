// An example program that kills itself at a named point of the protocol: the example's train(),
// with an observer. Prints what the example prints, and then the step that it began with.
// usage: killed_NAME DIRECTORY STEPS [plain|pruning|failing|ending [POINT PASS]]
// PASS counts from 1. What the words mean stands in killed_runs.hpp, at Job.
#include <sys/prctl.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/points/points.hpp>
#include <meshstage/core/stage/pace.hpp>

#include "tests/support/hanging_store.hpp"

namespace ms = meshstage;
using namespace std::chrono_literals;

/// Of the example.
void train(ms::CheckpointerOptions options, std::uint64_t steps);

namespace {

/// How many staged steps fail before one may become complete.
constexpr int kFailing = 3;

/// Ends the process at the last of so many passes of a point.
class Killer {
 public:
  Killer(ms::Point at, int passes) : at_(at), left_(passes) {}
  void see(const ms::PointEvent& event) {
    if (event.point == at_ && --left_ == 0) std::raise(SIGKILL);
  }
  [[nodiscard]] bool done() const { return left_ <= 0; }

 private:
  ms::Point at_;
  std::atomic<int> left_;
};

/// Copies a step only when this process has removed the files before the last complete one. So no
/// rank is at its end when this process passes Point::kPruned.
class AfterPruning final : public ms::Pace {
 public:
  void see(const ms::PointEvent& event) {
    if (event.point == ms::Point::kComplete) ++unpruned_;
    if (event.point == ms::Point::kPruned && unpruned_ > 0) --unpruned_;
  }
  void before(std::uint64_t /*bytes*/, ms::Watermark& progress) override {
    while (unpruned_ > 0 && !progress.wait_failed(ms::Deadline::after(1ms))) {
    }
  }

 private:
  std::atomic<int> unpruned_{0};
};

/// The root's Store does not answer when the root asks whether to decide, in the first kFailing
/// steps after step 0 and after each recovery: these steps fail on every rank.
class Failing {
 public:
  explicit Failing(const std::string& directory)
      : store_(
            std::make_shared<ms::test::HangingStore>(std::make_shared<ms::FileStore>(directory))) {}
  [[nodiscard]] std::shared_ptr<ms::Store> store() const { return store_; }
  void see(const ms::PointEvent& event) {
    const bool first = event.point == ms::Point::kComplete && event.id.step == 0;
    const bool recovered = event.point == ms::Point::kRestoring && event.id.exists();
    if (first || recovered) left_ = kFailing;
    if (event.point == ms::Point::kVoted && left_ > 0) store_->fail();
    if (event.point == ms::Point::kFailed) {
      --left_;
      store_->go_on();
    }
  }

 private:
  std::shared_ptr<ms::test::HangingStore> store_;
  int left_ = 0;  // changed by the engine's loop alone
};

}  // namespace

int main(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string directory = argv[1];
  const std::string kind = argc > 3 ? argv[3] : "plain";
  ms::CheckpointerOptions options;
  options.job = "example";
  options.directory = directory + "/files";
  options.vault_directory = directory + "/vault";  // not beside another test's job "example"
  std::filesystem::create_directories(options.vault_directory);
  options.store = "file:" + directory + "/store";
  options.deadline = 20s;
  options.forming_deadline = kind == "ending" ? 20s : 60s;
  options.block_bytes = 4096;

  std::optional<Killer> killer;
  if (argc > 5) {
    const auto point = ms::parse_point(argv[4]);
    if (!point) return 2;
    killer.emplace(*point, std::stoi(argv[5]));
  }
  AfterPruning after_pruning;
  if (kind == "pruning") {
    options.persist_every = 1;
    if (killer) options.pace = &after_pruning;
  }
  std::optional<Failing> failing;
  if (kind == "failing" && ms::RankEnvironment::detect().rank == 0) {
    failing.emplace(directory + "/store");
    options.store_object = failing->store();
  }
  std::atomic<std::uint64_t> began{0};
  options.observer = [&](const ms::PointEvent& event) {
    if (event.point == ms::Point::kRestoring) began = event.id.step;
    after_pruning.see(event);
    if (failing) failing->see(event);
    if (killer) killer->see(event);
  };
  try {
    train(std::move(options), std::stoull(argv[2]));
    std::cout << "began with step " << began << "\n";
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
  return killer && !killer->done() ? 3 : 0;  // the point was not passed so often
}
