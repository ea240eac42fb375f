#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/comm/nccl/module_table_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/module_file.hpp>

namespace meshstage {

const nccl_module::Table& nccl_module_table(const std::filesystem::path& path) {
  const detail::ModuleFile nccl{
      .library = "NCCL",
      .file = "libmeshstage_nccl.so",
      .table_symbol = nccl_module::kTableSymbol,
      .abi = nccl_module::kNcclModuleAbi,
      .remedy = "MESHSTAGE_NCCL=ON (headers of CUDA and NCCL; Debian: libnccl-dev)"};
  return *static_cast<const nccl_module::Table*>(detail::open_module(nccl, path));
}

NcclSupport nccl_support(const std::filesystem::path& path) {
  NcclSupport support;
  try {
    const auto& table = nccl_module_table(path);
    support.module = table.version;
    nccl_module::Probe probe{};
    table.probe(&probe);
    if (probe.version != 0) support.library = nccl_module::version_text(probe.version);
    support.path = probe.path;
    support.problem = probe.problem;
  } catch (const Error& e) {
    support.problem = e.what();
  }
  return support;
}

}  // namespace meshstage
