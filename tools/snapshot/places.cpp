#include "tools/snapshot/places.hpp"

#include <fmt/format.h>

#include <charconv>
#include <system_error>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/vault/vault.hpp>

#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxLevels = 4;
constexpr std::size_t kMaxDirectories = 10'000;
const char* const kSharedMemory = "/dev/shm";

/// `top` and the directories below it, parents first.
void add_with_children(std::vector<fs::path>& found, const fs::path& top, int levels) {
  found.push_back(top);
  std::error_code error;
  fs::recursive_directory_iterator at(top, fs::directory_options::skip_permission_denied, error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    std::error_code ignored;
    if (!at->is_directory(ignored) || at->is_symlink(ignored)) continue;
    if (found.size() >= kMaxDirectories) return;
    found.push_back(at->path());
    if (at.depth() + 1 >= levels) at.disable_recursion_pending();
  }
}

std::vector<fs::path> directories_of(const Places& places) {
  std::vector<fs::path> found;
  for (const auto& directory : places.directories) {
    std::error_code error;
    if (!fs::is_directory(directory, error)) {
      throw make_error<NotFound>("there is no directory \"" + printable(directory.native()) + "\"",
                                 {}, {}, directory.native());
    }
    add_with_children(found, directory, kMaxLevels);
  }
  return found;
}

/// The directories above the default ones of all jobs.
fs::path default_images() { return default_directory("any").parent_path(); }

template <class Item>
void keep_job(std::vector<Item>& items, std::string_view job) {
  if (job.empty()) return;
  std::erase_if(items, [&](const Item& item) {
    if constexpr (requires { item.name; }) {
      return item.name.job != job;
    } else {
      return item.job != job;
    }
  });
}

void add_vaults(std::vector<VaultListing>& vaults, const fs::path& directory) {
  auto more = list_vaults(directory);
  vaults.insert(vaults.end(), std::make_move_iterator(more.begin()),
                std::make_move_iterator(more.end()));
}

template <class Number>
bool read_number(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && number >= 0;
}

}  // namespace

std::vector<VaultListing> find_vaults(const Places& places, std::string_view job) {
  std::vector<VaultListing> vaults;
  if (places.directories.empty()) {
    add_vaults(vaults, kSharedMemory);
  } else {
    for (const auto& directory : directories_of(places)) add_vaults(vaults, directory);
  }
  keep_job(vaults, job);
  return vaults;
}

HostImages find_images(const Places& places, std::string_view job) {
  HostImages found{.vaults = find_vaults(places, job), .files = {}};
  auto directories = directories_of(places);
  std::error_code error;
  if (places.directories.empty() && fs::is_directory(default_images(), error)) {
    add_with_children(directories, default_images(), 2);
  }
  for (const auto& directory : directories) {
    auto more = list_images(real_file_system(), directory, job);
    found.files.insert(found.files.end(), std::make_move_iterator(more.begin()),
                       std::make_move_iterator(more.end()));
  }
  return found;
}

std::string places_text(const Places& places) {
  if (places.directories.empty()) return "/dev/shm and the jobs' default directories";
  std::string text;
  for (const auto& place : places.directories) {
    text += (text.empty() ? "" : ", ") + printable(place.native());
  }
  return text;
}

std::optional<ImageName> parse_image_name(std::string_view text) {
  ImageName name;
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  name.job = text.substr(0, slash);
  if (!is_valid_job_name(name.job)) return std::nullopt;
  text.remove_prefix(slash + 1);
  if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    if (!read_number(text.substr(colon + 1), name.holder.emplace())) return std::nullopt;
    text = text.substr(0, colon);
  }
  if (const auto at = text.find('@'); at != std::string_view::npos) {
    auto id = text.substr(at + 1);
    if (const auto dot = id.find('.'); dot != std::string_view::npos) {
      if (!read_number(id.substr(0, dot), name.generation.emplace())) return std::nullopt;
      id.remove_prefix(dot + 1);
    }
    if (!read_number(id, name.step.emplace())) return std::nullopt;
    text = text.substr(0, at);
  }
  if (!read_number(text, name.rank)) return std::nullopt;
  return name;
}

std::string image_name(const ImageIdentity& identity, int holder, bool whole) {
  const std::uint64_t generation = identity.id.generation;
  auto text = fmt::format("{}/{}@{}.{}", identity.job, identity.rank,
                          whole ? generation : generation_in_run(generation), identity.id.step);
  if (holder != identity.rank) text += fmt::format(":{}", holder);
  return text;
}

}  // namespace meshstage::tools
