// A peer of gloo_reform_test: gloo_stream_worker STORE RANK SIZE. Reads lines: "form N" joins
// generation N with rank 0 and streams chunks both ways until something ends it; "end" aborts and
// closes the group. Ends with its standard input.
#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <iostream>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/error/error.hpp>

namespace {

using namespace std::chrono_literals;
constexpr std::size_t kChunk = std::size_t{1} << 20;

void stream(meshstage::ProcessGroup& group, bool out, std::byte value) {
  std::array<std::vector<std::byte>, 2> buffers;
  for (auto& b : buffers) b.assign(kChunk, value);
  std::array<std::unique_ptr<meshstage::Transfer>, 2> posted;
  try {
    for (std::size_t i = 0;; i = 1 - i) {
      if (posted[i]) posted[i]->wait(meshstage::Deadline::never());
      posted[i] = out ? group.send(0, 1, buffers[i]) : group.receive(0, 2, buffers[i]);
    }
  } catch (const meshstage::Error&) {
    // The peer went, or we were told to end: both end the stream.
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  meshstage::FileStore store(argv[1]);
  const int rank = std::stoi(argv[2]);
  const int size = std::stoi(argv[3]);
  std::stop_source stop;
  std::thread generation;
  const auto end = [&] {
    stop.request_stop();
    if (generation.joinable()) generation.join();
  };
  std::string word;
  while (std::cin >> word) {
    end();
    if (word != "form") continue;
    meshstage::ConnectRequest request;
    std::cin >> request.generation;
    request.job = "risk";
    request.name = "data";
    request.rank = rank;
    request.world_size = size;
    request.peers = {0};
    request.store_prefix = "gen/" + std::to_string(request.generation);
    stop = {};
    generation = std::thread(
        [&store, request, token = stop.get_token(), value = static_cast<std::byte>(rank)] {
          try {
            const auto group =
                meshstage::connect_gloo_group(meshstage::gloo_module_table(), "127.0.0.1", request,
                                              store, meshstage::Deadline::after(20s), token);
            const std::stop_callback on_stop(token, [&] {
              group->abort(std::make_exception_ptr(meshstage::Cancelled("told to end")));
            });
            std::thread out([&] { stream(*group, true, value); });
            stream(*group, false, value);
            out.join();
            group->close();
          } catch (const meshstage::Error&) {
            // Abandoned while it connected; the next line says what to do.
          }
        });
  }
  end();
}
