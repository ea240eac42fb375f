#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools::run {

/// What a rank reports; core/comm/supervisor.hpp has the texts.
struct Report {
  enum class Kind : std::uint8_t {
    kJoined,   ///< It became part of a generation of its job.
    kForming,  ///< It waits for the others while a generation is formed.
    kAlive,    ///< Its process lives, and does not wait so.
    kLeft,     ///< Its process reports no more.
  } kind = Kind::kJoined;
  int rank = 0;              ///< Of the job.
  std::uint64_t number = 0;  ///< The generation (kJoined), else the reporter's token.
};
/// Nothing where the text is no report.
[[nodiscard]] std::optional<Report> parse_report(std::string_view text);

/// A socket in a folder of this user's own, to which the library in a rank writes its reports
/// (MESHSTAGE_SUPERVISOR). Removed by the destructor.
class Reports {
 public:
  /// Throws IoError.
  Reports();
  Reports(const Reports&) = delete;
  Reports& operator=(const Reports&) = delete;
  ~Reports();

  [[nodiscard]] std::string path() const { return (folder_ / "supervisor").string(); }
  [[nodiscard]] int descriptor() const { return socket_.get(); }
  /// What has come. Never blocks.
  std::vector<Report> take();

 private:
  std::filesystem::path folder_;
  Descriptor socket_;
};

}  // namespace meshstage::tools::run
