#include "tools/trainer/model.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace trainer {
namespace {

constexpr std::size_t kLanes = 16;  // inner loops of this fixed length become vector instructions

// y += a * x
template <class Real>
void add_scaled(Real* __restrict y, const Real* __restrict x, Real a, std::size_t n) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) y[i + j] += a * x[i + j];
  }
  for (; i < n; ++i) y[i] += a * x[i];
}

// The sum of x * y, in kLanes partial sums: always in the same order.
template <class Real>
Real dot(const Real* __restrict x, const Real* __restrict y, std::size_t n) {
  Real lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * y[i + j];
  }
  Real sum = 0;
  for (; i < n; ++i) sum += x[i] * y[i];
  for (const Real lane : lanes) sum += lane;
  return sum;
}

// out = in * weight + bias, weight row-major [in, out].
template <class Real>
void forward(std::span<const Real> in, std::span<const Real> weight, std::span<const Real> bias,
             std::span<Real> out) {
  std::copy(bias.begin(), bias.end(), out.begin());
  for (std::size_t i = 0; i < in.size(); ++i) {
    add_scaled(out.data(), weight.data() + i * out.size(), in[i], out.size());
  }
}

// The gradients of forward(): of weight and bias added, of `in` stored.
template <class Real>
void backward(std::span<const Real> in, std::span<const Real> weight, std::span<const Real> d_out,
              std::span<Real> d_weight, std::span<Real> d_bias, std::span<Real> d_in) {
  add_scaled(d_bias.data(), d_out.data(), Real{1}, d_out.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    const std::size_t row = i * d_out.size();
    add_scaled(d_weight.data() + row, d_out.data(), in[i], d_out.size());
    d_in[i] = dot(weight.data() + row, d_out.data(), d_out.size());
  }
}

template <class Real>
void tanh_in_place(std::span<Real> values) {
  for (Real& v : values) v = std::tanh(v);
}

// d(tanh)/d(input) from tanh's own value.
template <class Real>
void tanh_backward(std::span<const Real> value, std::span<Real> gradient) {
  for (std::size_t i = 0; i < value.size(); ++i) gradient[i] *= 1 - value[i] * value[i];
}

enum : std::size_t { kEmbedding, kWeight1, kBias1, kWeight2, kBias2, kWeight3, kBias3 };

}  // namespace

template <class Real>
CharacterModel<Real>::CharacterModel(ModelSize size) : size_(size) {
  if (size.vocabulary == 0 || size.hidden == 0 || size.hidden % kLanes != 0) {
    throw std::invalid_argument("the model needs a vocabulary and hidden units in multiples of 16");
  }
  const std::size_t input = size.context * size.embedding;
  const auto add = [this](std::string name, std::vector<std::size_t> shape, double range) {
    ParameterSpec spec{std::move(name), {}, 1, range};
    for (const std::size_t n : shape) {
      spec.shape.push_back(static_cast<std::int64_t>(n));
      spec.elements *= n;
    }
    specs_.push_back(std::move(spec));
  };
  const auto range = [](std::size_t fan_in) {
    return 1.0 / std::sqrt(static_cast<double>(fan_in));
  };
  add("embedding.weight", {size.vocabulary, size.embedding}, 0.5);
  add("hidden1.weight", {input, size.hidden}, range(input));
  add("hidden1.bias", {size.hidden}, 0);
  add("hidden2.weight", {size.hidden, size.hidden}, range(size.hidden));
  add("hidden2.bias", {size.hidden}, 0);
  add("output.weight", {size.hidden, size.vocabulary}, range(size.hidden));
  add("output.bias", {size.vocabulary}, 0);
  x_.resize(input);
  dx_.resize(input);
  for (auto* h : {&h1_, &h2_, &dh1_, &dh2_}) h->resize(size.hidden);
  logits_.resize(size.vocabulary);
}

template <class Real>
std::size_t CharacterModel<Real>::elements() const {
  std::size_t sum = 0;
  for (const auto& spec : specs_) sum += spec.elements;
  return sum;
}

template <class Real>
void CharacterModel<Real>::initialize(std::span<const std::span<Real>> parameters,
                                      std::uint64_t seed) const {
  std::mt19937_64 random(seed);
  for (std::size_t p = 0; p < specs_.size(); ++p) {
    for (Real& value : parameters[p]) {
      // 53 random bits as a fraction; std::uniform_real_distribution differs between libraries.
      const double fraction = static_cast<double>(random() >> 11) * 0x1p-53;
      value = static_cast<Real>(specs_[p].initial_range * (2 * fraction - 1));
    }
  }
}

template <class Real>
Real CharacterModel<Real>::loss_and_gradients(std::span<const std::span<const Real>> parameters,
                                              std::span<const std::uint8_t> text,
                                              std::span<const std::size_t> positions,
                                              std::span<const std::span<Real>> gradients) {
  const Real scale = 1 / static_cast<Real>(positions.size());
  Real loss = 0;
  for (const std::size_t p : positions) {
    loss += example(parameters, text.data() + p - size_.context, text[p], scale, gradients);
  }
  return loss * scale;
}

template <class Real>
Real CharacterModel<Real>::example(std::span<const std::span<const Real>> parameters,
                                   const std::uint8_t* context, std::size_t target, Real scale,
                                   std::span<const std::span<Real>> gradients) {
  const auto constant = [](const std::vector<Real>& v) { return std::span<const Real>(v); };
  const auto mutable_ = [](std::vector<Real>& v) { return std::span<Real>(v); };
  const std::size_t width = size_.embedding;

  for (std::size_t c = 0; c < size_.context; ++c) {
    std::copy_n(parameters[kEmbedding].data() + context[c] * width, width, x_.data() + c * width);
  }
  forward(constant(x_), parameters[kWeight1], parameters[kBias1], mutable_(h1_));
  tanh_in_place(mutable_(h1_));
  forward(constant(h1_), parameters[kWeight2], parameters[kBias2], mutable_(h2_));
  tanh_in_place(mutable_(h2_));
  forward(constant(h2_), parameters[kWeight3], parameters[kBias3], mutable_(logits_));

  // Softmax and cross entropy; logits_ becomes the gradient of the loss by the logits.
  const Real largest = *std::max_element(logits_.begin(), logits_.end());
  const Real logit_of_target = logits_[target];
  Real sum = 0;
  for (Real& z : logits_) {
    z = std::exp(z - largest);
    sum += z;
  }
  const Real loss = std::log(sum) + largest - logit_of_target;
  for (Real& z : logits_) z *= scale / sum;
  logits_[target] -= scale;

  backward(constant(h2_), parameters[kWeight3], constant(logits_), gradients[kWeight3],
           gradients[kBias3], mutable_(dh2_));
  tanh_backward(constant(h2_), mutable_(dh2_));
  backward(constant(h1_), parameters[kWeight2], constant(dh2_), gradients[kWeight2],
           gradients[kBias2], mutable_(dh1_));
  tanh_backward(constant(h1_), mutable_(dh1_));
  backward(constant(x_), parameters[kWeight1], constant(dh1_), gradients[kWeight1],
           gradients[kBias1], mutable_(dx_));
  for (std::size_t c = 0; c < size_.context; ++c) {
    add_scaled(gradients[kEmbedding].data() + context[c] * width, dx_.data() + c * width, Real{1},
               width);
  }
  return loss;
}

template class CharacterModel<float>;
template class CharacterModel<double>;

}  // namespace trainer
