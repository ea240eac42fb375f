#include <span>
#include <sstream>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/replicate/agreement.hpp>

namespace meshstage::replicate {

std::shared_ptr<const protocol::Config> config_of(const CheckpointerOptions& options) {
  return protocol::make_config(options.environment->rank, options.environment->world_size,
                               options.holders, {}, options.borrowed.lenders, options.persist_every,
                               options.any_world.has_value());
}

std::vector<int> data_peers(const CheckpointerOptions& options) {
  return config_of(options)->data_peers;
}

bool keeps_old_in_memory(const CheckpointerOptions& options) {
  return options.any_world.has_value() && options.persist_every == 0 &&
         options.directory == default_directory(options.job).lexically_normal();
}

std::string agreement(const CheckpointerOptions& options) {
  const auto config = config_of(options);
  const auto digest = [](const std::vector<std::vector<int>>& lists) {
    std::string all;
    for (const auto& list : lists) {
      for (const int rank : list) all += std::to_string(rank) + ",";
      all += ";";
    }
    return digest64(std::as_bytes(std::span(all)));
  };
  std::ostringstream text;
  text << "blocks of " << options.block_bytes << " bytes, holders " << std::hex
       << digest(config->holders);
  if (!options.borrowed.lenders.empty()) text << ", lenders " << digest(config->lenders);
  if (options.any_world) text << ", any number of ranks";
  if (options.device_group) text << ", a device group over NCCL";
  return text.str();
}

}  // namespace meshstage::replicate
