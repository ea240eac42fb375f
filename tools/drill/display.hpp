#pragma once
#include <cstdint>
#include <cstdio>
#include <string>

namespace meshstage::tools::drill {

/// Where a run stands.
struct Progress {
  std::uint64_t step = 0;
  std::uint64_t steps = 0;
  double loss = 0;
  double stage_ms = 0;  ///< Of the last staged step; 0: none yet.
  double replicate_ms = 0;
  std::uint64_t generation = 0;
};

/// What people see: lines, and on a terminal a bar below them that is drawn over.
class Display {
 public:
  enum class Mode : std::uint8_t { kSilent, kPlain, kTerminal };
  /// `out` stays the caller's.
  Display(std::FILE* out, Mode mode) : out_(out), mode_(mode) {}
  /// Terminal if `out` is one.
  static Mode mode_for(std::FILE* out);
  ~Display() { clear_bar(); }
  Display(const Display&) = delete;
  Display& operator=(const Display&) = delete;

  [[nodiscard]] Mode mode() const { return mode_; }
  void line(const std::string& text);
  /// A bar on a terminal, elsewhere a line for every tenth of the run.
  void progress(const Progress& progress);
  void clear_bar();

 private:
  [[nodiscard]] std::string bar(const Progress& progress) const;
  std::FILE* out_;
  Mode mode_;
  bool bar_shown_ = false;
  std::uint64_t tenths_ = 0;
};

}  // namespace meshstage::tools::drill
