#include "tools/run/launcher.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/file_system.hpp>

namespace meshstage::tools::run {
namespace {

// A port of loopback that is free now. Another process may take it before the ranks do; they then
// fail to start. A start of all ranks draws another.
std::uint16_t free_port() {
  const Descriptor probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (probe.get() < 0 ||
      ::bind(probe.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw_errno("bind", "a free port of 127.0.0.1", errno);
  }
  return ntohs(address.sin_port);
}

std::string seconds_text(std::chrono::milliseconds time) {
  return std::to_string((time.count() + 500) / 1000) + " s";
}

/// A process that dumps core is silent until the dump is whole, and then dead.
bool dumps_core(pid_t process) {
  const auto status = read_text(real_file_system(), "/proc/" + std::to_string(process) + "/status");
  return status && status->find("CoreDumping:\t1") != std::string::npos;
}

}  // namespace

Launcher::Launcher(LaunchOptions options, Signals& signals)
    : options_(std::move(options)),
      signals_(signals),
      supervision_(options_.rules),
      hangs_(options_.rules.ranks, options_.launch.place.first_rank, options_.hang_rules) {
  options_.launch.supervisor = reports_.path();
  const bool colour = ::isatty(STDOUT_FILENO) == 1;
  seats_.resize(static_cast<std::size_t>(options_.rules.ranks));
  for (std::size_t i = 0; i < seats_.size(); ++i) {
    Seat& seat = seats_[i];
    seat.local_rank = static_cast<int>(i);
    const std::string prefix =
        options_.prefix ? line_prefix(rank_of(seat), options_.launch.place.world_size, colour) : "";
    const auto cutter = [&seat, prefix](int descriptor) {
      return std::make_unique<LineCutter>([&seat, prefix, descriptor](std::string_view line) {
        seat.tail.add(line);
        std::string text = prefix;
        text.append(line).push_back('\n');
        (void)write_all(descriptor, text);  // nobody may read any more; the job goes on
      });
    };
    seat.out = cutter(STDOUT_FILENO);
    seat.err = cutter(STDERR_FILENO);
  }
  adopt_orphans();
}

Launcher::~Launcher() {
  for (Seat& seat : seats_) seat.process.reset();
  end_orphans();
}

int Launcher::rank_of(const Seat& seat) const {
  return options_.launch.place.first_rank + seat.local_rank;
}

bool Launcher::any_process() const {
  return std::any_of(seats_.begin(), seats_.end(),
                     [](const Seat& s) { return s.process != nullptr; });
}

std::string Launcher::running_ranks() const {
  std::string text;
  for (const Seat& seat : seats_) {
    if (seat.process) text += (text.empty() ? "" : ", ") + std::to_string(rank_of(seat));
  }
  return text;
}

int Launcher::run() {
  start_all();
  while (true) {
    wait();
    const Time begun(now_ns());
    take_reports();
    for (Seat& seat : seats_) read_output(seat);
    for (const int signal : signals_.take_all()) pass_on(signal);
    reap();
    if (const Time now(now_ns()); now - begun > Hangs::kLongestTurn) hangs_.missed(now);
    kill_hung();
    keep_time();
    if (phase_ == Phase::kEnding && !any_process()) break;
  }
  if (failed_seat_ >= 0) show_tail(seats_[static_cast<std::size_t>(failed_seat_)]);
  return exit_status_;
}

void Launcher::start(Seat& seat) {
  seat.start_at.reset();
  seat.tail.clear();
  seat.hang.clear();
  supervision_.started(seat.local_rank, Time(now_ns()));
  hangs_.started(seat.local_rank);
  seat.process = std::make_unique<RankProcess>(
      options_.command, rank_environment(options_.launch, seat.local_rank, own_environment()));
}

void Launcher::start_all() {
  if (!options_.keep_master_port) options_.launch.master_port = free_port();
  phase_ = Phase::kRunning;
  for (Seat& seat : seats_) start(seat);
  write_message(processes_text());
}

// "rank 0 is process 812, rank 1 is process 813"
std::string Launcher::processes_text() const {
  std::string text;
  for (const Seat& seat : seats_) text += (text.empty() ? "" : ", ") + process_text(seat);
  return text;
}

std::string Launcher::process_text(const Seat& seat) const {
  return "rank " + std::to_string(rank_of(seat)) + " is process " +
         std::to_string(seat.process->pid());
}

// Until something can be read, a process ends, or the next time has come.
void Launcher::wait() {
  std::vector<pollfd> polled{{signals_.descriptor(), POLLIN, 0},
                             {reports_.descriptor(), POLLIN, 0}};
  std::optional<Time> next = kill_at_;
  const auto sooner = [&next](const std::optional<Time>& time) {
    if (time && (!next || *time < *next)) next = time;
  };
  if (!any_process()) sooner(restart_all_at_);
  for (const Seat& seat : seats_) {
    sooner(seat.start_at);
    if (!seat.process) continue;
    for (const int fd : {seat.process->out(), seat.process->err()}) {
      if (fd >= 0) polled.push_back({fd, POLLIN, 0});
    }
  }
  int timeout = -1;
  if (next) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Time(now_ns()));
    constexpr std::int64_t kLongest = 60'000;
    timeout = static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, kLongest));
  }
  if (::poll(polled.data(), polled.size(), timeout) < 0 && errno != EINTR) {
    throw_errno("poll", "", errno);
  }
}

