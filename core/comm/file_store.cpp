// How one key is one file, and why nobody sees half of a value:
// a value is first written to a temporary name of its own, then either linked to the key's name
// (link(2) fails if it is there: compare_and_create, one winner) or renamed over it (set). Both are
// atomic on local file systems and on NFS. Nothing is synced: a store is of use to living processes
// only, and a machine that lost power took them along.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/os/size_signal.hpp>

namespace meshstage {

namespace {

namespace fs = std::filesystem;
constexpr std::size_t kMaxFileName = 255;

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_' || c == '.';
}

/// '/' becomes '+', which keeps names readable; what is not plain becomes %XX. Temporary names
/// begin with '.', so a leading dot of a key is escaped too.
std::string escape(const std::string& key) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string name;
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '/') {
      name += '+';
    } else if (is_plain(c) && !(c == '.' && name.empty())) {
      name += c;
    } else {
      name += '%';
      name += kDigits[byte >> 4];
      name += kDigits[byte & 15];
    }
  }
  return name;
}

/// Nothing for a name that escape() does not give: no file of a store.
std::optional<std::string> unescape(const std::string& name) {
  std::string key;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '+') {
      key += '/';
    } else if (name[i] == '%') {
      unsigned byte = 0;
      const char* const end = name.data() + std::min(i + 3, name.size());
      const auto read = std::from_chars(name.data() + i + 1, end, byte, 16);
      if (read.ec != std::errc() || read.ptr != name.data() + i + 3) return std::nullopt;
      key += static_cast<char>(byte);
      i += 2;
    } else {
      key += name[i];
    }
  }
  if (escape(key) != name) return std::nullopt;
  return key;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_no_entry(const fs::path& file) {
  throw make_error<IoError>(file.string() +
                                " is no file of a store (a folder, a link, a pipe or the like); "
                                "remove it, or give the job a folder of its own",
                            {}, {}, file.string());
}

std::optional<std::string> read_file(const fs::path& file) {
  // Neither a pipe nor a link that somebody put there is waited for or followed.
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  if (fd.get() < 0) {
    if (errno == ENOENT) return std::nullopt;
    if (errno == ELOOP || errno == ENXIO) throw_no_entry(file);
    throw_errno("open", file.string(), errno);
  }
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) throw_errno("fstat", file.string(), errno);
  if (!S_ISREG(status.st_mode)) throw_no_entry(file);
  std::string value;
  std::array<char, 4096> buffer{};
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n == 0) return value;
    if (n > 0) {
      value.append(buffer.data(), static_cast<std::size_t>(n));
    } else if (errno == ESTALE) {  // NFS: replaced under our hands
      return read_file(file);
    } else if (errno != EINTR) {
      throw_errno("read", file.string(), errno);
    }
  }
}

}  // namespace

FileStore::FileStore(std::filesystem::path directory) : directory_(std::move(directory)) {
  if (!directory_.is_absolute()) {
    throw make_error<InvalidArgument>("a store's folder must be an absolute path", {}, {},
                                      directory_.string());
  }
  // Its missing parents too are for their owner alone: one of them may be where images go, and
  // those are not written where others may write.
  if (!fs::is_directory(directory_)) real_file_system().make_directories(directory_);
}

std::filesystem::path FileStore::file_of(const std::string& key) const {
  check_key(key);
  const std::string name = escape(key);
  if (name.size() > kMaxFileName) {
    throw InvalidArgument("a key of a file store has at most 255 bytes after escaping: " + key);
  }
  return directory_ / name;
}

std::filesystem::path FileStore::write_temporary(std::string_view value) const {
  std::string name = (directory_ / ".new-XXXXXX").string();
  const Descriptor fd(::mkostemp(name.data(), O_CLOEXEC));
  if (fd.get() < 0) throw_errno("mkostemp", name, errno);
  const detail::SizeSignalBlocked blocked;
  while (!value.empty()) {
    const ssize_t n = ::write(fd.get(), value.data(), value.size());
    if (n >= 0) {
      value.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno != EINTR) {
      const int error = errno;
      ::unlink(name.c_str());
      throw_errno("write", name, error);
    }
  }
  return name;
}

void FileStore::set(const std::string& key, std::string_view value, Deadline /*deadline*/) {
  const fs::path file = file_of(key);
  const fs::path temporary = write_temporary(value);
  if (::rename(temporary.c_str(), file.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    throw_errno("rename", file.string(), error);
  }
}

std::optional<std::string> FileStore::get(const std::string& key, Deadline /*deadline*/) {
  return read_file(file_of(key));
}

std::string FileStore::compare_and_create(const std::string& key, std::string_view value,
                                          Deadline deadline) {
  const fs::path file = file_of(key);
  while (true) {
    if (auto there = read_file(file)) return *there;
    const fs::path temporary = write_temporary(value);
    const int result = ::link(temporary.c_str(), file.c_str());
    int error = result == 0 ? 0 : errno;
    // NFS may lose the answer of a link that was made: two names tell that it was.
    struct stat status{};
    if (error != 0 && ::stat(temporary.c_str(), &status) == 0 && status.st_nlink == 2) error = 0;
    ::unlink(temporary.c_str());
    if (error == 0) return std::string(value);
    if (error != EEXIST) throw_errno("link", file.string(), error);
    // Somebody was first; if it was removed again meanwhile, once more.
    if (deadline.expired()) throw_not_there(directory_.string(), std::span(&key, 1));
  }
}

std::vector<std::string> FileStore::list(const std::string& prefix, Deadline /*deadline*/) {
  std::vector<std::string> keys;
  std::error_code error;
  for (auto entry = fs::directory_iterator(directory_, error);
       !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with('.')) continue;
    auto key = unescape(name);
    if (key && key->starts_with(prefix)) keys.push_back(std::move(*key));
  }
  if (error) throw_errno("read the folder", directory_.string(), error.value());
  std::sort(keys.begin(), keys.end());
  return keys;
}

void FileStore::remove(const std::string& key, Deadline /*deadline*/) {
  const fs::path file = file_of(key);
  if (::unlink(file.c_str()) != 0 && errno != ENOENT) throw_errno("unlink", file.string(), errno);
}

std::string FileStore::wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                    std::stop_token stop) {
  // A file system tells no process about another host's changes, so this polls; a stop wakes it.
  Mutex mutex;
  CondVar changed;
  auto pause = std::chrono::microseconds(100);
  constexpr auto kLongest = std::chrono::microseconds(10000);
  while (true) {
    for (const auto& key : keys) {
      if (auto value = get(key)) return *value;
    }
    if (stop.stop_requested()) throw Cancelled("waiting in the store was given up");
    if (deadline.expired()) throw_not_there(directory_.string(), keys);
    MutexLock lock(mutex);
    (void)changed.wait_until(lock, stop, Deadline::after(pause).earlier(deadline),
                             [] { return false; });
    pause = std::min(pause * 2, kLongest);
  }
}

}  // namespace meshstage
