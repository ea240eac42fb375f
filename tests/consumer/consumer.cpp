// An outside program over the installed package: stages its rank's state dict and gets it back,
// alone or as one of two ranks that hold each other's copies. usage: consumer DIRECTORY
// stage|recover `stage` leaves its images behind as a crash would; `recover` finds the staged step,
// also where the vault of one rank is gone. Prints one line for each rank; exit status 0 if the
// bytes were right.
#include <chrono>
#include <exception>
#include <filesystem>
#include <iostream>
#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <string>

namespace {

namespace ms = meshstage;

/// Rank r's weight starts at 10 r.
ms::Tensor weight_of(int rank) {
  const auto first = static_cast<float>(10 * rank);
  return ms::Tensor::from_vector<float>(
      {first, first + 1, first + 2, first + 3, first + 4, first + 5}, {2, 3});
}

bool same(const ms::Tensor& a, const ms::Tensor& b) {
  bool equal = true;
  for (int i = 0; i < 6; ++i) equal = equal && a.data<float>()[i] == b.data<float>()[i];
  return equal;
}

bool run(const std::filesystem::path& directory, bool recover) {
  const ms::RankEnvironment environment = ms::RankEnvironment::detect();
  const int rank = environment.rank;
  ms::Checkpointer ckpt({.job = "consumer",
                         .directory = directory,
                         .vault_directory = directory / ("vault" + std::to_string(rank)),
                         .persist_every = 0});
  ms::Tensor weight = weight_of(recover ? 100 : rank);
  ms::Dict state{{"weight", weight}, {"step", 1}};
  const auto step = ckpt.recover(state).step;
  bool right = step == (recover ? 1U : 0U) && same(weight, weight_of(rank));
  right = right && ckpt.stage(state, step + 1).outcome().get() == ms::Outcome::kComplete;
  for (const int ward : ckpt.wards()) {
    const ms::Tensor replica = ckpt.held(ward).state.at("weight").as<ms::Tensor>();
    right = right && same(replica, weight_of(ward));
  }
  if (recover) {
    ckpt.finish();  // removes the images
    return right;
  }
  // The images stay. No rank leaves before both have read; to the other, the first to leave is a
  // loss, maybe while it is still inside the barrier.
  try {
    ms::collectives::barrier(*ckpt.group(), ms::Deadline::after(std::chrono::seconds(30)));
  } catch (const ms::PeerLost&) {
  }
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: consumer DIRECTORY stage|recover\n";
    return 2;
  }
  bool right = false;
  try {
    right = run(argv[1], argv[2] == std::string("recover"));
  } catch (const std::exception& e) {
    std::cerr << "consumer: " << e.what() << "\n";
  }
  std::cout << "consumer " << argv[2] << (right ? ": the bytes are right\n" : ": FAILED\n");
  return right ? 0 : 1;
}
