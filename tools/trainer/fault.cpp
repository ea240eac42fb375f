#include "tools/trainer/fault.hpp"

#include <unistd.h>

#include <charconv>
#include <csignal>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace trainer {
namespace {

Line& add_point(Line& line, const meshstage::PointEvent& event) {
  line.add("point", event.name);
  if (event.chunks > 0) line.add("chunk", event.chunk).add("chunks", event.chunks);
  return line;
}

}  // namespace

Fault Fault::parse(std::string_view text) {
  const auto wrong = [&text] {
    return std::invalid_argument("'" + std::string(text) +
                                 "' is no fault: write kill@STEP, kill@STEP:POINT or stop@STEP");
  };
  const auto at = text.find('@');
  if (at == std::string_view::npos) throw wrong();
  Fault fault;
  const std::string_view how = text.substr(0, at);
  if (how != "kill" && how != "stop") throw wrong();
  fault.how = how == "kill" ? How::kKill : How::kStop;
  std::string_view rest = text.substr(at + 1);
  const auto* end = rest.data() + rest.size();
  const auto [after, error] = std::from_chars(rest.data(), end, fault.step);
  if (error != std::errc()) throw wrong();
  rest.remove_prefix(static_cast<std::size_t>(after - rest.data()));
  if (rest.empty() && fault.step == 0) throw wrong();  // there is no step 0 to begin
  if (!rest.empty()) {
    if (rest.front() != ':' || rest.size() == 1) throw wrong();
    fault.point = rest.substr(1);
    if (!meshstage::parse_point(fault.point)) {
      throw std::invalid_argument("'" + fault.point + "' is no protocol point");
    }
  }
  return fault;
}

Hold Hold::parse(std::string_view text) {
  Hold hold;
  const auto* end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, hold.step);
  if (error != std::errc() || hold.step == 0 || after == end || *after != ':' || after + 1 == end) {
    throw std::invalid_argument("'" + std::string(text) + "' is no hold; write STEP:FILE");
  }
  hold.file = std::string(after + 1, end);
  return hold;
}

Faults::Faults(std::vector<Fault> faults, const Report& report, std::filesystem::path until)
    : armed_(faults.size()), report_(report), until_(std::move(until)) {
  for (std::size_t i = 0; i < faults.size(); ++i) armed_[i].fault = std::move(faults[i]);
}

void Faults::begin_step(std::uint64_t step) {
  begun_ = step;
  for (auto& armed : armed_) {
    if (armed.fault.point.empty() && armed.fault.step == step) carry_out(armed);
  }
}

void Faults::passed(const meshstage::PointEvent& event) {
  Line line("point");
  line.add("generation", event.generation).add("step", event.id.step);
  if (event.peer >= 0) line.add("peer", event.peer);
  report_.send(add_point(line, event));
  // A point of a round belongs to the step that is staged, however far training is by then.
  using meshstage::Point;
  const bool round = event.point >= Point::kOwnWriting && event.point <= Point::kComplete;
  const std::uint64_t step = round ? event.id.step : begun_.load();
  for (auto& armed : armed_) {
    const Fault& fault = armed.fault;
    if (fault.point == event.name && fault.step <= step) carry_out(armed, &event);
  }
}

bool Faults::over() const {
  std::error_code ignored;
  return !until_.empty() && std::filesystem::exists(until_, ignored);
}

void Faults::carry_out(Armed& armed, const meshstage::PointEvent* at) {
  if (armed.done.exchange(true) || over()) return;
  const bool kill = armed.fault.how == Fault::How::kKill;
  Line line(kill ? "dying" : "stopping");
  line.add("step", begun_.load()).add("fault", static_cast<std::uint64_t>(&armed - armed_.data()));
  if (at != nullptr) add_point(line, *at);  // other threads may have told of points behind it
  report_.send(line);
  ::kill(::getpid(), kill ? SIGKILL : SIGSTOP);
}

}  // namespace trainer
