#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string_view>

#include <meshstage/core/checkpoint/text_file_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/size_signal.hpp>

namespace meshstage::detail {
namespace {

class OpenText {
 public:
  OpenText(const std::filesystem::path& path, int flags)
      : path_(path.native()), fd_(::open(path_.c_str(), flags | O_CREAT | O_CLOEXEC, 0666)) {
    if (fd_ < 0) throw_errno("open", path_, errno);
  }
  OpenText(const OpenText&) = delete;
  OpenText& operator=(const OpenText&) = delete;
  ~OpenText() { ::close(fd_); }

  [[nodiscard]] bool ends_within_a_line() const {
    struct stat now{};
    if (::fstat(fd_, &now) != 0) throw_errno("fstat", path_, errno);
    char last = '\n';
    if (now.st_size > 0 && ::pread(fd_, &last, 1, now.st_size - 1) < 0) {
      throw_errno("read", path_, errno);
    }
    return last != '\n';
  }
  void write(std::string_view text) const {
    const SizeSignalBlocked blocked;
    while (!text.empty()) {
      const ssize_t wrote = ::write(fd_, text.data(), text.size());
      if (wrote < 0 && errno != EINTR) throw_errno("write", path_, errno);
      if (wrote > 0) text.remove_prefix(static_cast<std::size_t>(wrote));
    }
  }

 private:
  const std::string path_;
  const int fd_;
};

}  // namespace

void append_line(const std::filesystem::path& file, const std::string& text) {
  const OpenText open(file, O_RDWR | O_APPEND);
  open.write((open.ends_within_a_line() ? "\n" : "") + text + "\n");
}

void replace_text(const std::filesystem::path& file, const std::string& text) {
  const std::filesystem::path fresh =
      file.native() + ".new";  // one name: a killed writer's is used again
  try {
    OpenText(fresh, O_WRONLY | O_TRUNC | O_NOFOLLOW).write(text);
    if (::rename(fresh.c_str(), file.c_str()) != 0) throw_errno("rename", file.native(), errno);
  } catch (...) {  // passed on
    ::unlink(fresh.c_str());
    throw;
  }
}

}  // namespace meshstage::detail
