#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

void Store::check_key(const std::string& key) {
  constexpr std::size_t kMaxKey = 1024;
  if (!key.empty() && key.size() <= kMaxKey && key.find('\0') == std::string::npos) return;
  throw InvalidArgument("a store key has 1 to 1024 bytes and no zero byte; this one has " +
                        std::to_string(key.size()) + ": \"" + key.substr(0, 64) + "\"");
}

std::shared_ptr<Store> open_store(const std::string& address) {
  constexpr std::string_view kFile = "file:";
  std::string path = address;
  if (path.starts_with(kFile)) path.erase(0, kFile.size());
  if (path.starts_with('/')) return std::make_shared<FileStore>(path);
  throw InvalidArgument("\"" + address +
                        "\" names no store; supported: file:/path, or /path alone (a folder that "
                        "every rank sees)");
}

}  // namespace meshstage
