#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>

#include "tools/trainer/adamw.hpp"
#include "tools/trainer/fault.hpp"
#include "tools/trainer/model.hpp"
#include "tools/trainer/report.hpp"
#include "tools/trainer/sharding.hpp"
#include "tools/trainer/state.hpp"
#include "tools/trainer/text.hpp"

namespace trainer {

struct TrainingOptions {
  std::filesystem::path text;
  std::uint64_t steps = 200;
  std::uint64_t every = 5;   ///< Stage after every n-th step; 0: never.
  std::uint64_t batch = 16;  ///< Examples a rank and step.
  std::uint64_t seed = 1;
  std::vector<std::int64_t> mesh;  ///< Shape; empty: none, every rank has all moments.
  meshstage::Device device;        ///< Where the tensors of the state are; the host computes.
  /// kNccl: gradients are averaged over NCCL in the device's memory.
  meshstage::tools::Collectives collectives = meshstage::tools::Collectives::kHost;
  AdamW optimizer;
  meshstage::CheckpointerOptions checkpoint;
  std::filesystem::path save;      ///< Where the final state goes; empty: nowhere.
  std::uint64_t until = 0;         ///< Train to this step alone; 0: to the last.
  std::filesystem::path load;      ///< Begin with what rank 0 saved; empty: from the start.
  std::filesystem::path load_own;  ///< Of that, what was saved of this rank; empty: nothing.
  std::vector<Fault> faults;
  std::vector<Hold> holds;
  std::filesystem::path faults_until;    ///< Once this file is there, no fault and no hold comes.
  std::vector<std::uint64_t> leave_out;  ///< Steps that this rank alone does not stage.
  int report = -1;                       ///< Descriptor; -1: none.
  bool quiet = false;                    ///< Say nothing on standard output.
};

/// One rank of a data-parallel training job (with the optimizer cut over a mesh, if there is one)
/// that survives the loss of its peers. Deterministic: the same options, rank and world size give
/// the same bits, also for steps that are trained again after a recovery.
class Training {
 public:
  /// Reads the text. Throws std::runtime_error.
  explicit Training(TrainingOptions options);
  ~Training();

  /// Trains to the end. Throws meshstage::Error where nothing more can be done: InvalidState if
  /// this process was replaced ("fenced") while it hung, Timeout if the others do not come,
  /// Unrecoverable.
  void run();

 private:
  void join();
  void recover();
  void train();
  void hold(std::uint64_t step);
  void train_step();
  void average_gradient();
  void start_anew();
  void peer_is_lost(const meshstage::Error& error);
  void stage();
  void settle(bool wait);
  void say_step(double milliseconds);

  TrainingOptions options_;
  Report report_;
  Faults faults_;
  Text text_;
  CharacterModel<float> model_;
  std::optional<Sharding> sharding_;
  std::optional<TrainingState> state_;
  std::optional<meshstage::Checkpointer> checkpointer_;
  std::optional<meshstage::MeshGroups> groups_;  // of the generation
  meshstage::Staging last_;
  bool settled_ = true;         // the outcome of last_ was reported
  bool generation_ = false;     // a generation is formed and was not lost since
  meshstage::Tensor gradient_;  // of all parameters, then the loss; of host memory
  std::optional<meshstage::tools::DeviceState> reduced_on_;  // where its twin is averaged over NCCL
  std::vector<std::span<float>> gradients_;
  std::vector<std::size_t> positions_;
  std::chrono::steady_clock::time_point lost_at_;
};

}  // namespace trainer
