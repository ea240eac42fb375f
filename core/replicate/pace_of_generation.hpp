#pragma once
#include <cstdint>

#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/stage/watermark.hpp>

namespace meshstage::replicate {

/// The pace of CheckpointerOptions (null: none) while the generation lasts. Leaving the generation
/// ends the pacing, so the rest is copied at full speed.
/// Threads: any.
class PaceOfGeneration final : public Pace {
 public:
  explicit PaceOfGeneration(Pace* pace) : pace_(pace) {}
  void before(std::uint64_t bytes, Watermark&) override {
    if (pace_ != nullptr && !left_.failed()) pace_->before(bytes, left_);
  }
  /// A generation begins.
  void enter() noexcept { left_.reset(); }
  /// The generation is being left: the rest is copied without pacing.
  void leave() noexcept;

 private:
  Pace* pace_;
  Watermark left_;
};

}  // namespace meshstage::replicate
