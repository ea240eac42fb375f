#include "tests/support/fake_nccl/rendezvous.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

namespace meshstage::fake_nccl {
namespace fs = std::filesystem;
namespace {

bool is_alive(const std::string& pid) {
  std::ifstream stat("/proc/" + pid + "/stat");
  std::string line;
  if (!std::getline(stat, line)) return false;
  // "pid (name) S ...": a zombie is dead.
  const auto end = line.rfind(')');
  return end != std::string::npos && end + 2 < line.size() && line[end + 2] != 'Z';
}

}  // namespace

std::string Rendezvous::make() {
  // A folder to which some rank never came is removed when the process that made it ends.
  struct Made {
    std::vector<std::string> paths;
    ~Made() {
      std::error_code ignored;
      for (const auto& one : paths) fs::remove_all(one, ignored);
    }
  };
  static Made made;  // used with the fake driver's lock held
  std::string path = (fs::temp_directory_path() / "fake_nccl_XXXXXX").string();
  if (::mkdtemp(path.data()) == nullptr) return "";
  made.paths.push_back(path);
  return path;
}

Rendezvous::Rendezvous(std::string path, int rank, int size)
    : path_(std::move(path)), rank_(rank), size_(size) {
  const std::string pid = std::to_string(::getpid());
  const auto* const begin = reinterpret_cast<const std::byte*>(pid.data());
  put("rank-" + std::to_string(rank_), Bytes(begin, begin + pid.size()));
}

void Rendezvous::put(const std::string& name, const Bytes& bytes) const {
  const std::string target = path_ + "/" + name;
  {
    std::ofstream file(target + ".part", std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  std::error_code ignored;  // the folder went with the last rank
  fs::rename(target + ".part", target, ignored);
}

std::optional<Bytes> Rendezvous::get(const std::string& name) const {
  std::ifstream file(path_ + "/" + name, std::ios::binary);
  if (!file) return std::nullopt;
  const std::vector<char> text(std::istreambuf_iterator<char>(file), {});
  const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
  return Bytes(begin, begin + text.size());
}

void Rendezvous::remove(const std::string& name) const {
  std::error_code ignored;
  fs::remove(path_ + "/" + name, ignored);
}

bool Rendezvous::complete() const {
  for (int r = 0; r < size_; ++r) {
    if (::access((path_ + "/rank-" + std::to_string(r)).c_str(), F_OK) != 0) return false;
  }
  return true;
}

bool Rendezvous::lost_a_rank() const {
  for (int r = 0; r < size_; ++r) {
    const auto pid = get("rank-" + std::to_string(r));
    if (!pid) continue;
    if (!is_alive(std::string(reinterpret_cast<const char*>(pid->data()), pid->size())))
      return true;
  }
  return false;
}

void Rendezvous::leave() const {
  put("left-" + std::to_string(rank_), {});
  for (int r = 0; r < size_; ++r) {
    if (get("left-" + std::to_string(r))) continue;
    const auto pid = get("rank-" + std::to_string(r));
    // A rank that never came may still come and wait, as it does with NCCL.
    if (!pid || is_alive(std::string(reinterpret_cast<const char*>(pid->data()), pid->size()))) {
      return;
    }
  }
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace meshstage::fake_nccl
