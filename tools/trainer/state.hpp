#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include <meshstage/core/tree/value.hpp>

#include "tools/trainer/model.hpp"

namespace trainer {

/// Everything that training goes on from, as one state dict:
///
///     model:     {embedding: {weight}, hidden1: {weight, bias}, ...}     F32
///     optimizer: {exp_avg: {...}, exp_avg_sq: {...}, step}               as model
///     random:    {state}                             of this rank's choice of examples
///     history:   {loss, rank_loss}                   F32[steps]: mean over all ranks, own part
///     step:      steps trained so far
///
/// Recovering writes into the tensors in place and replaces the scalars; adopt() then reads these.
class TrainingState {
 public:
  /// Freshly initialized. All ranks start with the same parameters and each with its own choice of
  /// examples.
  TrainingState(const CharacterModel<float>& model, std::uint64_t steps, std::uint64_t seed,
                int rank);

  [[nodiscard]] meshstage::Dict& dict() { return dict_; }
  /// Of all tensors.
  [[nodiscard]] std::uint64_t bytes() const;

  [[nodiscard]] std::span<const std::span<float>> parameters() const { return parameters_; }
  [[nodiscard]] std::span<const std::span<const float>> constant_parameters() const {
    return constant_parameters_;
  }
  [[nodiscard]] std::span<const std::span<float>> exp_avg() const { return exp_avg_; }
  [[nodiscard]] std::span<const std::span<float>> exp_avg_sq() const { return exp_avg_sq_; }
  [[nodiscard]] std::span<float> losses() const { return losses_; }
  [[nodiscard]] std::span<float> rank_losses() const { return rank_losses_; }

  /// The next random number; splitmix64 (Steele, Lea, Flood).
  std::uint64_t draw();
  std::uint64_t step = 0;

  /// Puts step and random state into the dict, so that it can be staged.
  void publish();
  /// Takes them from the dict, after it was recovered.
  void adopt();

  /// Writes the dict as a safetensors file, each tensor under its path, the scalars as I64.
  void save(const std::filesystem::path& file);

 private:
  void add_parameters(meshstage::Dict& into, const std::vector<ParameterSpec>& specs,
                      std::vector<std::span<float>>& spans);

  meshstage::Dict dict_;
  std::vector<std::span<float>> parameters_, exp_avg_, exp_avg_sq_;
  std::vector<std::span<const float>> constant_parameters_;
  std::span<float> losses_, rank_losses_;
  std::uint64_t random_ = 0;
};

}  // namespace trainer
