#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/tree/value.hpp>

#include "tools/device/device_state.hpp"
#include "tools/trainer/model.hpp"
#include "tools/trainer/sharding.hpp"

namespace trainer {

/// Everything that training goes on from, as one state dict:
///
///     model:     {embedding: {weight}, hidden1: {weight, bias}, ...}     F32
///     optimizer: {exp_avg: {...}, exp_avg_sq: {...}, step}               as model
///     random:    {state}                             of this rank's choice of examples
///     history:   {loss, rank_loss}                   F32[steps]: mean over all ranks, own part
///     step:      steps trained so far
///
/// On a mesh the tensors of `model` and `optimizer` are DTensors, and the moments this rank's
/// parts. Recovering writes into the tensors in place and replaces the scalars; adopt() then reads
/// these.
/// On a device all tensors of the dict are the device's. A step computes on copies in host memory
/// (parameters(), losses(), ...), which read_device() fetches and write_device() puts back.
class TrainingState {
 public:
  /// Freshly initialized. All ranks start with the same parameters and each with its own choice of
  /// examples. `sharding`: null without a mesh. `device`: where the tensors are.
  TrainingState(const CharacterModel<float>& model, std::uint64_t steps, std::uint64_t seed,
                int rank, const Sharding* sharding = nullptr,
                meshstage::Device device = meshstage::kCpu);

  [[nodiscard]] meshstage::Dict& dict() { return dict_; }
  /// Of all tensors.
  [[nodiscard]] std::uint64_t bytes() const;

  [[nodiscard]] std::span<const std::span<float>> parameters() const { return parameters_; }
  [[nodiscard]] std::span<const std::span<const float>> constant_parameters() const {
    return constant_parameters_;
  }
  [[nodiscard]] const std::vector<meshstage::Tensor>& parameter_tensors() const {
    return parameter_tensors_;
  }
  /// Of each parameter, the elements that this rank updates; exp_avg and exp_avg_sq are of these.
  [[nodiscard]] const std::vector<Sharding::Part>& parts() const { return parts_; }
  [[nodiscard]] std::span<const std::span<float>> exp_avg() const { return exp_avg_; }
  [[nodiscard]] std::span<const std::span<float>> exp_avg_sq() const { return exp_avg_sq_; }
  [[nodiscard]] std::span<float> losses() const { return losses_; }
  [[nodiscard]] std::span<float> rank_losses() const { return rank_losses_; }

  /// The next random number; splitmix64 (Steele, Lea, Flood).
  std::uint64_t draw();
  std::uint64_t step = 0;

  /// Fetches what is computed on from the device; nothing without one.
  void read_device();
  /// Puts it back, behind what trainer_stream() has to do so far. Nothing without a device.
  void write_device();
  /// The stream behind which the tensors are as write_device() left them; of the CPU without one.
  [[nodiscard]] meshstage::TrainerStream trainer_stream() const;

  /// Puts step and random state into the dict, so that it can be staged.
  void publish();
  /// Takes them from the dict, after it was recovered.
  void adopt();

  /// Writes the dict as a safetensors file, each tensor under its path, the scalars as I64.
  void save(const std::filesystem::path& file);
  /// Takes what rank 0 of a job without a mesh saved, and what is each rank's own (the random state
  /// and `history.rank_loss`) from what this rank saved. `own` empty: this rank keeps its own.
  /// Throws meshstage::NotFound, CorruptData.
  void load(const std::filesystem::path& of_root, const std::filesystem::path& own);

 private:
  enum class What { kParameter, kMoment };
  std::vector<meshstage::Tensor> add_tensors(meshstage::Dict& into, What what,
                                             const std::vector<ParameterSpec>& specs,
                                             const Sharding* sharding,
                                             std::vector<std::span<float>>& spans);

  // What the dict has of a tensor of host memory: itself, or its twin on the device.
  [[nodiscard]] meshstage::Tensor placed(const meshstage::Tensor& host);

  std::optional<meshstage::tools::DeviceState> device_;  // none: the CPU
  meshstage::Dict dict_;
  std::vector<std::span<float>> parameters_, exp_avg_, exp_avg_sq_;
  std::vector<std::span<const float>> constant_parameters_;
  std::vector<meshstage::Tensor> parameter_tensors_;
  std::vector<Sharding::Part> parts_;
  std::span<float> losses_, rank_losses_;
  std::uint64_t random_ = 0;
};

/// Of a path in such a dict: a moment of the optimizer, which a mesh cuts along its dimension 0.
bool is_moment(std::string_view path);

/// How the states of a job go on with another number of ranks: what is each rank's own stays with
/// its rank, everything else is the same on all.
meshstage::ReshardOptions reshard_options();

}  // namespace trainer
