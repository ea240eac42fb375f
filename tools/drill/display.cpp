#include "tools/drill/display.hpp"

#include <unistd.h>

#include <algorithm>

#include <fmt/format.h>
#include <meshstage/core/generation/number.hpp>

#include "tools/command/terminal.hpp"

namespace meshstage::tools::drill {
namespace {

std::string figures(const Progress& p) {
  std::string text = fmt::format("loss {:.3f}", p.loss);
  if (p.stage_ms > 0) text += fmt::format("  stage {:.1f} ms", p.stage_ms);
  if (p.replicate_ms > 0) text += fmt::format("  replicate {:.1f} ms", p.replicate_ms);
  return text + "  " + generation_text(p.generation);
}

}  // namespace

Display::Mode Display::mode_for(std::FILE* out) {
  return ::isatty(::fileno(out)) != 0 ? Mode::kTerminal : Mode::kPlain;
}

void Display::clear_bar() {
  if (!bar_shown_) return;
  std::fputs("\r\x1b[K", out_);
  std::fflush(out_);
  bar_shown_ = false;
}

void Display::line(const std::string& text) {
  if (mode_ == Mode::kSilent) return;
  clear_bar();
  const auto width = terminal_width(::fileno(out_));
  std::fputs(((width ? folded(text, *width) : text) + "\n").c_str(), out_);
  std::fflush(out_);
}

std::string Display::bar(const Progress& p) const {
  constexpr std::uint64_t kWidth = 24;
  const std::uint64_t filled = p.steps == 0 ? 0 : std::min(kWidth, kWidth * p.step / p.steps);
  std::string text = fmt::format("  [{}{}] {}/{}  {}", std::string(filled, '#'),
                                 std::string(kWidth - filled, '.'), p.step, p.steps, figures(p));
  text.resize(std::min(text.size(), terminal_width(::fileno(out_)).value_or(80) -
                                        1));  // a wrapped line cannot be drawn over
  return text;
}

void Display::progress(const Progress& p) {
  if (mode_ == Mode::kTerminal) {
    std::fputs(("\r" + bar(p) + "\x1b[K").c_str(), out_);
    std::fflush(out_);
    bar_shown_ = true;
  } else if (mode_ == Mode::kPlain) {
    const std::uint64_t tenths = p.steps == 0 ? 0 : p.step * 10 / p.steps;
    if (tenths <= tenths_) return;
    tenths_ = tenths;
    line(fmt::format("  step {:>{}}/{}  {}", p.step, std::to_string(p.steps).size(), p.steps,
                     figures(p)));
  }
}

}  // namespace meshstage::tools::drill
