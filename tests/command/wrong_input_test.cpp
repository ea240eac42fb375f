// Wrong input of every kind: one clear line on stderr, nothing on stdout, exit 2.
#include <algorithm>
#include <ostream>
#include <sstream>
#include <streambuf>

#include "tests/command/run_mesh.hpp"
#include "tests/support/catch.hpp"

namespace {

struct Wrong {
  std::vector<std::string> arguments;
  std::string part;  // of the line
};

}  // namespace

TEST_CASE("wrong input of the mesh commands is one clear line and exit 2") {
  const std::vector<std::string> shard{"shard",    "--mesh", "2,4",
                                       "--tensor", "13,7",   "--placements"};
  const auto placed = [&](const std::string& placements) {
    auto out = shard;
    out.push_back(placements);
    return out;
  };
  const Wrong table[] = {
      {{}, "subcommand is required"},
      {{"paint"}, "no command \"paint\"; there are show, "},
      {{"--paint"}, "the argument --paint was not expected"},
      {{"show"}, "no mesh: give a mesh FILE, or --mesh 2,4"},
      {{"show", "--mesh"}, "--mesh"},
      {{"show", "--mesh", ""}, "--mesh 2,4"},
      {{"show", "--mesh", "2,,4"}, "a number is missing"},
      {{"show", "--mesh", "2,4,"}, "a number is missing"},
      {{"show", "--mesh", "2x4"}, "'2x4' is no number"},
      {{"show", "--mesh", "2,0"}, "'0' is below 1"},
      {{"show", "--mesh", "2,-4"}, "'-4' is below 1"},
      {{"show", "--mesh", "1e3"}, "no number"},
      {{"show", "--mesh", "99999999999999999999"}, "no number below 2^63"},
      {{"show", "--mesh", "4294967296,4294967296"}, "more than 16777216 ranks"},
      {{"show", "--mesh", "100000,100000"}, "more than 16777216 ranks"},
      {{"show", "--mesh", std::string(5000, '7')}, "no number"},
      {{"show", "--mesh", "\n\x01\xff"}, "no number"},
      {{"show", "--mesh", "2,4", "--names", "dp"}, "2 dimensions but 1 name"},
      {{"show", "--mesh", "2,4", "--names", "dp,dp"}, "'dp' is listed twice"},
      {{"show", "--mesh", "2,4", "--names", "dp,"}, "name ''"},
      {{"show", "--mesh", "2,4", "--names", "d p,tp"}, "'d p'"},
      {{"show", "--mesh", "2,4", "--ranks", "0-6"}, "must be the number of ranks"},
      {{"show", "--mesh", "2,4", "--ranks", "0-6,6"}, "rank 6 is listed twice"},
      {{"show", "--mesh", "2", "--ranks", "1-0"}, "such as 0-3,8"},
      {{"show", "--mesh", "2", "--ranks", "0,x"}, "such as 0-3,8"},
      {{"show", "--mesh", "2", "--ranks", "0,2147483647"}, "out of range"},
      {{"show", "--mesh", "2", "--ranks", "0,99999999999"}, "such as 0-3,8"},
      {{"show", "--mesh", "2", "--ranks", "0-2147483646"}, "more than"},
      {{"show", "--mesh", "2,4", "--slice", "dp"}, "'dp': it has dim0, dim1"},
      {{"show", "--mesh", "2,4", "--slice", "dim0,dim0"}, "named twice"},
      {{"show", "--mesh", "2,4", "--rank", "8"}, "--rank 8 is not in"},
      {{"show", "--mesh", "1000000", "--json"},
       "the answer has 6.265 TiB, for each rank lists its groups: say which ranks are wanted, such "
       "as --rank 0-15, or add "
       "--compact"},
      {{"show", "--mesh", "2,4", "--compact"}, "--compact is a form of JSON: add --json"},
      {{"show", "--mesh", "2,4", "--json", "--compact=maybe"}, "--compact"},
      {{"show", "--mesh", "2,4", "--borrow-replicated"}, "--borrow-replicated"},
      {{"show", "--mesh", "2,4", "--color"}, "--color"},
      {{"show", "--mesh", "2,4", "extra"}, "extra"},
      {{"show", "--mesh", "2,4", "--mesh", "2"}, "--mesh"},
      {placed("S(0)"), "one for each of its 2 dimensions, not 1"},
      {placed("S(0),R,R"), "not 3"},
      {placed("S(2),R"), "use -2..1"},
      {placed("S(-3),R"), "use -2..1"},
      {placed("S(99999999999999),R"), "write R, S(DIM)"},
      {placed("X,R"), "write R, S(DIM)"},
      {placed(""), "write R, S(DIM)"},
      {placed("P(median),R"), "P(sum|avg|product|min|max)"},
      {{"shard", "--mesh", "2", "--tensor", "-1", "--placements", "R"}, "-1"},
      {{"shard", "--mesh", "2", "--tensor", "x", "--placements", "R"}, "no number"},
      {{"shard", "--mesh", "2", "--tensor", "9223372036854775807,2", "--placements", "R"},
       "2^63-1"},
      {{"shard", "--mesh", "2", "--tensor", "", "--placements", "S(0)"}, "use R or P"},
      {{"shard", "--mesh", "2", "--tensor", "4"}, "--placements is required"},
      {{"show", "x.toml", "--mesh", "2"}, "described twice"},
      {{"show", "/nonexistent.toml"}, "cannot be read"},
      {{"shard", "/nonexistent.toml", "--tensor", "w"}, "cannot be read"},
      {{"partners"}, "give a mesh FILE, or --mesh 2,4"},
      {{"partners", "/nonexistent.toml"}, "cannot be read"},
      {{"partners", "/"}, "cannot be read"},
      {{"partners", "x.toml", "--mesh", "2"}, "described twice"},
      {{"partners", "--mesh", "4", "--policy", "best"}, "use half-shift, ring"},
      {{"partners", "--mesh", "4", "--copies", "4"}, "use 1 to 3"},
      {{"partners", "--mesh", "4", "--copies", "-2"}, "use 1 to 3"},
      {{"partners", "--mesh", "4", "--copies", "many"}, "--copies"},
      {{"partners", "--mesh", "1", "--copies", "1"}, "use 0"},
      {{"partners", "--mesh", "131072", "--copies", "131071"}, "use fewer"},
      {{"partners", "--mesh", "4", "--ranks-per-host", "4", "--policy", "across-hosts"},
       "needs 2 hosts"},
      {{"partners", "--mesh", "4", "--policy", "across-racks"}, "give every host a rack"},
      {{"partners", "--mesh", "4", "--host-sizes", "3"}, "must add up"},
      {{"partners", "--mesh", "4", "--host-sizes", "3,9223372036854775807"}, "must add up"},
      {{"partners", "--mesh", "4", "--host-sizes", "3,1", "--ranks-per-host", "2"},
       "exclude each other"},
      {{"partners", "--mesh", "4", "--ranks-per-host", "-1"}, "such as 8"},
      {{"partners", "--mesh", "4", "--tensor", "w"}, "NAME=DTYPE[SIZES]:PLACEMENTS"},
      {{"partners", "--mesh", "4", "--tensor", "w=f32[8]:S(0),R"}, "not 2"},
      {{"partners", "--mesh", "4", "--tensor", "w=f99[8]:R"}, "dtype 'f99'"},
      {{"partners", "--mesh", "4", "--tensor", "w=f32[8]:R", "--tensor", "w=f32[8]:R"},
       "is listed twice"},
      {{"partners", "--mesh", "4", "--tensor", "w=f64[1152921504606846975]:R", "--tensor",
        "v=f64[1152921504606846975]:R"},
       "2^63-1"},
      {{"partners", "--mesh", "4", "--bandwidth", "-1"}, "such as 12.5"},
      {{"partners", "--mesh", "4", "--bandwidth", "nan"}, "such as 12.5"},
      {{"partners", "--mesh", "4", "--ranks-per-host", "4", "--borrow-replicated", "--tensor",
        "w=f32[8]:R,R"},
       "not 2"},
      {{"partners", "--mesh", "4", "--borrow-replicated=yes please"}, "--borrow-replicated"},
      {{"partners", "--mesh", "4", "--copies", "3", "--borrow-replicated", "--tensor",
        "w=f64[144115188075855871]:R"},
       "2^63-1"},
      {{"survive", "--mesh", "4", "--borrow-replicated", "rank"}, "rank"},
      {{"survive", "--mesh", "4", "--borrow-replicated", "--borrow-replicated", "--lose", "x"},
       "use rank, host or rack"},
      {{"survive", "--mesh", "4", "--lose", "room"}, "use rank, host or rack"},
      {{"survive", "--mesh", "4", "--lose", "rack"}, "give every host a rack"},
      {{"check"}, "FILE is required"},
      {{"check", "/nonexistent.toml"}, "cannot be read"},
      {{"check", "/"}, "cannot be read"},
      {{"check", "/dev/zero"}, "more than 256 MiB: give a TOML file"},
      {{"draw", "/nonexistent.toml"}, "cannot be read"},
  };
  for (const Wrong& w : table) {
    std::string words;
    for (const auto& a : w.arguments) words += " " + a.substr(0, 80);
    INFO("meshstage mesh" << words);
    const Answer got = run_mesh(w.arguments);
    CHECK(got.code == 2);
    CHECK(got.out.empty());
    CHECK(std::count(got.err.begin(), got.err.end(), '\n') == 1);
    CHECK(got.err.back() == '\n');
    CHECK(got.err.size() < 600);
    CHECK(got.err.rfind("meshstage mesh", 0) == 0);
    CHECK_THAT(got.err, contains_text(w.part));
    CHECK(std::none_of(got.err.begin(), got.err.end() - 1,
                       [](char c) { return static_cast<unsigned char>(c) < 0x20; }));
  }
}

