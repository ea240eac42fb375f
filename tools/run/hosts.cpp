#include "tools/run/hosts.hpp"

#include <cerrno>
#include <charconv>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <system_error>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools::run {
namespace {

constexpr std::string_view kSlots = "slots=";

int number_of_ranks(std::string_view text, const std::string& where) {
  if (text.starts_with(kSlots)) text.remove_prefix(kSlots.size());
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stopped == end && value > 0) return value;
  throw InvalidArgument(where + ": \"" + std::string(text) +
                        "\" is no number of ranks; a line is NAME, NAME RANKS or NAME slots=RANKS");
}

}  // namespace

std::vector<Host> parse_hosts(std::string_view text, const std::string& source) {
  std::vector<Host> hosts;
  std::set<std::string> names;
  std::istringstream in{std::string(text)};
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = source + ":" + std::to_string(number);
    std::istringstream words(line.substr(0, line.find('#')));
    const std::vector<std::string> parts{std::istream_iterator<std::string>(words), {}};
    if (parts.empty()) continue;
    if (parts.size() > 2) {
      throw InvalidArgument(where + ": a line is NAME, NAME RANKS or NAME slots=RANKS");
    }
    if (!names.insert(parts[0]).second) {
      throw InvalidArgument(where + ": host " + parts[0] + " is listed twice");
    }
    hosts.push_back({parts[0], parts.size() == 2 ? number_of_ranks(parts[1], where) : 1});
  }
  if (hosts.empty()) throw InvalidArgument(source + " names no host");
  return hosts;
}

std::vector<Host> read_hosts(const std::filesystem::path& file) {
  std::error_code none;
  if (std::filesystem::is_directory(file, none)) {
    throw InvalidArgument("--hosts " + file.string() +
                          " is a directory; give a file with a line NAME RANKS for each host");
  }
  std::ifstream in(file);
  if (!in) {
    throw NotFound("the hosts file " + file.string() +
                   " cannot be read: " + std::generic_category().message(errno));
  }
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  return parse_hosts(text, file.string());
}

Place place_of(const std::vector<Host>& hosts, const std::string& name) {
  Place place;
  place.hosts = static_cast<int>(hosts.size());
  place.host = -1;
  place.world_size = 0;
  place.first_host = hosts.front().name;
  std::string names;
  for (const Host& host : hosts) {
    if (host.name == name) {
      place.host = static_cast<int>(&host - hosts.data());
      place.name = name;
      place.first_rank = place.world_size;
      place.ranks = host.ranks;
    }
    place.world_size += host.ranks;
    names += (names.empty() ? "" : ", ") + host.name;
  }
  if (place.host < 0) {
    throw InvalidArgument("this host, \"" + name + "\", is none of the hosts file's: " + names +
                          "; give --this NAME");
  }
  return place;
}

}  // namespace meshstage::tools::run
