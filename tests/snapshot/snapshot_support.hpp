// Snapshots on disk and in vaults, and the commands on them as a user has them.
#pragma once
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <meshstage/core/vault/vault.hpp>

#include "tests/support/states.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/command/command.hpp"
#include "tools/snapshot/commands.hpp"
#include "tools/snapshot/snapshot.hpp"

namespace meshstage::test {

struct Answer {
  int code = 0;
  std::string out, err;
  [[nodiscard]] nlohmann::json json() const { return nlohmann::json::parse(out); }
};

/// `meshstage ARGUMENTS...`, in this process.
inline Answer run(std::vector<std::string> arguments, tools::Confirm confirm = {}) {
  std::ostringstream out, err;
  CLI::App app{"meshstage", "meshstage"};
  app.require_subcommand(1);
  tools::add_snapshot_commands(app, out, std::move(confirm));
  const int code = tools::run_command(app, std::move(arguments), out, err);
  return {code, out.str(), err.str()};
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

/// A small state with everything in it: sharing, strides, scalars, attributes, one list held twice.
inline Dict small_state(float bias = 0.5F) {
  const auto w = Tensor::arange<float>(6).view({2, 3});
  const List both{1, "two"};
  return {{"model",
           Dict{{"w", w}, {"head", w.transpose(0, 1)}, {"bias", Tensor::full<float>({2}, bias)}}},
          {"scaled", Value(Tensor::full<std::uint8_t>({4}, std::uint8_t{7}),
                           Dict{{"scale", Tensor::scalar(2.0F)}})},
          {"lr", 0.1},
          {"first", both},
          {"second", both}};
}

inline TestImage image_of(const Value& state, const std::string& job, int rank, ImageId id,
                          ImageId base = kNoImage) {
  auto image = make_image(state);
  Watermark progress;
  image.plan.write_manifest(image.bytes());
  image.plan.copy(state, image.bytes(), progress);
  image.info = image.plan.seal({job, rank, 4, id, base}, image.bytes(), progress);
  return image;
}

/// Seals bytes of an image, or in a held slot of its replica.
inline void put(Vault& vault, SlotKey key, const ImageInfo& info,
                std::span<const std::byte> bytes) {
  auto lease = vault.begin_write(key, info.identity, bytes.size());
  std::copy(bytes.begin(), bytes.end(), lease.image().begin());
  lease.seal(info);
}
inline void put(Vault& vault, SlotKey key, const TestImage& image) {
  put(vault, key, image.info, image.bytes());
}

}  // namespace meshstage::test
