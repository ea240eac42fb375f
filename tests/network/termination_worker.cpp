// A rank of termination_test.cpp: termination_worker FOLDER RANK SIZE WITHIN_MS. Trains for ever by
// Checkpointer::run(), which SIGTERM ends. What it does goes to the Store (FOLDER/store):
//   training/<rank>  it is past some steps
//   hung/<rank>      its body waits for ever, as its standard input asked by "hang"
//   ended/<rank>     the step with which run() returned
// Exit status 0 if run() returned, 1 if it threw.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

namespace {

using namespace meshstage;

void train(const std::string& folder, int rank, int world, std::chrono::milliseconds within,
           const std::atomic<bool>& hang) {
  const auto store = std::make_shared<FileStore>(folder + "/store");
  const std::string name = "/" + std::to_string(rank);
  CheckpointerOptions o;
  o.job = "termination";
  o.directory = folder + "/files";
  o.vault_directory = folder + "/vaults";
  o.forming_deadline = std::chrono::seconds(120);
  o.persist_every = 1'000'000;
  o.block_bytes = 4096;
  o.environment.emplace();
  o.environment->rank = o.environment->local_rank = rank;
  o.environment->world_size = o.environment->local_world_size = world;
  o.store_object = store;
  Checkpointer ckpt(o);
  const Tensor weight = Tensor::zeros({1000}, DType::kF32);
  Dict state{{"weight", weight}};
  const auto body = [&](RunStep& step) {
    float one = 1;
    collectives::all_reduce(step.group(), std::span(&one, 1), collectives::ReduceOp::kSum);
    weight.data<float>()[0] += one;
    if (step.number() == 10) store->set("training" + name, "");
    if (!hang) return;
    store->set("hung" + name, "");
    std::mutex mutex;
    std::unique_lock lock(mutex);
    std::condition_variable never;
    while (true) never.wait(lock);
  };
  const auto ended = ckpt.run(state, std::uint64_t{1} << 40, body,
                              {.stage_every = 3, .on_terminate = true, .terminate_within = within});
  store->set("ended" + name, std::to_string(ended));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  std::atomic<bool> hang{false};
  std::thread input([&hang] {
    for (std::string line; std::getline(std::cin, line);) {
      if (line == "hang") hang = true;
    }
  });
  int status = 0;
  try {
    train(argv[1], std::stoi(argv[2]), std::stoi(argv[3]),
          std::chrono::milliseconds(std::stoi(argv[4])), hang);
  } catch (const std::exception& e) {
    std::cerr << "termination_worker " << argv[2] << ": " << e.what() << "\n";
    status = 1;
  }
  input.join();  // the test ends it
  return status;
}
