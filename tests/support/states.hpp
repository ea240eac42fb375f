// State dicts to stage, and images of them, for tests of several rooms.
#pragma once
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::test {

/// An image in memory of its own.
struct TestImage {
  StagingPlan plan;
  Storage memory;
  ImageInfo info;
  [[nodiscard]] std::span<std::byte> bytes() const { return memory.bytes(); }
};

inline ImageIdentity identity_of_step(std::uint64_t step) {
  return {"job", 2, 4, {3, step}, {3, step - 5}};
}

inline TestImage make_image(const Value& state, const PlanOptions& options,
                            const ImageIdentity& identity) {
  auto plan = StagingPlan::compile(state, nullptr, options);
  auto memory = Storage::allocate(plan.layout().image_bytes);
  std::memset(memory.data(), 0xEE, memory.nbytes());  // what was there before must not matter
  Watermark progress;
  plan.write_manifest(memory.bytes());
  plan.copy(state, memory.bytes(), progress);
  const auto info = plan.seal(identity, memory.bytes(), progress);
  return {plan, memory, info};
}

inline TestImage make_image(const Value& state, std::uint64_t block_bytes = 4096,
                            std::uint64_t step = 85, std::vector<LoanNames> borrowed = {}) {
  return make_image(state, {.block_bytes = block_bytes, .borrowed = std::move(borrowed)},
                    identity_of_step(step));
}

/// The names and sharing of a GPT-2 with AdamW and a tied head, 148 weights at 12 layers; sizes as
/// asked.
inline Dict gpt2_state(std::int64_t vocabulary, std::int64_t layers, std::int64_t d,
                       std::int64_t context) {
  std::vector<std::pair<std::string, Shape>> shapes{{"wte.weight", {vocabulary, d}},
                                                    {"wpe.weight", {context, d}}};
  for (std::int64_t i = 0; i < layers; ++i) {
    const auto p = "h." + std::to_string(i) + ".";
    for (const auto& [name, shape] :
         std::initializer_list<std::pair<const char*, Shape>>{{"ln_1.weight", {d}},
                                                              {"ln_1.bias", {d}},
                                                              {"attn.c_attn.weight", {d, 3 * d}},
                                                              {"attn.c_attn.bias", {3 * d}},
                                                              {"attn.c_proj.weight", {d, d}},
                                                              {"attn.c_proj.bias", {d}},
                                                              {"ln_2.weight", {d}},
                                                              {"ln_2.bias", {d}},
                                                              {"mlp.c_fc.weight", {d, 4 * d}},
                                                              {"mlp.c_fc.bias", {4 * d}},
                                                              {"mlp.c_proj.weight", {4 * d, d}},
                                                              {"mlp.c_proj.bias", {d}}}) {
      shapes.emplace_back(p + name, shape);
    }
  }
  shapes.emplace_back("ln_f.weight", Shape{d});
  shapes.emplace_back("ln_f.bias", Shape{d});
  // Element i of parameter k is k + i / 1024: exact in F32 for what a check looks at.
  const auto ramp = [](const Shape& shape, float first) {
    const auto t = Tensor::empty(shape, DType::kF32);
    auto* p = t.data<float>();
    for (std::int64_t i = 0; i < t.numel(); ++i) p[i] = first + static_cast<float>(i % 1024) / 1024;
    return t;
  };
  Dict model, optimizer;
  float k = 0;
  for (const auto& [name, shape] : shapes) {
    model.set(name, ramp(shape, k));
    optimizer.set(name, Dict{{"exp_avg", ramp(shape, -k)},
                             {"exp_avg_sq", Tensor::full<float>(shape, 0.25F)},
                             {"step", Tensor::scalar(1.0F)}});
    k += 1;
  }
  model.set("lm_head.weight", model.at("wte.weight"));
  return {{"model", model}, {"optimizer", optimizer}, {"step", 1}};
}

}  // namespace meshstage::test
