// One suite for every FileSystem: the real one, the one in memory, and the decorator that does
// nothing.
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"
#include "tests/support/temp_directory.hpp"

using meshstage::File;
using meshstage::FileSystem;
using meshstage::MapAccess;
using meshstage::MemoryFileSystem;
using meshstage::OpenMode;
using meshstage::SystemError;

namespace {

std::span<const std::byte> as_bytes(const std::string& s) { return std::as_bytes(std::span(s)); }

std::string contents(FileSystem& fs, const std::filesystem::path& path) {
  return meshstage::read_text(fs, path).value_or("(none)");
}

void create(FileSystem& fs, const std::filesystem::path& path, const std::string& text) {
  meshstage::write_fully(*fs.open(path, OpenMode::kCreateExclusive), as_bytes(text), 0);
}

int error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const SystemError& e) {
    return e.error_number();
  }
  return 0;
}

void for_each_file_system(
    const std::function<void(FileSystem&, const std::filesystem::path&)>& check) {
  SECTION("real") {
    const TempDirectory directory;
    check(meshstage::real_file_system(), directory.path());
  }
  SECTION("memory") {
    MemoryFileSystem fs;
    fs.make_directories("/d");
    check(fs, "/d");
  }
  SECTION("decorated") {
    MemoryFileSystem inner;
    meshstage::FaultyFileSystem fs(inner);
    fs.make_directories("/d");
    check(fs, "/d");
  }
}

