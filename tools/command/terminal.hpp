#pragma once
#include <cstddef>
#include <optional>
#include <ostream>
#include <streambuf>
#include <string>
#include <string_view>

namespace meshstage::tools {

/// Columns of the terminal that `descriptor` is: COLUMNS where it is set to a number, else what the
/// terminal itself says. Nothing if it is a pipe or a file, or a terminal that does not know.
[[nodiscard]] std::optional<std::size_t> terminal_width(int descriptor);

/// A line, without its end, as lines of at most `width` columns: it is broken between words, and
/// what follows is indented as the last of its columns (after a gap of two spaces) that begins in
/// the left half, or else by two more than the line. A word that is longer than a line (a path)
/// stays whole, so that it can be copied.
[[nodiscard]] std::string folded(std::string_view line, std::size_t width);

/// Passes what is written on to another stream, each line folded. What programs read passes
/// unchanged: all of an output that begins with '{' (JSON), '<' (SVG), '#' (a script) or '.'
/// (roff). A part of a line that is flushed before its end is known, such as a question, passes
/// unchanged.
class FoldingStream final : public std::ostream {
 public:
  /// `to` must live as long as this.
  FoldingStream(std::ostream& to, std::size_t width);
  ~FoldingStream() override;
  FoldingStream(const FoldingStream&) = delete;
  FoldingStream& operator=(const FoldingStream&) = delete;

 private:
  class Buffer final : public std::streambuf {
   public:
    Buffer(std::ostream& to, std::size_t width) : to_(to), width_(width) {}

   protected:
    int_type overflow(int_type c) override;
    std::streamsize xsputn(const char* text, std::streamsize size) override;
    int sync() override;

   private:
    void write(std::string_view text);

    std::ostream& to_;
    const std::size_t width_;
    std::string line_;        // not yet passed on
    bool begun_ = false;      // something was written
    bool unchanged_ = false;  // the output is for programs
    bool partial_ = false;    // the beginning of this line was passed on
  };
  Buffer buffer_;
};

}  // namespace meshstage::tools
