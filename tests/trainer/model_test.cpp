#include "tools/trainer/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tools/trainer/adamw.hpp"
#include "tools/trainer/text.hpp"

namespace {

using trainer::CharacterModel;
using trainer::ModelSize;
using trainer::Text;

const std::string kSentence =
    "the quick brown fox jumps over the lazy dog, and the lazy dog does not mind the fox. ";

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// One set of parameters (or gradients, or moments) with its spans.
template <class Real>
struct Buffers {
  explicit Buffers(const CharacterModel<Real>& model) {
    for (const auto& spec : model.parameters()) values.emplace_back(spec.elements);
    for (auto& v : values) {
      spans.emplace_back(v);
      constant.emplace_back(v);
    }
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() = default;
  std::vector<std::vector<Real>> values;
  std::vector<std::span<Real>> spans;
  std::vector<std::span<const Real>> constant;
};

template <class Real>
Real loss_of(CharacterModel<Real>& model, const Buffers<Real>& parameters, const Text& text,
             const std::vector<std::size_t>& positions) {
  const Buffers<Real> ignored(model);
  return model.loss_and_gradients(parameters.constant, text.classes(), positions, ignored.spans);
}

}  // namespace

TEST_CASE("The gradients written by hand agree with finite differences, parameter by parameter") {
  const Text text = Text::of(kSentence);
  CharacterModel<double> model(ModelSize{text.vocabulary(), 5, 3, 16});
  Buffers<double> parameters(model);
  const Buffers<double> gradients(model);
  model.initialize(parameters.spans, 7);
  const std::vector<std::size_t> positions{5, 17, 17, 40};
  model.loss_and_gradients(parameters.constant, text.classes(), positions, gradients.spans);

  constexpr double kStep = 1e-5;
  for (std::size_t p = 0; p < parameters.values.size(); ++p) {
    double largest_error = 0;
    double largest_gradient = 0;
    for (std::size_t i = 0; i < parameters.values[p].size(); ++i) {
      double& value = parameters.values[p][i];
      const double before = value;
      value = before + kStep;
      const double above = loss_of(model, parameters, text, positions);
      value = before - kStep;
      const double below = loss_of(model, parameters, text, positions);
      value = before;
      const double expected = (above - below) / (2 * kStep);
      largest_error = std::max(largest_error, std::abs(expected - gradients.values[p][i]));
      largest_gradient = std::max(largest_gradient, std::abs(expected));
    }
    INFO(model.parameters()[p].name);
    CHECK(largest_error < 1e-8);
    CHECK(largest_gradient > 1e-4);  // the check would mean nothing if all were zero
  }
}

TEST_CASE("Gradients are added to what the caller's buffers hold") {
  const Text text = Text::of(kSentence);
  CharacterModel<float> model(ModelSize{text.vocabulary(), 4, 2, 16});
  Buffers<float> parameters(model);
  model.initialize(parameters.spans, 1);
  const Buffers<float> once(model);
  const Buffers<float> twice(model);
  const std::vector<std::size_t> positions{9};
  model.loss_and_gradients(parameters.constant, text.classes(), positions, once.spans);
  for (int i = 0; i < 2; ++i) {
    model.loss_and_gradients(parameters.constant, text.classes(), positions, twice.spans);
  }
  CHECK(twice.values[6][3] == 2 * once.values[6][3]);
}

TEST_CASE("Training from the same seed gives the same bits, and the loss falls by more than half") {
  const Text text = Text::of(repeated(kSentence, 4));
  const auto train = [&text] {
    CharacterModel<float> model(ModelSize{text.vocabulary(), 8, 4, 32});
    Buffers<float> parameters(model);
    const Buffers<float> exp_avg(model);
    const Buffers<float> exp_avg_sq(model);
    model.initialize(parameters.spans, 3);
    std::vector<float> bits;
    for (std::uint64_t step = 1; step <= 150; ++step) {
      const Buffers<float> gradients(model);
      std::vector<std::size_t> positions;
      for (std::size_t i = 0; i < 8; ++i) {
        positions.push_back(8 + (step * 37 + i * 101) % (text.size() - 8));
      }
      bits.push_back(model.loss_and_gradients(parameters.constant, text.classes(), positions,
                                              gradients.spans));
      for (std::size_t p = 0; p < parameters.spans.size(); ++p) {
        trainer::AdamW{}.update(step, parameters.spans[p], gradients.constant[p], exp_avg.spans[p],
                                exp_avg_sq.spans[p]);
      }
    }
    for (const auto& values : parameters.values) {
      bits.insert(bits.end(), values.begin(), values.end());
    }
    return bits;
  };
  const auto first = train();
  const auto second = train();
  REQUIRE(first.size() == second.size());
  CHECK(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0);
  CHECK(first[149] < first[0] / 2);
}

TEST_CASE("AdamW's first step moves each parameter by the learning rate against its gradient") {
  std::vector<float> parameter{1.0F, -2.0F};
  const std::vector<float> gradient{0.5F, -3.0F};
  std::vector<float> exp_avg(2);
  std::vector<float> exp_avg_sq(2);
  trainer::AdamW optimizer;
  optimizer.weight_decay = 0;
  optimizer.learning_rate = 0.01F;
  optimizer.update(1, parameter, gradient, exp_avg, exp_avg_sq);
  CHECK(std::abs(parameter[0] - 0.99F) < 1e-5F);
  CHECK(std::abs(parameter[1] + 1.99F) < 1e-5F);
  CHECK(std::abs(exp_avg[0] - 0.05F) < 1e-7F);
  optimizer.weight_decay = 1;  // decay is decoupled: it acts without any gradient
  std::vector<float> decaying{1.0F};
  std::vector<float> zero(1);
  std::vector<float> zero_sq(1);
  optimizer.update(1, decaying, std::vector<float>{0.0F}, zero, zero_sq);
  CHECK(decaying[0] == 0.99F);
}

TEST_CASE("A text becomes classes of its distinct bytes, in order, and back") {
  const Text text = Text::of("hello\xFF");
  CHECK(text.vocabulary() == 5);
  CHECK(text.classes() == std::vector<std::uint8_t>{1, 0, 2, 2, 3, 4});
  CHECK(text.byte(4) == '\xFF');
  CHECK_THROWS_WITH(
      Text::read("/nowhere/at-all.txt", 1),
      "the text /nowhere/at-all.txt cannot be read: name a text file with --text FILE");
}

TEST_CASE("The licence that comes with the project is there to train on") {
  const auto file = trainer::default_text();
  REQUIRE_FALSE(file.empty());
  CHECK(Text::read(file, 1000).vocabulary() > 30);
}
