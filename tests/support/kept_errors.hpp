// What a program says on standard error, kept for a test to read.
#pragma once
#include <array>
#include <iostream>
#include <streambuf>
#include <string>

namespace meshstage::test {

/// Standard error as a program sees it, kept without an allocation. What does not fit is not kept.
/// Threads: one at a time may write to it, and none while text() is called.
class KeptErrors : private std::streambuf {
 public:
  KeptErrors() : before_(std::cerr.rdbuf(this)) { setp(kept_.data(), kept_.data() + kept_.size()); }
  KeptErrors(const KeptErrors&) = delete;
  KeptErrors& operator=(const KeptErrors&) = delete;
  ~KeptErrors() override { std::cerr.rdbuf(before_); }
  [[nodiscard]] std::string text() const { return {pbase(), pptr()}; }

 private:
  std::array<char, 4096> kept_{};
  std::streambuf* const before_;
};

}  // namespace meshstage::test
