#include "tools/trainer/training.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/os/file_system.hpp>

namespace trainer {
namespace ms = meshstage;
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The names of the threads that stay, ascending. One that was joined is among the tasks until the
// kernel has taken it down. The helpers `ms-conn1`, ... serve one transfer and end with it; a
// replica may still be sent when recover() returns.
std::vector<std::string> threads() {
  constexpr unsigned kEnding = 0x4;  // PF_EXITING, among the flags of proc(5)'s stat
  std::vector<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const std::string stat =
        ms::read_text(ms::real_file_system(), task.path() / "stat").value_or("");
    const auto name_begin = stat.find('(');
    const auto name_end = stat.rfind(')');  // a name may hold spaces
    if (name_begin == std::string::npos || name_end == std::string::npos) continue;
    std::string name = stat.substr(name_begin + 1, name_end - name_begin - 1);
    if (name.starts_with("ms-conn")) continue;
    std::istringstream fields(stat.substr(name_end + 1));
    std::string state;
    long parent = 0, group = 0, session = 0, terminal = 0, foreground = 0;
    unsigned flags = 0;
    fields >> state >> parent >> group >> session >> terminal >> foreground >> flags;
    if ((flags & kEnding) == 0) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

// Open descriptors, but for files and directories: slots are opened when they are first used, and a
// step may be on its way to disk.
std::uint64_t count_descriptors() {
  using Type = std::filesystem::file_type;
  std::uint64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code closed_meanwhile;
    const Type type = std::filesystem::status(entry.path(), closed_meanwhile).type();
    const bool file = type == Type::regular || type == Type::directory;
    if (!file && type != Type::not_found && type != Type::none) ++count;
  }
  return count;
}

ModelSize size_for(const Text& text) {
  ModelSize size;
  size.vocabulary = text.vocabulary();
  return size;
}

}  // namespace

Training::Training(TrainingOptions options)
    : options_(std::move(options)),
      report_(options_.report),
      faults_(options_.faults, report_, options_.faults_until),
      text_(Text::read(options_.text, 64)),
      model_(size_for(text_)) {
  gradient_ = ms::Tensor::full<float>({static_cast<std::int64_t>(model_.elements()) + 1}, 0);
  auto rest = gradient_.span<float>();
  for (const auto& spec : model_.parameters()) {
    gradients_.push_back(rest.first(spec.elements));
    rest = rest.subspan(spec.elements);
  }
  positions_.resize(options_.batch);
  if (options_.collectives == ms::tools::Collectives::kNccl) {
    options_.checkpoint.device_group = options_.device;
  }
  options_.checkpoint.observer = [this](const ms::PointEvent& event) { faults_.passed(event); };
}

Training::~Training() = default;

void Training::run() {
  for (;;) {
    try {
      if (!generation_) join();
      if (!state_) {
        start_anew();
        report_.send(Line("state").add("bytes", state_->bytes()));
      }
      recover();
      train();
      if (!options_.save.empty()) state_->save(options_.save);
      report_.send(Line("trained-all").add("step", state_->step));
      checkpointer_->finish();
      report_.send(Line("finished").add("step", state_->step));
      return;
    } catch (const ms::RejoinNeeded& e) {
      peer_is_lost(e);
    }
  }
}

// Forms a generation: the first, or the next after a loss.
void Training::join() {
  groups_.reset();
  if (checkpointer_) {
    checkpointer_->rejoin();
  } else {
    checkpointer_.emplace(options_.checkpoint);
    if (!options_.mesh.empty()) {
      sharding_.emplace(options_.mesh, checkpointer_->rank(), checkpointer_->world_size());
    }
  }
  if (sharding_) {
    groups_.emplace(sharding_->mesh(), checkpointer_->group());
  }
  generation_ = true;
  report_.send(Line("joined")
                   .add("rank", checkpointer_->rank())
                   .add("generation", checkpointer_->generation()));
}

void Training::start_anew() {
  state_.emplace(model_, options_.steps, options_.seed, checkpointer_->rank(),
                 sharding_ ? &*sharding_ : nullptr, options_.device);
  if (!options_.load.empty()) state_->load(options_.load, options_.load_own);
}

void Training::recover() {
  const ms::Recovered recovered = checkpointer_->recover(state_->dict());
  state_->adopt();
  // NCCL makes threads and connections with a group's first collective; those are counted, too.
  if (options_.collectives == ms::tools::Collectives::kNccl) average_gradient();
  const std::string source{ms::to_string(recovered.source)};
  const auto names = threads();
  report_.send(Line("recovered")
                   .add("step", recovered.step)
                   .add("source", source)
                   .add("from", recovered.from_rank)
                   .add("generation", recovered.generation)
                   .add("old_world", recovered.old_world_size)
                   .add("threads", static_cast<std::uint64_t>(names.size()))
                   .add("thread_names", joined(names))
                   .add("descriptors", count_descriptors()));
  if (options_.quiet || (recovered.step == 0 && lost_at_ == Clock::time_point())) return;
  std::printf("rank %d: goes on from step %llu (%s) in %s\n", checkpointer_->rank(),
              static_cast<unsigned long long>(recovered.step), source.c_str(),
              ms::generation_text(recovered.generation).c_str());
  std::fflush(stdout);
}

void Training::peer_is_lost(const ms::Error& error) {
  lost_at_ = Clock::now();
  generation_ = false;
  last_ = {};
  settled_ = true;
  report_.send(Line("lost")
                   .add("rank", error.rank().value_or(-1))
                   .add("error", ms::to_string(error.kind()))
                   .add("why", error.what()));
  if (options_.quiet) return;
  const int rank = checkpointer_ ? checkpointer_->rank() : -1;
  std::printf("rank %d: %s; forming the next generation\n", rank, error.what());
  std::fflush(stdout);
}

