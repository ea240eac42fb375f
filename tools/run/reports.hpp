#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools::run {

/// "joined RANK GENERATION": a rank's process became part of a generation of its job.
struct Joined {
  int rank = 0;
  std::uint64_t generation = 0;
};
/// Nothing where the text is none of ours.
[[nodiscard]] std::optional<Joined> parse_joined(std::string_view text);

/// A socket in a folder of this user's own, to which the library in a rank writes a datagram each
/// time when it joined a generation (MESHSTAGE_SUPERVISOR). Removed by the destructor.
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
  std::vector<Joined> take();

 private:
  std::filesystem::path folder_;
  Descriptor socket_;
};

}  // namespace meshstage::tools::run
