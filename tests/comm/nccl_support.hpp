// Groups over the fake NCCL, whose ranks are threads that share the fake device.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/nccl/group.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/cuda.hpp"
#include "tests/support/fake_nccl/control.hpp"

namespace meshstage::test {

/// The fakes of the driver and of NCCL. One at a time; the destructor checks that no rule was
/// broken and no communicator is left.
class Nccl {
 public:
  explicit Nccl(std::uint64_t seed = 0);
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;
  ~Nccl();

  [[nodiscard]] static const fake_nccl::Control& fake();
  [[nodiscard]] Cuda& cuda() { return cuda_; }
  /// The transport of a rank on `fabric`.
  [[nodiscard]] static std::shared_ptr<Transport> transport(InProcessFabric& fabric, int rank,
                                                            StreamHandle trainer = kLegacyStream);
  [[nodiscard]] static std::vector<std::shared_ptr<ProcessGroup>> groups(InProcessFabric& fabric,
                                                                         int world);

 private:
  Cuda cuda_;
};

/// The memory of a tensor's storage, on the fake device.
std::span<std::byte> bytes_of(const Tensor& tensor);

/// A transport whose groups take host memory and copy it to and from the device.
std::shared_ptr<Transport> with_host_memory(std::shared_ptr<Transport> inner);

}  // namespace meshstage::test
