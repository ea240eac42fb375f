#pragma once

// What the process of a test has open, as the kernel lists it: its threads and descriptors.

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <initializer_list>
#include <iterator>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

namespace meshstage::testing {

/// Threads of this process. ThreadSanitizer starts one of its own with the first of the program:
/// it is there from the first call on.
inline int count_threads() {
  static std::once_flag first;
  std::call_once(first, [] {
    std::filesystem::path task = "/proc/self/task";
    std::thread([&task] { task /= std::to_string(::gettid()); }).join();
    while (std::filesystem::exists(task)) std::this_thread::yield();  // it shows a moment longer
  });
  return static_cast<int>(
      std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}));
}

/// Descriptors of this process, the one that looks included.
inline int count_descriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

/// Those that are links to what begins with one of `kinds`.
inline int count_descriptors_of(std::initializer_list<std::string_view> kinds) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    for (const auto kind : kinds) count += target.starts_with(kind) ? 1 : 0;
  }
  return count;
}

/// Sockets, epoll and event descriptors.
inline int count_network_descriptors() { return count_descriptors_of({"socket:", "anon_inode:"}); }
/// Sockets alone.
inline int count_sockets() { return count_descriptors_of({"socket:"}); }

/// A thread that was joined, or a socket that was closed, may show in /proc a moment longer: looks
/// until `count()` is `expected`, for `limit` at most; returns what it saw last.
template <class Count>
auto settle(Count count, decltype(count()) expected,
            std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  auto seen = count();
  while (!(seen == expected) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    seen = count();
  }
  return seen;
}

}  // namespace meshstage::testing
