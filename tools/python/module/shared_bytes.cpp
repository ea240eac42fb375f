#include "shared_bytes.hpp"

#include <fcntl.h>
#include <nanobind/stl/string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>

#include "dlpack_capsule.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// A whole file of shared memory, mapped. It outlives the file's name and its maker.
class MappedFile {
 public:
  MappedFile(int descriptor, const std::string& file, std::size_t nbytes) : nbytes_(nbytes) {
    data_ = ::mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (data_ == MAP_FAILED) throw_errno("mmap", file, errno);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { ::munmap(data_, nbytes_); }
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }

 private:
  void* data_;
  std::size_t nbytes_;
};

/// Closes a file descriptor.
struct Descriptor {
  int number;
  explicit Descriptor(int n) : number(n) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number); }
};

/// The mapping of the file that has this name now: one for each file and process, as long as
/// somebody uses it. A name like /proc/4711/fd/9 may be another file's later, so files are known by
/// their device and inode.
std::shared_ptr<MappedFile> map_file(const std::string& file) {
  static Mutex mutex;
  static std::map<std::pair<dev_t, ino_t>, std::weak_ptr<MappedFile>> known MESHSTAGE_GUARDED_BY(
      mutex);
  const int number = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  if (number < 0) throw_errno("open", file, errno);
  const Descriptor descriptor(number);
  struct stat status{};
  if (::fstat(number, &status) != 0) throw_errno("fstat", file, errno);
  const MutexLock lock(mutex);
  auto& slot = known[{status.st_dev, status.st_ino}];
  auto mapped = slot.lock();
  if (!mapped) {
    std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
    mapped = std::make_shared<MappedFile>(number, file, static_cast<std::size_t>(status.st_size));
    known[{status.st_dev, status.st_ino}] = mapped;
  }
  return mapped;
}

nb::object map_shared(const std::string& file, std::uint64_t offset, std::uint64_t nbytes) {
  auto mapped = map_file(file);
  if (offset > mapped->nbytes() || mapped->nbytes() - offset < nbytes) {
    throw CorruptData(file + " has " + std::to_string(mapped->nbytes()) + " bytes, too few for " +
                      std::to_string(nbytes) + " bytes at " + std::to_string(offset));
  }
  std::byte* const at = mapped->data() + offset;
  const Storage storage = Storage::wrap(at, nbytes, std::move(mapped), {.shared = true});
  return dlpack_capsule(
      Tensor::on_storage(storage, DType::kU8, {static_cast<std::int64_t>(nbytes)}));
}

}  // namespace

void bind_shared_bytes(nb::module_& module) {
  module.def("map_shared", &map_shared, nb::arg("file"), nb::arg("offset"), nb::arg("nbytes"),
             "Bytes of another process' shared memory, as a DLPack capsule. The mapping outlives "
             "that process.");
}

}  // namespace meshstage::python
