// A million ranks: every command answers, within a GiB of memory. A process of its own, for its
// memory is what is measured.
#include <sys/resource.h>

#include <fstream>
#include <streambuf>

#include "tests/command/run_mesh.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/sanitized.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

// Counts what is written to it.
class Counter final : public std::streambuf {
 public:
  std::int64_t bytes = 0;

 protected:
  std::streamsize xsputn(const char* /*text*/, std::streamsize n) override {
    bytes += n;
    return n;
  }
  int_type overflow(int_type c) override {
    ++bytes;
    return traits_type::not_eof(c);
  }
};

std::int64_t peak_bytes() {
  rusage usage{};
  REQUIRE(::getrusage(RUSAGE_SELF, &usage) == 0);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace

TEST_CASE("a million ranks are answered for, by every mesh command, within a GiB of memory") {
  const TempDirectory directory;
  const std::string strided = directory.path() / "strided.toml";
  const std::string listed = directory.path() / "listed.toml";
  {
    // Racks, two copies, and the tensors of a model of 100 layers, some of which do not divide.
    std::ofstream file(strided);
    file << "[mesh]\nshape = [1000, 1000]\nnames = [\"dp\", \"tp\"]\n[hosts]\nranks_per_host = 8\n"
            "hosts_per_rack = 16\n[partners]\npolicy = \"across-racks\"\ncopies = 2\n"
            "borrow_replicated = true\n";
    for (int layer = 0; layer < 100; ++layer) {
      file << "[[tensor]]\nname = \"" << layer << ".weight\"\nshape = [16000, 8000]\n"
           << "placements = \"R,S(" << layer % 2 << ")\"\n[[tensor]]\nname = \"" << layer
           << ".moment\"\nshape = [50257, 1600]\nplacements = \"S(0),S(1)\"\n";
    }
    // Every rank, host and holder by name, in an order that no strides describe.
    std::ofstream other(listed);
    const auto rank_at = [](std::int64_t place) { return place * 7919 % 1000000; };
    other << "[mesh]\nshape = [8, 125000]\nranks = [";
    for (int i = 0; i < 1000000; ++i) other << (i > 0 ? "," : "") << rank_at(i);
    other << "]\n[partners]\nholders = [";
    for (int r = 0; r < 1000000; ++r)
      other << (r > 0 ? ",[" : "[") << (r + 500000) % 1000000 << "]";
    other << "]\n";
    for (int h = 0; h < 125000; ++h) {
      other << "[[host]]\nname = \"node" << h << "\"\nranks = \"" << 8 * h << "-" << 8 * h + 7
            << "\"\n";
    }
  }
  using Words = std::vector<std::string>;
  const std::vector<Words> commands{
      {"show", "--mesh", "1000,1000"},
      {"show", "--mesh", "100,100,100", "--json"},
      {"show", "--mesh", "1000,1000", "--json", "--compact"},
      {"show", "--mesh", "1000000", "--slice", "dim0", "--json", "--compact"},
      {"show", "--mesh", "100,100,100", "--slice", "dim2,dim0", "--json", "--compact"},
      {"show", "--mesh", "1000000", "--rank", "7", "--slice", "dim0", "--json"},
      {"shard", "--mesh", "1000,1000", "--tensor", "50257,1600", "--placements", "S(0),S(1)"},
      {"shard", "--mesh", "1000,1000", "--tensor", "50257,1600", "--placements", "S(0),S(1)",
       "--json"},
      {"partners", strided},
      {"partners", strided, "--json"},
      {"partners", "--mesh", "1000000", "--copies", "8"},
      {"partners", "--mesh", "100,100,100", "--host-sizes", "999999,1", "--borrow-replicated",
       "--tensor", "w=f32[8]:R,R,R"},
      {"survive", strided},
      {"survive", strided, "--lose", "rack", "--json"},
      {"survive", "--mesh", "1000000", "--copies", "8", "--lose", "rank"},
      {"survive", "--mesh", "100,100,100", "--copies", "8", "--lose", "rank", "--borrow-replicated",
       "--tensor", "a=f32[100]:R,S(0),R", "--tensor", "b=f32[100]:S(0),R,R", "--tensor",
       "c=f32[100]:R,R,S(0)"},
      {"check", strided},
      {"draw", strided},
      {"check", listed},
      {"survive", listed},
      {"partners", listed}};
  for (const Words& words : commands) {
    std::string text;
    for (const auto& word : words) text += " " + word;
    INFO("meshstage mesh" << text);
    Counter counter;
    std::ostream out(&counter);
    std::ostringstream err;
    const int code = run_mesh(words, out, err);
    CHECK(err.str() == "");
    CHECK(code == 0);
    CHECK(counter.bytes > 100);
    if (!meshstage::test::kSanitized) CHECK(peak_bytes() < std::int64_t{1} << 30);
  }
}