/// Runs `f` in a forked child and returns what it returned (0 to 255).
int in_child(const std::function<int()>& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 255;
    try {
      result = f();
    } catch (...) {
    }
    ::_exit(result);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("file systems: files are created once, written and read at offsets") {
  for_each_file_system([](FileSystem& fs, const std::filesystem::path& d) {
    REQUIRE(error_of([&] { (void)fs.open(d / "a", OpenMode::kRead); }) == ENOENT);
    REQUIRE(error_of([&] { (void)fs.open(d / "none" / "a", OpenMode::kCreateExclusive); }) ==
            ENOENT);
    create(fs, d / "a", "staged");
    REQUIRE(error_of([&] { (void)fs.open(d / "a", OpenMode::kCreateExclusive); }) == EEXIST);
    const auto file = fs.open(d / "a", OpenMode::kReadWrite);
    meshstage::write_fully(*file, as_bytes("!"), 8);
    std::string read(20, '?');
    REQUIRE(file->read_at(std::as_writable_bytes(std::span(read)), 4) == 5);
    REQUIRE(read.substr(0, 5) == std::string("ed\0\0!", 5));
    REQUIRE(file->read_at(std::as_writable_bytes(std::span(read)), 9) == 0);
    REQUIRE(file->stat().size == 9);
    file->truncate(3);
    file->truncate(5);
    file->sync();
    REQUIRE(contents(fs, d / "a") == std::string("sta\0\0", 5));
    const auto stat = fs.stat(d / "a");
    REQUIRE(stat->size == 5);
    REQUIRE(stat->mode == 0600);
    REQUIRE(stat->inode == file->stat().inode);
    REQUIRE(stat->uid == fs.process().uid);
    REQUIRE(fs.stat(d)->is_directory);
    REQUIRE_FALSE(fs.stat(d / "none"));
    const auto reader = fs.open(d / "a", OpenMode::kRead);
    REQUIRE(error_of([&] { (void)reader->write_at(as_bytes("x"), 0); }) == EBADF);
  });
}

TEST_CASE("file systems: huge pages change neither a file's size nor its bytes") {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;
  const auto check = [](FileSystem& fs, const std::filesystem::path& d) {
    create(fs, d / "a", "seven");
    const auto file = fs.open(d / "a", OpenMode::kReadWrite);
    for (const auto& [from, to] :
         {std::pair{5 * kMiB, 7 * kMiB},  // no whole 2 MiB
          std::pair{std::uint64_t{5}, 9 * kMiB}, std::pair{std::uint64_t{0}, 4 * kMiB}}) {
      static_cast<void>(file->reserve_huge(from, to));
      REQUIRE(file->stat().size == 5);
    }
    file->reserve(8 * kMiB);
    REQUIRE(file->stat().size == 8 * kMiB);
    std::vector<std::byte> bytes(8 * kMiB);
    REQUIRE(file->read_at(bytes, 0) == bytes.size());
    REQUIRE(std::memcmp(bytes.data(), "seven", 5) == 0);
    REQUIRE(
        std::all_of(bytes.begin() + 5, bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
  };
  for_each_file_system(check);
  SECTION("shared memory") {
    const TempDirectory directory("/dev/shm");
    check(meshstage::real_file_system(), directory.path());
  }
}

TEST_CASE("what the processor can use huge pages for begins at one, and is mapped once") {
  constexpr std::uint64_t kHuge = std::uint64_t{2} << 20U;
  const TempDirectory directory("/dev/shm");
  const auto file =
      meshstage::real_file_system().open(directory.path() / "a", OpenMode::kCreateExclusive);
  file->reserve(kHuge + 4097);
  for (const std::uint64_t length : {kHuge, kHuge + 4096, kHuge + 4097}) {
    const auto one = file->map(length, MapAccess::kReadWrite);
    const auto other = file->map(length, MapAccess::kReadWrite);
    REQUIRE(one->bytes().size() == length);
    REQUIRE(reinterpret_cast<std::uintptr_t>(one->bytes().data()) % kHuge == 0);
    one->bytes().back() = std::byte{7};
    REQUIRE(other->bytes().back() == std::byte{7});
    one->bytes().back() = std::byte{0};
  }
}

TEST_CASE("file systems: names are linked once, renamed over, removed and listed") {
  for_each_file_system([](FileSystem& fs, const std::filesystem::path& d) {
    create(fs, d / "a", "one");
    create(fs, d / "b", "two");
    REQUIRE(error_of([&] { fs.link(d / "a", d / "b"); }) == EEXIST);
    fs.link(d / "a", d / "c");
    REQUIRE(fs.stat(d / "c")->links == 2);
    REQUIRE(fs.list(d) == std::vector<std::string>{"a", "b", "c"});
    fs.rename(d / "a", d / "b");
    REQUIRE(contents(fs, d / "b") == "one");
    REQUIRE(fs.unlink(d / "c"));
    REQUIRE_FALSE(fs.unlink(d / "c"));
    REQUIRE(fs.stat(d / "b")->links == 1);
    fs.sync_directory(d);
    fs.make_directories(d / "x" / "y");
    fs.make_directories(d / "x" / "y");
    REQUIRE(fs.stat(d / "x")->mode == 0700);
    REQUIRE(fs.list(d) == std::vector<std::string>{"b", "x"});
    REQUIRE(error_of([&] { (void)fs.list(d / "none"); }) == ENOENT);
    REQUIRE(error_of([&] { fs.make_directories(d / "b" / "z"); }) != 0);
    REQUIRE(error_of([&] { fs.rename(d / "none", d / "b"); }) == ENOENT);
  });
}

TEST_CASE(
    "file systems: mappings share the file's bytes, outlive file and name, and survive growth") {
  for_each_file_system([](FileSystem& fs, const std::filesystem::path& d) {
    auto file = fs.open(d / "a", OpenMode::kCreateExclusive);
    file->reserve(4096);
    REQUIRE(file->stat().size == 4096);
    auto small = file->map(4096, MapAccess::kReadWrite);
    small->bytes()[7] = std::byte{7};
    file->reserve(3 * 4096);
    file->reserve(4096);
    REQUIRE(file->stat().size == 3 * 4096);
    const auto large = file->map(3 * 4096, MapAccess::kRead);
    REQUIRE(large->bytes().size() == 3 * 4096);
    REQUIRE(large->bytes()[7] == std::byte{7});
    small->bytes()[8] = std::byte{8};
    REQUIRE(large->bytes()[8] == std::byte{8});
    std::byte read{};
    (void)file->read_at(std::span(&read, 1), 8);
    REQUIRE(read == std::byte{8});
    REQUIRE(error_of([&] { (void)file->map(0, MapAccess::kRead); }) == EINVAL);
    file.reset();
    small.reset();
    REQUIRE(fs.unlink(d / "a"));
    REQUIRE(large->bytes()[8] == std::byte{8});
    REQUIRE(fs.free_space(d).available <= fs.free_space(d).total);
    REQUIRE(fs.free_space(d).total > 0);
  });
}

TEST_CASE("a record lock excludes other processes, is seen by them, and ends with its holder") {
  const TempDirectory directory;
  const auto path = directory.path() / "lock";
  auto& fs = meshstage::real_file_system();
  auto file = fs.open(path, OpenMode::kCreateExclusive);
  REQUIRE(file->try_lock());
  REQUIRE(file->try_lock());
  REQUIRE_FALSE(file->lock_holder());
  const auto other = [&] {
    const auto mine = fs.open(path, OpenMode::kReadWrite);
    const auto holder = mine->lock_holder();
    if (mine->try_lock()) return holder ? 254 : 1;
    return holder == ::getppid() ? 2 : 3;
  };
  REQUIRE(in_child(other) == 2);
  // The child does not inherit it, and its closing our descriptor takes nothing away.
  REQUIRE(in_child([&] {
            file.reset();
            return 0;
          }) == 0);
  REQUIRE(in_child(other) == 2);
  file.reset();
  REQUIRE(in_child(other) == 1);
}

TEST_CASE("in memory too a record lock excludes other processes and is lost at any close") {
  MemoryFileSystem mine;
  const auto theirs = mine.as_process(77);
  auto file = mine.open("/lock", OpenMode::kCreateExclusive);
  REQUIRE(file->try_lock());
  const auto other = theirs->open("/lock", OpenMode::kReadWrite);
  REQUIRE_FALSE(other->try_lock());
  REQUIRE(other->lock_holder() == mine.process().pid);
  theirs->open("/lock", OpenMode::kRead).reset();
  REQUIRE_FALSE(other->try_lock());
  mine.open("/lock", OpenMode::kRead).reset();  // the trap of POSIX
  REQUIRE(other->try_lock());
  REQUIRE(file->lock_holder() == 77);
}

TEST_CASE(
    "the real file system opens nothing through a planted link for writing, nothing inheritable") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  create(fs, directory.path() / "a", "x");
  REQUIRE(::symlink("a", (directory.path() / "planted").c_str()) == 0);
  REQUIRE(error_of([&] { (void)fs.open(directory.path() / "planted", OpenMode::kReadWrite); }) ==
          ELOOP);
  REQUIRE(error_of([&] {
            (void)fs.open(directory.path() / "planted", OpenMode::kCreateExclusive);
          }) == EEXIST);
  REQUIRE(contents(fs, directory.path() / "planted") == "x");
  const auto file = fs.open(directory.path() / "a", OpenMode::kRead);
  const auto inode = file->stat().inode;
  bool found = false;
  for (int fd = 3; fd < 64; ++fd) {
    struct stat s{};
    if (::fstat(fd, &s) != 0 || s.st_ino != inode) continue;
    found = true;
    REQUIRE((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  }
  REQUIRE(found);
}

TEST_CASE("memory files: capacity and size limits are those of a small disk") {
  MemoryFileSystem fs({.capacity = 8192, .max_file_bytes = 1U << 20U});
  const auto a = fs.open("/a", OpenMode::kCreateExclusive);
  a->reserve(4096);
  const auto b = fs.open("/b", OpenMode::kCreateExclusive);
  REQUIRE(error_of([&] { b->reserve(4097); }) == ENOSPC);
  REQUIRE(b->stat().size == 0);
  b->reserve(4096);
  REQUIRE(error_of([&] { (void)a->write_at(as_bytes("x"), 4096); }) == ENOSPC);
  REQUIRE(error_of([&] { a->truncate((1U << 20U) + 1); }) == EFBIG);
  REQUIRE(fs.free_space("/").available == 0);
  REQUIRE(fs.unlink("/b"));
  REQUIRE(fs.used() == 8192);  // still open
  a->truncate(0);
  REQUIRE(fs.used() == 4096);
  REQUIRE(fs.free_space("/").available == 4096);
}

TEST_CASE("power loss keeps what was synced: contents by file, names by directory") {
  MemoryFileSystem fs;
  fs.make_directories("/d");
  const auto write = [&](const char* name, const std::string& text) {
    create(fs, name, text);
    return fs.open(name, OpenMode::kReadWrite);
  };
  auto kept = write("/d/kept", "kept");
  kept->sync();
  write("/d/unsynced", "lost bytes");
  fs.sync_directory("/d");
  write("/d/unnamed", "x")->sync();
  meshstage::write_fully(*kept, as_bytes("KEPT+"), 0);
  fs.rename("/d/kept", "/d/renamed");
  REQUIRE(kept->try_lock());
  fs.lose_power();
  REQUIRE(fs.list("/d") == std::vector<std::string>{"kept", "unsynced"});
  REQUIRE(contents(fs, "/d/kept") == "kept");
  REQUIRE(contents(fs, "/d/unsynced").empty());
  REQUIRE(fs.as_process(9)->open("/d/kept", OpenMode::kReadWrite)->try_lock());
}

TEST_CASE("faults hit the call they were meant for, once, and short writes are completed") {
  MemoryFileSystem inner;
  meshstage::FaultyFileSystem fs(inner);
  fs.fail(meshstage::FileOperation::kOpen, 2, EMFILE);
  auto file = fs.open("/a", OpenMode::kCreateExclusive);
  REQUIRE(fs.stat("/a"));
  REQUIRE_FALSE(fs.fired());
  REQUIRE(error_of([&] { (void)fs.open("/a", OpenMode::kRead); }) == EMFILE);
  REQUIRE(fs.fired() == meshstage::FileOperation::kOpen);
  REQUIRE(fs.open("/a", OpenMode::kRead));
  REQUIRE(fs.calls(meshstage::FileOperation::kOpen) == 3);

  fs.shorten_writes(2);
  const std::uint64_t before = fs.calls(meshstage::FileOperation::kWriteAt);
  meshstage::write_fully(*file, as_bytes("12345"), 0);
  REQUIRE(fs.calls(meshstage::FileOperation::kWriteAt) == before + 3);
  REQUIRE(contents(fs, "/a") == "12345");

  fs.fail_any(2, EIO);
  file->sync();
  REQUIRE(error_of([&] { file->truncate(0); }) == EIO);
  REQUIRE(file->stat().size == 5);
  fs.fail_from(2, ENOSPC);
  file->sync();
  REQUIRE(error_of([&] { file->sync(); }) == ENOSPC);
  REQUIRE(error_of([&] { (void)fs.list("/"); }) == ENOSPC);
  fs.clear_faults();
  REQUIRE(fs.list("/") == std::vector<std::string>{"a"});
}

TEST_CASE("a file of a process that ends while it is read is one that does not exist") {
  MemoryFileSystem inner;
  create(inner, "/stat", "4711 (ms-loop) S 1");
  meshstage::FaultyFileSystem fs(inner);
  fs.fail(meshstage::FileOperation::kReadAt, 2, ESRCH);  // as /proc says it
  REQUIRE_FALSE(meshstage::read_text(fs, "/stat"));
  fs.fail(meshstage::FileOperation::kReadAt, 1, EIO);
  REQUIRE(error_of([&] { (void)meshstage::read_text(fs, "/stat"); }) == EIO);
  REQUIRE(contents(fs, "/stat") == "4711 (ms-loop) S 1");
}

TEST_CASE("a system error says call, path and errno") {
  try {
    (void)meshstage::real_file_system().open("/no such directory/x", OpenMode::kRead);
    FAIL("opened");
  } catch (const SystemError& e) {
    REQUIRE(std::string(e.what()) ==
            "i/o error: open /no such directory/x: No such file or directory (errno 2)");
    REQUIRE(e.path() == "/no such directory/x");
    REQUIRE(e.kind() == meshstage::ErrorKind::kIo);
  }
}

TEST_CASE("what is no regular file is refused, and never waited for") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const auto pipe = directory.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  create(fs, directory.path() / "file", "text");
  std::filesystem::create_symlink(directory.path() / "file", directory.path() / "link");
  for (const auto mode : {OpenMode::kRead, OpenMode::kReadUnlinked, OpenMode::kReadWrite}) {
    REQUIRE(error_of([&] { (void)fs.open(pipe, mode); }) == ENXIO);
    REQUIRE(error_of([&] { (void)fs.open(directory.path(), mode); }) == EISDIR);
    const int link = error_of([&] { (void)fs.open(directory.path() / "link", mode); });
    REQUIRE(link == (mode == OpenMode::kRead ? 0 : ELOOP));
  }
  REQUIRE(error_of([&] { (void)fs.open("/dev/zero", OpenMode::kRead); }) == ENXIO);
}

TEST_CASE("directories are made 0700, whatever the umask") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  for (const mode_t mask : {0000, 0002, 0777}) {
    const auto made = directory.path() / std::to_string(mask) / "deep";
    const mode_t before = ::umask(mask);
    fs.make_directories(made);
    ::umask(before);
    REQUIRE(fs.stat(made)->mode == 0700);
    REQUIRE(fs.stat(made.parent_path())->mode == 0700);
  }
}

TEST_CASE("a limit on the size of files is an error, and ends no process") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const auto file = fs.open(directory.path() / "a", OpenMode::kCreateExclusive);
  REQUIRE(meshstage::test::ends_in_forked_child([&] {
    const rlimit small{4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &small) != 0) ::_exit(2);
    const std::vector<std::byte> bytes(8192);
    if (error_of([&] { meshstage::write_fully(*file, bytes, 0); }) != EFBIG) ::_exit(3);
    if (error_of([&] { file->truncate(8192); }) != EFBIG) ::_exit(4);
    if (error_of([&] { file->reserve(8192); }) != EFBIG) ::_exit(5);
    sigset_t pending;
    ::sigpending(&pending);
    if (::sigismember(&pending, SIGXFSZ) != 0) ::_exit(6);
  }));
}
