#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace trainer {

/// What a parameter is called and how it is laid out, row-major.
struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  std::size_t elements = 0;
  double initial_range = 0;  ///< Starts uniformly in [-range, range]; 0 starts at 0.
};

struct ModelSize {
  std::size_t vocabulary = 0;  ///< Classes in, classes out.
  std::size_t context = 16;    ///< Characters the prediction looks back on.
  std::size_t embedding = 24;  ///< Numbers per character.
  std::size_t hidden = 240;    ///< Units of each of the two hidden layers; a multiple of 16.
};

/// The next character from the `context` characters before it: embedding, two tanh layers, softmax.
///
///     x  = embedding[c1] | ... | embedding[c16]     [context * embedding]
///     h1 = tanh(x W1 + b1),  h2 = tanh(h1 W2 + b2)  [hidden]
///     p  = softmax(h2 W3 + b3)                      [vocabulary]
///
/// The backward pass is written by hand below the forward pass. Real is float to train and double
/// to check the gradients. The same inputs give the same bits: nothing here depends on threads,
/// time or addresses.
template <class Real>
class CharacterModel {
 public:
  /// Throws std::invalid_argument for an empty vocabulary or a hidden size that is no multiple
  /// of 16.
  explicit CharacterModel(ModelSize size);

  [[nodiscard]] const ModelSize& size() const { return size_; }
  /// embedding, hidden1.weight, hidden1.bias, ..., output.bias: the order of all spans below.
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const { return specs_; }
  /// Sum of the parameters' elements.
  [[nodiscard]] std::size_t elements() const;

  /// Fills the parameters from the seed.
  void initialize(std::span<const std::span<Real>> parameters, std::uint64_t seed) const;

  /// Mean cross entropy (nats a character) of predicting text[p] from the `context` classes before
  /// it, for each p of `positions` (each >= context). *Adds* the gradient of that mean to
  /// `gradients`. Only reads the parameters.
  Real loss_and_gradients(std::span<const std::span<const Real>> parameters,
                          std::span<const std::uint8_t> text,
                          std::span<const std::size_t> positions,
                          std::span<const std::span<Real>> gradients);

 private:
  Real example(std::span<const std::span<const Real>> parameters, const std::uint8_t* context,
               std::size_t target, Real scale, std::span<const std::span<Real>> gradients);

  ModelSize size_;
  std::vector<ParameterSpec> specs_;
  std::vector<Real> x_, h1_, h2_, logits_, dx_, dh1_, dh2_;
};

extern template class CharacterModel<float>;
extern template class CharacterModel<double>;

}  // namespace trainer