void Training::train() {
  const std::uint64_t last = options_.until > 0 ? options_.until : options_.steps;
  while (state_->step < last) {
    const auto start = Clock::now();
    report_.send(Line("begin").add("step", state_->step + 1));
    faults_.begin_step(state_->step + 1);
    hold(state_->step + 1);
    train_step();
    const double taken = milliseconds_since(start);
    report_.send(Line("trained")
                     .add("step", state_->step)
                     .add("loss", double{state_->losses()[state_->step - 1]})
                     .add("ms", taken));
    const auto& out = options_.leave_out;
    const bool left_out = std::find(out.begin(), out.end(), state_->step) != out.end();
    if (options_.every > 0 && state_->step % options_.every == 0 && !left_out) stage();
    settle(false);
    say_step(taken);
  }
  settle(true);
}

void Training::hold(std::uint64_t step) {
  for (const auto& hold : options_.holds) {
    if (hold.step != step) continue;
    settle(true);
    report_.send(Line("held").add("step", step));
    for (std::array<float, 1> there{}; there[0] == 0;) {
      std::error_code ignored;
      there[0] = std::filesystem::exists(hold.file, ignored) || faults_.over() ? 1.0F : 0.0F;
      const auto group = checkpointer_->group();  // a call: the trainer works
      if (group->size() > 1) {
        ms::collectives::all_reduce(*group, std::span<float>(there),
                                    ms::collectives::ReduceOp::kMax);
      }
      if (there[0] == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
}

void Training::train_step() {
  state_->read_device();
  // Backward: only reads the parameters, so it may run while they are being staged.
  const std::size_t context = model_.size().context;
  for (auto& p : positions_) p = context + state_->draw() % (text_.size() - context);
  const auto gradient = gradient_.span<float>();
  std::fill(gradient.begin(), gradient.end(), 0.0F);
  const float own_loss = model_.loss_and_gradients(state_->constant_parameters(), text_.classes(),
                                                   positions_, gradients_);
  gradient.back() = own_loss;
  average_gradient();

  // What is staged changes from here on: in host memory at once, on a device when its turn comes.
  if (options_.device.is_cpu()) {
    last_.staged().wait();
  } else {
    last_.before_update(state_->trainer_stream());
  }
  const std::uint64_t step = state_->step + 1;
  for (std::size_t p = 0; p < gradients_.size(); ++p) {
    const auto [begin, elements] = state_->parts()[p];
    options_.optimizer.update(step, state_->parameters()[p].subspan(begin, elements),
                              gradients_[p].subspan(begin, elements), state_->exp_avg()[p],
                              state_->exp_avg_sq()[p]);
    if (sharding_)
      sharding_->gather(state_->parameter_tensors()[p], *groups_, ms::Deadline::never());
  }
  state_->losses()[step - 1] = gradient.back();
  state_->rank_losses()[step - 1] = own_loss;
  state_->step = step;
  state_->write_device();
}

void Training::average_gradient() {
  namespace collectives = ms::collectives;
  if (checkpointer_->world_size() == 1) return;
  if (options_.collectives == ms::tools::Collectives::kHost) {
    collectives::all_reduce(*checkpointer_->group(), gradient_.span<float>(),
                            collectives::ReduceOp::kAvg);
    return;
  }
  // A trainer that computes on its device has the gradient there.
  if (!reduced_on_) reduced_on_.emplace(options_.device);
  const ms::Tensor twin = reduced_on_->twin(gradient_);
  reduced_on_->put();
  collectives::all_reduce(*checkpointer_->device_group(), twin.storage().bytes(),
                          collectives::Element::kF32, collectives::ReduceOp::kAvg);
  reduced_on_->get();
}

void Training::stage() {
  settle(true);
  state_->publish();
  last_ = checkpointer_->stage(state_->dict(), state_->step);
  settled_ = false;
}

// Reports the outcome of the last staged step, once it is there.
void Training::settle(bool wait) {
  if (settled_ || (!wait && !last_.outcome().ready())) return;
  checkpointer_->wait(last_);
  const ms::Outcome outcome = last_.outcome().get();
  settled_ = true;
  const ms::Stats stats = checkpointer_->stats();
  report_.send(Line("staged")
                   .add("step", last_.step())
                   .add("outcome", ms::to_string(outcome))
                   .add("stage_ms", stats.stage_seconds * 1e3)
                   .add("replicate_ms", stats.replicate_seconds * 1e3)
                   .add("vault_bytes", stats.vault_bytes)
                   .add("replica_bytes_sent", stats.replica_bytes_sent)
                   .add("replica_bytes_borrowed", stats.replica_bytes_borrowed));
}

void Training::say_step(double milliseconds) {
  const std::uint64_t step = state_->step;
  if (options_.quiet || checkpointer_->rank() != 0) return;
  if (step % 10 != 0 && step != 1 && step != options_.steps) return;
  const ms::Stats stats = checkpointer_->stats();
  std::printf(
      "step %4llu/%llu  loss %.4f  %5.1f ms | %llu steps complete, stage %.1f ms, "
      "replicate %.1f ms\n",
      static_cast<unsigned long long>(step), static_cast<unsigned long long>(options_.steps),
      double{state_->losses()[step - 1]}, milliseconds,
      static_cast<unsigned long long>(stats.complete), stats.stage_seconds * 1e3,
      stats.replicate_seconds * 1e3);
  std::fflush(stdout);
}

}  // namespace trainer