void Launcher::read_output(Seat& seat) {
  if (!seat.process) return;
  std::array<char, 65536> buffer{};
  const auto read = [&buffer](int fd, LineCutter& lines) {
    while (fd >= 0) {
      const ssize_t n = ::read(fd, buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return false;  // nothing more for now
      if (n == 0) return true;  // its end
      lines.take({buffer.data(), static_cast<std::size_t>(n)});
    }
    return false;
  };
  if (read(seat.process->out(), *seat.out)) seat.process->close_out();
  if (read(seat.process->err(), *seat.err)) seat.process->close_err();
}

void Launcher::finish_output(Seat& seat) {
  read_output(seat);  // what it wrote before it ended
  seat.out->end();
  seat.err->end();
}

void Launcher::signal_all(int signal) {
  for (const Seat& seat : seats_) {
    if (seat.process) seat.process->signal(signal);
  }
}

void Launcher::pass_on(int signal) {
  if (signal == SIGUSR1 || signal == SIGUSR2) {
    signal_all(signal);
    return;
  }
  if (passed_on_) {
    write_message("killing ranks " + running_ranks());
    signal_all(SIGKILL);
    return;
  }
  passed_on_ = signal;
  phase_ = Phase::kEnding;
  failed_seat_ = -1;
  for (Seat& seat : seats_) seat.start_at.reset();
  kill_at_.reset();
  write_message("signal " + std::to_string(signal) + " is passed on; waiting for ranks " +
                running_ranks() + "; a second one kills them");
  signal_all(signal);
}

void Launcher::take_reports() {
  for (const Report& report : reports_.take()) {
    const int local = report.rank - options_.launch.place.first_rank;
    if (local < 0 || local >= options_.rules.ranks) continue;
    if (report.kind == Report::Kind::kJoined) supervision_.joined(local);
    hangs_.reported(local, report.kind, report.number, Time(now_ns()));
  }
}

// A SIGKILL ends a stopped process, too. reap() finds it dead, and then it is started anew.
void Launcher::kill_hung() {
  const auto hang = hangs_.look(Time(now_ns()));
  if (!hang || phase_ != Phase::kRunning) return;
  Seat& seat = seats_[static_cast<std::size_t>(hang->rank)];
  if (seat.process && dumps_core(seat.process->pid())) return hangs_.missed(Time(now_ns()));
  hangs_.started(hang->rank);  // it reports no more
  if (!seat.process) return;
  seat.hang = hang->how;
  seat.process->signal(SIGKILL);
}

void Launcher::reap() {
  for (Seat& seat : seats_) {
    if (!seat.process) continue;
    const auto end = seat.process->try_reap();
    if (!end) continue;
    take_reports();  // its last ones must not be taken for those of its replacement
    finish_output(seat);
    seat.process.reset();
    ended(seat, *end);
  }
}

void Launcher::ended(Seat& seat, End end) {
  if (phase_ == Phase::kRunning) {
    const bool hung = !seat.hang.empty() && end.signalled && end.code == SIGKILL;
    decide(supervision_.ended(seat.local_rank, end, Time(now_ns()),
                              hung ? seat.hang + ", so it was killed" : end.text()));
  } else if (passed_on_ && end.exit_status() != 0) {
    exit_status_ = 128 + *passed_on_;
  }
}

void Launcher::decide(const Decision& decision) {
  const Time now(now_ns());
  // Supervision numbers the ranks of this host.
  const auto renamed = [&](const std::string& why) {
    const std::string local = "rank " + std::to_string(decision.rank) + ":";
    return "rank " + std::to_string(options_.launch.place.first_rank + decision.rank) +
           why.substr(local.size() - 1);
  };
  const std::string in = decision.delay.count() > 0 ? " in " + seconds_text(decision.delay) : "";
  const std::string count = " (restart " + std::to_string(supervision_.restarts()) + ")";
  switch (decision.kind) {
    case Decision::Kind::kNothing:
      return;
    case Decision::Kind::kDone:
      phase_ = Phase::kEnding;
      return;
    case Decision::Kind::kRestart:
      write_message(renamed(decision.why) + "; it is started anew" + in + count);
      seats_[static_cast<std::size_t>(decision.rank)].start_at = now + decision.delay;
      return;
    case Decision::Kind::kRestartAll:
      write_message(renamed(decision.why) + "; all ranks are started anew" + in + count);
      restart_all_at_ = now + decision.delay;
      end_all(Phase::kRestarting);
      return;
    case Decision::Kind::kFail:
      write_message(renamed(decision.why) + "; the job ends");
      exit_status_ = decision.exit_status;
      failed_seat_ = decision.rank;
      end_all(Phase::kEnding);
      return;
  }
}

void Launcher::end_all(Phase next) {
  phase_ = next;
  for (Seat& seat : seats_) seat.start_at.reset();
  signal_all(SIGTERM);
  const Deadline now = Deadline::at(Deadline::Clock::time_point(Time(now_ns())));
  kill_at_ = now.plus(options_.grace).time().time_since_epoch();
}

void Launcher::keep_time() {
  const Time now(now_ns());
  if (kill_at_ && !any_process()) kill_at_.reset();
  if (kill_at_ && now >= *kill_at_) {
    write_message("ranks " + running_ranks() + " did not end within " +
                  seconds_text(options_.grace) + " of SIGTERM; they are killed");
    signal_all(SIGKILL);
    kill_at_.reset();
  }
  if (phase_ == Phase::kRestarting && !any_process() && now >= *restart_all_at_) {
    restart_all_at_.reset();
    supervision_.all_ended();
    start_all();
  }
  for (Seat& seat : seats_) {
    if (!seat.start_at || now < *seat.start_at) continue;
    start(seat);
    write_message(process_text(seat));
  }
}

void Launcher::show_tail(const Seat& seat) const {
  if (seat.tail.lines().empty()) return;
  write_message("the last lines of rank " + std::to_string(rank_of(seat)) + ":");
  for (const std::string& line : seat.tail.lines())
    (void)write_all(STDERR_FILENO, "  " + line + "\n");
}

}  // namespace meshstage::tools::run
