#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "tests/support/fake_cuda/memory.hpp"

namespace meshstage::fake_cuda {

/// A kernel by its name, and what it does, done by the host.
struct Kernel {
  std::string name;
  std::size_t argument_bytes;  ///< Of the one struct that it is given.
  /// Does it; returns which rule was broken, or nothing. `random` orders what a grid does not.
  std::function<std::string(const Memory&, std::span<const std::byte> arguments,
                            const std::function<std::uint64_t()>& random)>
      run;
};

/// Null for a name that no twin has.
const Kernel* find_kernel(const char* name);

}  // namespace meshstage::fake_cuda
