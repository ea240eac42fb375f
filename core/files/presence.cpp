#include <meshstage/core/files/presence.hpp>

#include <algorithm>
#include <charconv>
#include <exception>

#include <meshstage/core/files/temporary_impl.hpp>

namespace meshstage {

namespace {

/// The names of all ranks' files begin so.
std::string beginning(std::string_view job, std::uint64_t generation) {
  return "." + std::string(job) + ".present.g" + std::to_string(generation) + ".r";
}

}  // namespace

Presence::Presence(FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
                   std::uint64_t generation, int rank)
    : fs_(fs),
      path_(directory / (beginning(job, generation) + std::to_string(rank) +
                         detail::own_mark(fs.process()) + std::to_string(rank))),
      file_(detail::create_locked(fs, path_)) {}

Presence::~Presence() {
  try {
    fs_.unlink(path_);
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no such file, or no memory
    // A later remove_leftovers() removes it.
  }
}

std::vector<int> ranks_present(FileSystem& fs, const std::filesystem::path& directory,
                               std::string_view job, std::uint64_t generation) {
  const std::string begins = beginning(job, generation);
  std::vector<int> ranks;
  for (const auto& name : fs.list(directory)) {
    if (!name.starts_with(begins)) continue;
    const char* const end = name.data() + name.size();
    int rank = 0;
    const auto read = std::from_chars(name.data() + begins.size(), end, rank);
    const std::string_view rest(read.ptr, static_cast<std::size_t>(end - read.ptr));
    if (read.ec == std::errc() && rank >= 0 && rest.starts_with(detail::kTemporaryMark)) {
      ranks.push_back(rank);
    }
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

}  // namespace meshstage
