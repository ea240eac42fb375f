#include <meshstage/core/replicate/image_writer.hpp>

#include <algorithm>
#include <utility>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/hands.hpp>

namespace meshstage::replicate {

ImageWriter::ImageWriter(Engine& engine)
    : engine_(engine), crew_("mesh-copy", hands_for(engine.options, Beside::kNothing)) {}

void ImageWriter::copy_tensors(StageJob& job, const std::shared_ptr<DeviceEnds>& ends) {
  const auto devices = job.plan->issue(job.source, job.image, streams_, ends);
  std::vector<DeviceReady> copied;
  for (const auto& before : job.source.ready) {
    if (devices) copied.push_back({before.device, devices->staged(before.device)});
  }
  job.staged.devices()->set(std::move(copied));
  CopyOptions how{.pace = &engine_.pace,
                  .crew = &crew_,
                  .hands = hands_for(engine_.options, job.beside),
                  .digests = &job.blocks,
                  .devices = devices.get()};
  if (devices && !job.digests) {
    how.cpu_read = [this, &job] {
      job.staged.devices()->set_cpu_read();
      if (!job.snapshot) return;
      for (const auto& taken : job.source.ready) {
        taken.event.wait(Deadline::never(), [&job] { job.watermark.throw_if_failed(); });
        (void)DeviceRuntime::of(taken.device.type).kept();  // lets go of the trainer's storages
      }
      tell_staged(job);
    };
  }
  job.plan->copy(job.source, job.image, job.watermark, how);
}

void ImageWriter::tell_staged(StageJob& job) {
  engine_.gate.count([&](Stats& stats) { stats.stage_seconds = seconds_since(job.requested); });
  job.staged.set_value();
}

protocol::Event ImageWriter::write(StageJob& job, const ImageIdentity& identity) {
  std::shared_ptr<DeviceEnds> ends;
  try {
    ends = std::make_shared<DeviceEnds>();
    const auto& layout = job.plan->layout();
    const auto& before = job.lease.previous();
    if (!before || before->manifest_digest != layout.manifest_digest) {
      job.plan->write_manifest(job.image);
    }
    job.watermark.advance(layout.data_begin);
    copy_tensors(job, ends);
    if (job.digests) job.digests->check(job.source);
    job.source = {};  // lets go of the trainer's storages
    if (!job.snapshot || job.digests) tell_staged(job);
    const ImageInfo info = job.plan->seal(identity, job.image, job.watermark, job.blocks);
    auto event = sealed_event(job, info);
    job.lease.seal(info);
    return event;
  } catch (...) {  // this thread's boundary: the step fails, and the trainer is told by what
    const auto error = std::current_exception();
    job.watermark.fail(error);  // first: threads that send wait for it
    job.staged.set_error(error);
    // Where there are no ends, no device was asked for anything.
    StagingSource source = std::exchange(job.source, {});
    WriteLease lease = std::move(job.lease);
    if (ends) {
      ends->source = std::move(source);
      ends->lease = std::move(lease);
    }
    return protocol::OwnFailed{job.id, text_of(error)};
  }
}

protocol::OwnSealed ImageWriter::sealed_event(const StageJob& job, const ImageInfo& info) const {
  protocol::OwnSealed event{job.id, info.image_digest, {}, {}};
  if (info.loans == 0) return event;
  const auto loans = read_loans(job.image);
  const auto find = [](const std::vector<Loan>& list, int rank) {
    const auto it =
        std::find_if(list.begin(), list.end(), [&](const Loan& loan) { return loan.rank == rank; });
    return it == list.end() ? Digest{} : it->digest;
  };
  const auto& layout = job.plan->layout();
  for (const int rank : engine_.config->lenders[static_cast<std::size_t>(engine_.rank)]) {
    protocol::Borrow borrow{job.id, 0, find(loans.borrowed, rank)};
    for (const auto& part : layout.borrowed) {
      if (part.rank != rank) continue;
      for (const auto i : part.segments) borrow.bytes += layout.segments[i].bytes;
    }
    event.borrowed.push_back(borrow);
  }
  for (const int rank : engine_.config->borrowers) {
    event.lent.push_back(find(loans.lent, rank));
  }
  return event;
}

}  // namespace meshstage::replicate
