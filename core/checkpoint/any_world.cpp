#include <meshstage/core/checkpoint/any_world_impl.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/reshard/assembly_parts.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

namespace meshstage::detail {
namespace {

/// Three numbers of 64 bits: generation (0: no step), step, world size.
std::optional<OldWorldStep> agree(const std::optional<OldWorldStep>& of_root, ProcessGroup& group,
                                  Deadline deadline) {
  std::array<std::byte, 24> bytes{};
  if (group.rank() == 0 && of_root) {
    little_endian::store(bytes.data(), of_root->id.generation);
    little_endian::store(bytes.data() + 8, of_root->id.step);
    little_endian::store(bytes.data() + 16, static_cast<std::uint64_t>(of_root->world_size));
  }
  collectives::broadcast(group, bytes, 0, deadline);
  const ImageId id{little_endian::load<std::uint64_t>(bytes.data()),
                   little_endian::load<std::uint64_t>(bytes.data() + 8)};
  if (!id.exists()) return std::nullopt;
  return OldWorldStep{id, static_cast<int>(little_endian::load<std::uint64_t>(bytes.data() + 16))};
}

/// Reads what this rank's state needs of the old job's.
Assembly read(const OldFiles& files, const OldWorldStep& taken, const Value& state,
              const ProcessGroup& group) {
  replicate::FilesRead shown(&files.reads);
  shown(files.directory, 0, 0);
  const auto steps = list_steps_on_disk(files.fs, files.directory, files.job);
  const auto step = std::find_if(steps.begin(), steps.end(), [&](const StepOnDisk& s) {
    return s.id == taken.id && s.world_size == taken.world_size;
  });
  if (step == steps.end()) {
    throw NotFound(
        files.directory.string() + " has no file of some of the " +
        std::to_string(taken.world_size) + " ranks of " + to_string(taken.id) +
        ", but rank 0's has all; another number of ranks needs a directory that all ranks share");
  }
  StepStates old(files.fs, *step, files.job, files.warn, std::ref(shown));
  return AssemblyParts::read(old, state, group.rank(), group.size(), files.options);
}

/// What went wrong at a rank, for the others: kind, path and text. Empty: nothing.
std::vector<std::byte> report(ErrorKind kind, const std::string& path, const std::string& what) {
  std::vector<std::byte> bytes(5 + path.size() + what.size());
  bytes[0] = static_cast<std::byte>(kind);
  little_endian::store(bytes.data() + 1, static_cast<std::uint32_t>(path.size()));
  std::memcpy(bytes.data() + 5, path.data(), path.size());
  std::memcpy(bytes.data() + 5 + path.size(), what.data(), what.size());
  return bytes;
}

[[noreturn]] void rethrow(int rank, std::span<const std::byte> bytes, const OldWorldStep& taken) {
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const std::size_t path =
      bytes.size() < 5 ? 0 : little_endian::load<std::uint32_t>(bytes.data() + 1);
  if (bytes.size() < 5 + path) throw CorruptData("a rank's report is too short");
  throw_error(static_cast<ErrorKind>(bytes[0]),
              to_string(taken.id) + " of " + std::to_string(taken.world_size) +
                  " ranks cannot be taken over by rank " + std::to_string(rank) + ": " +
                  std::string(text + 5 + path, bytes.size() - 5 - path),
              rank, taken.id.step, std::string(text + 5, path));
}

}  // namespace

std::optional<TakenStep> plan_old_step(const OldFiles& files, const Value& state,
                                       const std::optional<OldWorldStep>& of_root,
                                       ProcessGroup& group, std::chrono::milliseconds length) {
  const Deadline arrival = Deadline::after(length);
  const auto step = agree(of_root, group, arrival);
  if (!step) return std::nullopt;
  collectives::barrier(group, arrival);  // a rank whose trainer does not come shows here
  std::vector<std::byte> wrong;
  const auto attempt = [&wrong](const auto& work) {
    if (!wrong.empty()) return;
    try {
      work();
    } catch (const Error& e) {
      wrong = report(e.kind(), e.path(), e.what());
    } catch (const std::exception& e) {  // no memory, or a user's node: the others wait for this
      wrong = report(ErrorKind::kInvalidState, {}, e.what());
    }
  };
  std::optional<Assembly> assembly;
  attempt([&] { assembly.emplace(read(files, *step, state, group)); });
  // No rank that reads is late. Who dies, or whose disk hangs, ends the generation and this wait.
  collectives::barrier(group, Deadline::never());
  attempt([&] { AssemblyParts::check(*assembly); });
  const auto reports = collectives::all_gather_bytes(group, wrong, Deadline::after(length));
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    if (!reports[rank].empty()) rethrow(static_cast<int>(rank), reports[rank], *step);
  }
  for (const auto& warning : assembly->warnings()) files.warn(warning);
  return TakenStep{*step, std::move(*assembly)};
}

}  // namespace meshstage::detail