TEST_CASE("an answer that cannot be written whole is an error in one line, and not exit 0") {
  // Takes so many bytes and no more, as a disk that becomes full.
  class Full final : public std::streambuf {
   public:
    explicit Full(std::streamsize room) : room_(room) {}

   protected:
    std::streamsize xsputn(const char* /*text*/, std::streamsize n) override {
      const std::streamsize taken = std::min(n, room_);
      room_ -= taken;
      return taken;
    }
    int_type overflow(int_type c) override {
      return room_-- > 0 ? traits_type::not_eof(c) : traits_type::eof();
    }

   private:
    std::streamsize room_;
  };
  const std::vector<std::vector<std::string>> commands{
      {"show", "--mesh", "100,100", "--json"},
      {"shard", "--mesh", "2,2", "--tensor", "4,4", "--placements", "R,R"},
      {"survive", "--mesh", "4", "--require", "3"},
      {"partners", "--help"}};
  for (const auto& words : commands) {
    for (const std::streamsize room : {0, 100}) {
      Full full(room);
      std::ostream out(&full);
      std::ostringstream err;
      CHECK(run_mesh(words, out, err) == 1);
      CHECK(err.str() == "meshstage mesh " + words[0] +
                             ": the output cannot be written: the disk is full, or the output "
                             "closed\n");
    }
  }
}

TEST_CASE("every mesh command has help with an example") {
  for (const std::string command : {"show", "shard", "partners", "survive", "check", "draw"}) {
    const Answer got = run_mesh({command, "--help"});
    CHECK(got.code == 0);
    CHECK(got.err.empty());
    CHECK_THAT(got.out, contains_text("Example:\n  meshstage mesh " + command));
  }
}
