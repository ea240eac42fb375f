#include <meshstage/core/replicate/job_notes.hpp>

#include <charconv>
#include <optional>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {
namespace {

std::string complete_key(const std::string& job) { return job + "/complete/first"; }
std::string finished_key(const std::string& job) { return job + "/finished"; }

[[noreturn]] void throw_strange(const std::string& key, const std::string& text) {
  throw make_error<CorruptData>("the Store's entry " + key + " reads \"" + text + "\"");
}

ImageId parse_complete(const std::string& key, const std::string& text) {
  ImageId id;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, id.generation);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == ' ') {
    const auto second = std::from_chars(first.ptr + 1, end, id.step);
    if (second.ec == std::errc() && second.ptr == end) return id;
  }
  throw_strange(key, text);
}

std::uint64_t read_finished(Store& store, const std::string& job, Deadline deadline) {
  const auto text = store.get(finished_key(job), deadline);
  if (!text) return 0;
  std::uint64_t generation = 0;
  const char* end = text->data() + text->size();
  const auto read = std::from_chars(text->data(), end, generation);
  if (read.ec != std::errc() || read.ptr != end) throw_strange(finished_key(job), *text);
  return generation;
}

}  // namespace

JobNotes read_notes(Store& store, const std::string& job, Deadline deadline) {
  JobNotes notes;
  const std::string key = complete_key(job);
  if (const auto text = store.get(key, deadline)) notes.complete = parse_complete(key, *text);
  notes.finished = read_finished(store, job, deadline);
  if (notes.complete.generation <= notes.finished) notes.complete = kNoImage;
  return notes;
}

void note_complete(Store& store, const std::string& job, ImageId id, Deadline deadline) {
  const std::string key = complete_key(job);
  const std::string text = std::to_string(id.generation) + " " + std::to_string(id.step);
  const std::string there = store.compare_and_create(key, text, deadline);
  // A note of a job that has finished tells nobody anything.
  if (there != text &&
      parse_complete(key, there).generation <= read_finished(store, job, deadline)) {
    store.set(key, text, deadline);
  }
}

void note_finished(Store& store, const std::string& job, std::uint64_t generation,
                   Deadline deadline) {
  if (!claim_the_end(store, job, generation, deadline)) return;
  store.set(finished_key(job), std::to_string(generation), deadline);
}

}  // namespace meshstage::replicate
