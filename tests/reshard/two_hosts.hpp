// Two hosts with disks of their own, on which the files of an old job of four ranks lie.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/reshard/step_parts.hpp>

#include "tests/reshard/cut_rows.hpp"

namespace meshstage::test {

/// Old rank r's file lies on the disk of host r % 2.
class TwoHosts {
 public:
  TwoHosts() {
    for (const int rank : {0, 1, 2, 3}) {
      const PersistedName name{"gpt", {1, 9}, rank, kBefore, {}};
      const auto directory = disk_of(rank % 2);
      make_private_directory(job.disk, directory);
      publish_atomically(job.disk, directory / to_file_name(name),
                         job.images[static_cast<std::size_t>(rank)].bytes());
    }
  }
  static std::filesystem::path disk_of(int host) { return "/host" + std::to_string(host); }
  std::unique_ptr<StepStates> open(int host) {
    return detail::StepParts::open(
        job.disk, detail::StepParts::find(job.disk, disk_of(host), "gpt", {1, 9}, 4), "gpt",
        [&](const std::string& text) { complaints.push_back(text); });
  }

  CutRows job;
  std::vector<std::string> complaints;
};

/// What host `host` opened, with the ends of the other host's images.
inline std::unique_ptr<StepStates> with_ends(TwoHosts& hosts, int host) {
  auto old = hosts.open(host);
  const auto other = hosts.open(1 - host);
  for (const int rank : {0, 1, 2, 3}) {
    REQUIRE(detail::StepParts::has(*old, rank) == (rank % 2 == host));
    if (rank % 2 != host)
      detail::StepParts::add(*old, rank, detail::StepParts::ends(*other, rank), "the other");
  }
  return old;
}

/// What rank `rank` of two needs; no file is damaged.
inline std::vector<detail::ImagePart> needed_by(StepStates& old, const CutRows::NewRank& now,
                                                int rank) {
  auto parts = detail::StepParts::needed(old, now.state, rank, 2, CutRows::options());
  REQUIRE(parts);
  return std::move(*parts);
}

}  // namespace meshstage::test
