#include <cstring>

#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

#include "tools/bench/bench.hpp"
#include "tools/drill/workspace.hpp"

namespace meshstage::tools::bench {

Result bench_persist(const Options& options, const Progress& progress) {
  const auto state = make_workload(options.workload, options.scale);
  Changes changes(state, options.changed);
  Result result;
  result.what = "persist";
  result.workload = options.workload;
  result.bytes = changes.state_bytes();
  const drill::Workspace workspace(options.directory);
  auto& fs = real_file_system();
  const auto plan = StagingPlan::compile(state);
  const auto image = Storage::allocate(plan.layout().image_bytes);
  Samples staged;
  const auto stage = [&](std::uint64_t step) {
    changes.step();
    Watermark progress_of_copy;
    auto digests = plan.block_digests();
    staged.add(seconds_of([&] {
      plan.write_manifest(image.bytes());
      plan.copy(*plan.capture(state), image.bytes(), progress_of_copy, {.digests = &digests});
      static_cast<void>(
          plan.seal({"bench", 0, 1, {1, step}, {}}, image.bytes(), progress_of_copy, digests));
    }));
  };
  const auto publish = [&] {
    publish_atomically(fs, workspace.path() / "image.safetensors",
                       std::span<const std::byte>(image.bytes()));
  };
  const auto plain = [&] {
    const auto path = workspace.path() / "plain";
    fs.unlink(path);
    const auto file = fs.open(path, OpenMode::kCreateExclusive);
    write_fully(*file, image.bytes(), 0);
    file->sync();
  };
  progress("the first time");
  stage(1);
  result.first_seconds = seconds_of(publish);
  for (int i = 0; i < options.repeat; ++i) {
    progress("round " + std::to_string(i + 1) + " of " + std::to_string(options.repeat));
    stage(static_cast<std::uint64_t>(i) + 2);
    result.times.add(seconds_of(publish));
    result.limit.add(seconds_of(plain));
  }
  result.parts["copy and digest"] = staged.median();
  return result;
}

}  // namespace meshstage::tools::bench
