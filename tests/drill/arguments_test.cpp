#include "tools/drill/arguments.hpp"

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tools/command/command.hpp"
#include "tools/drill/command.hpp"
#include "tools/drill/hosts.hpp"
#include "tools/drill/workspace.hpp"

namespace {

using namespace meshstage::tools;
using drill::Arguments;
using drill::Fault;
using drill::How;

// Parses as the command does, without running anything.
struct Parsed {
  int code = 0;
  std::string complaint;
  Arguments arguments;
};

Parsed parse(const std::vector<std::string>& words) {
  CLI::App app{"", "meshstage"};
  CLI::App* command = app.add_subcommand("drill");
  set_example(*command, "meshstage drill --kill 2@87");
  drill::ArgumentParser parser;
  parser.add_to(*command);
  Parsed result;
  command->callback([&] { result.arguments = parser.complete(); });
  std::vector<std::string> all{"drill"};
  all.insert(all.end(), words.begin(), words.end());
  std::ostringstream out;
  std::ostringstream err;
  result.code = run_command(app, all, out, err);
  result.complaint = err.str();
  return result;
}

std::size_t lines(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("Wrong arguments end with 2 and one line that says what is wrong and the valid form") {
  struct Row {
    std::vector<std::string> words;
    std::string says;
  };
  const std::vector<Row> rows{
      {{"--ranks", "0"}, "--ranks 0: write a number from 1 to 64"},
      {{"--ranks", "-3"}, "--ranks -3: write a number from 1 to 64"},
      {{"--ranks", "65"}, "--ranks 65: write a number from 1 to 64"},
      {{"--ranks", "four"}, "--ranks"},
      {{"--ranks", "99999999999999999999"}, "--ranks"},
      {{"--steps", "0"}, "--steps 0: write a number from 1 to 100000"},
      {{"--steps", "-1"}, "--steps: -1: write a whole number"},
      {{"--steps", "1.5"}, "--steps: 1.5: write a whole number"},
      {{"--every", "-5"}, "--every: -5: write a whole number"},
      {{"--kills", "-1"}, "--kills: -1: write a whole number"},
      {{"--kills", "2", "--seed", "-1"}, "--seed: -1: write a whole number"},
      {{"--persist-every", "-1"}, "--persist-every: -1: write a whole number"},
      {{"--deadline-ms", "-1"}, "--deadline-ms: -1: write a whole number"},
      {{"--timeout", "-1"}, "--timeout: -1: write a whole number"},
      {{"--every", "0"}, "--every 0: write a number from 1 to --steps (200)"},
      {{"--every", "201"}, "--every 201: write a number from 1 to --steps (200)"},
      {{"--kill", "4@10"}, "--kill 4@10: there is no rank 4; ranks are 0 to 3"},
      {{"--kill", "-1@10"},
       "'-1' is no rank; write RANK@STEP[:POINT], RANK+RANK@STEP[:POINT] or all@STEP[:POINT]"},
      {{"--kill", "1+9@10"}, "--kill 1+9@10: there is no rank 9; ranks are 0 to 3"},
      {{"--lose", "1+@10"}, "'' is no rank; write RANK@STEP[:POINT], RANK+RANK@STEP"},
      {{"--lose", "1+2+1@10"}, "--lose 1+2+1@10: rank 1 is named twice"},
      {{"--stop", "1+2@10"}, "--stop 1+2@10: one rank hangs at a time; write RANK@STEP[:POINT]"},
      {{"--mesh", "2,x"}, "--mesh"},
      {{"--mesh", "2,0"}, "mesh 2,0: dimension 1 has size 0"},
      {{"--mesh", "2,2", "--ranks", "3"},
       "--mesh 2,2: has 4 ranks, --ranks says 3; give --mesh alone"},
      {{"--mesh", "8,9"}, "--mesh 8,9: has 72 ranks; at most 64 are trained with"},
      {{"--borrow-replicated"},
       "--borrow-replicated needs a mesh that repeats something: --mesh 2,2"},
      {{"--connections", "17"}, "--connections 17: write a number from 1 to 16"},
      {{"--connections", "-1"}, "--connections: -1: write a whole number"},
      {{"--copies", "0"}, "--copies 0: write a number from 1"},
      {{"--copies", "4"}, "4 copies of each of 4 ranks: use 1 to 3"},
      {{"--partners", "rings"}, "partner policy 'rings': use half-shift, ring, across-hosts"},
      {{"--partners", "across-hosts", "--ranks-per-host", "4"},
       "policy across-hosts with 1 copy needs 2 hosts, there is 1"},
      {{"--ranks-per-host", "0"}, "--ranks-per-host 0: write a number from 1"},
      {{"--disks", "own"}, "--disks own: write shared or local"},
      {{"--disks", "local", "--ranks-per-host", "2", "--lose", "1@5"},
       "--lose 1@5: with --disks local a host is lost with its disk and all its ranks; write "
       "0+1@STEP"},
      {{"--disks", "local", "--lose", "1+3@5"},
       "--lose 1+3@5: with --disks local nothing would be left of rank 1; lose fewer hosts at "
       "once, or give more --copies"},
      {{"--disks", "local", "--ranks", "1", "--lose", "0@5"}, "nothing would be left of rank 0"},
      {{"--disks", "local", "--ranks", "2", "--restart", "all@7:ranks=1", "--lose",
        "all@15:rotate"},
       "--lose all@15:rotate: no rank would sit where an image of rank 0 is; give more ranks or "
       "--copies, or leave :rotate out"},
      {{"--disks", "local", "--mesh", "2,2", "--borrow-replicated", "--partners", "ring", "--lose",
        "1+3@5"},
       "nothing would be left of rank 1"},
      {{"--hosts", "containers"}, "--hosts containers: write directories or namespaces"},
      {{"--hosts", "namespaces", "--ranks-per-host", "2", "--lose", "1@5"},
       "--lose 1@5: with --hosts namespaces a host is lost with all its ranks; write 0+1@STEP"},
      {{"--hosts", "namespaces", "--restart", "all@5:ranks=1"},
       "all@5:ranks=1: no rank would sit where an image of rank 1 is; give more ranks or --copies, "
       "or leave :ranks=N out"},
      {{"--lose", "1@5:rotate"}, "there is no protocol point 'rotate'"},
      {{"--kill", "all@5:rotate"}, "there is no protocol point 'rotate'"},
      {{"--lose", "all@5:rotate", "--ranks-per-host", "4"}, "there is one host; give more --ranks"},
      {{"--sharded", "--mesh", "2,2"},
       "--sharded: --mesh 2,2 says how the moments are cut; leave one of them out"},
      {{"--kill", "1@0"}, "--kill 1@0: there is no step 0; steps are 1 to 200"},
      {{"--kill", "1@201"}, "--kill 1@201: there is no step 201; steps are 1 to 200"},
      {{"--kill", "1"},
       "--kill 1: write RANK@STEP[:POINT], RANK+RANK@STEP[:POINT] or all@STEP[:POINT], for "
       "example --kill 2@87"},
      {{"--kill", ""}, "--kill"},
      {{"--kill", "@"}, "'' is no rank"},
      {{"--kill", "1@"}, "'' is no step"},
      {{"--kill", "1@x"}, "'x' is no step"},
      {{"--kill", "1@5 "}, "'5 ' is no step"},
      {{"--kill", "1@99999999999999999999"}, "is no step"},
      {{"--kill", "all@500"}, "there is no step 500"},
      {{"--kill", "1@5:"}, "there is no protocol point ''; points are formed, claimed,"},
      {{"--kill", "1@5:teatime"}, "there is no protocol point 'teatime'"},
      {{"--stop", "all@5:finishing"}, "--stop all@5:finishing: ranks that are finishing may end"},
      {{"--stop", "1@5:wake"}, "there is no protocol point 'wake'"},
      {{"--stop", "all@5:wake:voted"},
       "'voted' is one word too many; write RANK@STEP[:POINT] or all"},
      {{"--restart", "5"},
       "--restart 5: write all@STEP[:POINT][:rotate|:swap][:ranks=N][:twice], for "
       "example --restart all@87"},
      {{"--restart", "1@5"}, "--restart 1@5: a restart is one of all ranks; write all@STEP"},
      {{"--restart", "all@5:turn"}, "there is no protocol point 'turn'"},
      {{"--restart", "all@5:voted:voted"}, "'voted' is one word too many"},
      {{"--restart", "all@5:rotate:swap"}, "'swap' is one word too many"},
      {{"--restart", "all@5:twice:twice"}, "'twice' is one word too many"},
      {{"--restart", "all@5:half"}, "there is no protocol point 'half'"},
      {{"--kill", "all@5:twice"}, "there is no protocol point 'twice'"},
      {{"--lose", "all@5:ranks=3"}, "there is no protocol point 'ranks=3'"},
      {{"--restart", "all@5:voted:twice"}, "with :twice write no point, and a step from 1 to 198"},
      {{"--restart", "all@199:twice"}, "with :twice write no point, and a step from 1 to 198"},
      {{"--restart", "all@5:ranks="}, "--restart all@5:ranks=: write ranks=N, N from 1 to 64"},
      {{"--restart", "all@5:ranks=65"}, "write ranks=N, N from 1 to 64"},
      {{"--restart", "all@5:ranks=4"}, "--restart all@5:ranks=4: the job has 4 ranks by then"},
      {{"--restart", "all@5:ranks=2", "--restart", "all@9:ranks=2"}, "the job has 2 ranks by then"},
      {{"--restart", "all@5:ranks=2", "--copies", "2"}, "2 copies of each of 2 ranks: use 1"},
      {{"--restart", "all@5:ranks=2", "--mesh", "2,2"},
       "a mesh says the number of ranks; write --sharded"},
      {{"--restart", "all@5:ranks=2", "--device", "cuda"},
       "states on devices are not put together"},
      {{"--restart", "all@5:ranks=1", "--restart", "all@9:rotate"},
       "all@5:ranks=1: no rank would sit where an image of rank 1 is; give more ranks or --copies"},
      {{"--restart", "all@5:rotate", "--restart", "all@9:ranks=1"},
       "all@9:ranks=1: no rank would sit where an image of rank 1 is"},
      {{"--restart", "all@5:rotate", "--ranks-per-host", "4", "--partners", "ring"},
       "there is one host; give more --ranks, or fewer --ranks-per-host"},
      {{"--restart", "all@5:ranks=2", "--kill", "3@9"},
       "--kill 3@9: there is no rank 3 by then; ranks are 0 to 1"},
      {{"--restart", "all@5:ranks=2", "--kill", "1+2@5"}, "there is no rank 2 by then"},
      {{"--restart", "all@9:ranks=6", "--kill", "5@8"}, "there is no rank 5 by then"},
      {{"--restart", "all@9:ranks=6", "--kill", "5@9"}, "there is no rank 5 by then"},
      {{"--restart", "all@9:ranks=6", "--kill", "6@10"}, "there is no rank 6; ranks are 0 to 5"},
      {{"--twice", "x"}, "--twice x: 'x' is no step; write STEP"},
      {{"--twice", "all@5"}, "'all@5' is no step"},
      {{"--twice", "0"}, "--twice 0: there is no step 0; steps are 1 to 200"},
      {{"--twice", "7", "--twice", "7"}, "--twice 7: is given twice"},
      {{"--restarts", "0"}, "--restarts 0: write a number from 1 to 1000"},
      {{"--restarts", "-1"}, "--restarts: -1: write a whole number"},
      {{"--stop", "0@5", "--ranks", "1"}, "--stop needs another rank that notices"},
      {{"--lose", "9@5"}, "there is no rank 9"},
      {{"--kills", "0"}, "--kills 0: write a number from 1 to 1000"},
      {{"--seed", "3"},
       "--seed draws the faults of --kills and --restarts: give both, --kills 3 --seed 1"},
      {{"--text", "/nowhere/at-all"}, "--text /nowhere/at-all: there is no such file to read"},
      {{"--text", "/"}, "--text /: there is no such file to read"},
      {{"--text", "/dev/null"}, "--text /dev/null: there is no such file to read"},
      {{"--dir", "/dev/null"}, "--dir /dev/null: is no directory"},
      {{"--timeout", "0"}, "--timeout 0: write a number of seconds from 1"},
      {{"--leave-out", "1@7"},
       "--leave-out 1@7: write RANK@STEP, RANK from 0 to 3 and STEP a multiple of 5 below 200"},
      {{"--leave-out", "1@200"},
       "--leave-out 1@200: write RANK@STEP, RANK from 0 to 3 and STEP a multiple of 5 below 200"},
      {{"--deadline-ms", "5"}, "--deadline-ms 5: write a number from 100 to 600000"},
      {{"--kll", "1@5"}, "--kll"},
      {{"extra"}, "extra"},
  };
  for (const auto& row : rows) {
    const Parsed parsed = parse(row.words);
    INFO(row.words.front() << " " << row.words.back() << " -> " << parsed.complaint);
    CHECK(parsed.code == 2);
    CHECK(lines(parsed.complaint) == 1);
    CHECK(parsed.complaint.rfind("meshstage drill: ", 0) == 0);
    CHECK(parsed.complaint.find(row.says) != std::string::npos);
  }
}

TEST_CASE("A --dir that cannot be made is a wrong argument") {
  try {
    drill::Workspace workspace("/dev/null/below");
    FAIL("it was made");
  } catch (const meshstage::InvalidArgument& e) {
    CHECK(std::string(e.what()).find("--dir /dev/null/below: cannot be made or written to: Not a "
                                     "directory; name a directory") != std::string::npos);
  }
}

TEST_CASE("Faults are taken as typed, in the order of their steps") {
  const Parsed parsed = parse(
      {"--lose", "3@60", "--kill", "2@87:chunk-received", "--kill", "all@10", "--stop", "0@20"});
  REQUIRE(parsed.complaint.empty());
  std::string text;
  for (const auto& fault : parsed.arguments.faults) text += fault.text() + " ";
  CHECK(text == "--kill all@10 --stop 0@20 --lose 3@60 --kill 2@87:chunk-received ");
  CHECK(parsed.arguments.deadline_ms == 2000);
  CHECK(parsed.arguments.persist_every == 4);
  CHECK(parse({"--lose", "all@60"}).arguments.persist_every == 1);
}

TEST_CASE("Faults of the whole job are taken as typed") {
  const std::vector<std::string> typed{"--restart all@10", "--restart all@20:voted:rotate",
                                       "--stop all@30:chunk-sent:wake", "--twice 40",
                                       "--stop all@50"};
  const Parsed parsed = parse({"--stop", "all@50", "--stop", "all@30:chunk-sent:wake", "--twice",
                               "40", "--restart", "all@20:voted:rotate", "--restart", "all@10"});
  REQUIRE(parsed.complaint.empty());
  std::vector<std::string> text;
  for (const auto& fault : parsed.arguments.faults) text.push_back(fault.text());
  CHECK(text == typed);
  CHECK(parsed.arguments.moves_ranks());
  CHECK_FALSE(parsed.arguments.changes_world());
  CHECK(parsed.arguments.deadline_ms == 2000);
  CHECK(parse({"--restart", "all@10"}).arguments.deadline_ms == 15'000);
  // One rank is enough where all hang, and where nobody does.
  CHECK(parse({"--ranks", "1", "--stop", "all@10:wake", "--twice", "20"}).complaint.empty());

  const Parsed worlds = parse({"--restart", "all@60:ranks=6", "--restart", "all@20:voted:ranks=3",
                               "--kill", "3@19", "--kill", "2@20", "--kill", "5@61"});
  REQUIRE(worlds.complaint.empty());
  CHECK(worlds.arguments.worlds() == std::vector<int>{4, 3, 6});
  CHECK(worlds.arguments.changes_world());
  CHECK_FALSE(worlds.arguments.moves_ranks());
  CHECK(worlds.arguments.holders(3) == meshstage::Holders{{1}, {2}, {0}});
}

TEST_CASE("How a job comes back may be said in several words") {
  const Parsed parsed = parse({"--restart", "all@10:twice:ranks=3:rotate", "--stop",
                               "all@20:wake:swap:ranks=4:half", "--lose", "all@30:swap"});
  REQUIRE(parsed.complaint.empty());
  std::vector<std::string> text;
  for (const auto& fault : parsed.arguments.faults) text.push_back(fault.text());
  CHECK(text == std::vector<std::string>{"--restart all@10:rotate:ranks=3:twice",
                                         "--stop all@20:half:wake:swap:ranks=4",
                                         "--lose all@30:swap"});
}

TEST_CASE("Ranks that move sit on the next host, and then hosts may change them in pairs") {
  const auto hosts_of = [](const Arguments& a, drill::Seating seating) {
    std::vector<int> hosts;
    for (int rank = 0; rank < a.ranks; ++rank) hosts.push_back(drill::host_of(a, rank, seating));
    return hosts;
  };
  const Parsed parsed = parse({"--ranks", "5", "--restart", "all@10:rotate", "--restart",
                               "all@20:swap", "--restart", "all@30:swap"});
  REQUIRE(parsed.complaint.empty());
  const auto& a = parsed.arguments;
  drill::Seating seating{a.ranks};
  CHECK(hosts_of(a, seating) == std::vector<int>{0, 1, 2, 3, 4});
  seating = drill::after(a.faults.at(0), seating);
  CHECK(hosts_of(a, seating) == std::vector<int>{1, 2, 3, 4, 0});
  seating = drill::after(a.faults.at(1), seating);
  CHECK(hosts_of(a, seating) == std::vector<int>{0, 3, 2, 4, 1});  // nobody changes with host 4
  seating = drill::after(a.faults.at(2), seating);
  CHECK(hosts_of(a, seating) == std::vector<int>{1, 2, 3, 4, 0});
}

TEST_CASE("Hosts that are namespaces are apart, and lost as a whole") {
  const auto usual = [](const std::string& ranks_per_host) {
    return parse({"--hosts", "namespaces", "--ranks-per-host", ranks_per_host}).arguments;
  };
  CHECK(usual("1").hosts_are_apart());
  CHECK(usual("1").hosts_go_whole());
  CHECK(usual("2").host_count() == 2);
  CHECK(usual("2").faults.at(0).text() == "--lose 2+3@87:chunk-received");
  CHECK(usual("4").faults.at(0).text() == "--kill 2@87:chunk-received");
  CHECK_FALSE(usual("2").moves_ranks());
}

TEST_CASE("Starts of the job have names where one may meet another") {
  CHECK_FALSE(parse({"--kill", "all@10"}).arguments.starts_are_named());
  CHECK_FALSE(parse({"--stop", "1@10"}).arguments.starts_are_named());
  for (const std::vector<std::string>& fault : std::vector<std::vector<std::string>>{
           {"--restart", "all@10"}, {"--stop", "all@10"}, {"--twice", "10"}}) {
    CHECK(parse(fault).arguments.starts_are_named());
  }
}

TEST_CASE("A host with a disk of its own is lost with all its ranks, or all lose their memory") {
  const Parsed all = parse({"--disks", "local", "--lose", "all@60:voted:rotate"});
  REQUIRE(all.complaint.empty());
  CHECK(all.arguments.faults.at(0).text() == "--lose all@60:voted:rotate");
  CHECK(all.arguments.local_disks());
  CHECK(all.arguments.moves_ranks());
  CHECK(all.arguments.persist_every == 1);

  const Parsed host = parse({"--disks", "local", "--ranks-per-host", "2", "--lose", "0+1@9"});
  REQUIRE(host.complaint.empty());
  CHECK(host.arguments.hosts_are_apart());
  CHECK_FALSE(host.arguments.moves_ranks());
  const auto usual = [](const std::string& ranks_per_host) {
    return parse({"--disks", "local", "--ranks-per-host", ranks_per_host}).arguments.faults.at(0);
  };
  CHECK(usual("1").text() == "--lose 2@87:chunk-received");
  CHECK(usual("2").text() == "--lose 2+3@87:chunk-received");
  CHECK(usual("4").text() == "--kill 2@87:chunk-received");
  for (const char* ranks_per_host : {"1", "2", "4"}) {
    CHECK(parse({"--disks", "local", "--ranks-per-host", ranks_per_host, "--restart",
                 "all@9:ranks=3"})
              .complaint.empty());
  }
  CHECK_FALSE(parse({}).arguments.hosts_are_apart());
  CHECK(parse({"--restart", "all@9:rotate"}).arguments.hosts_are_apart());
}

TEST_CASE("Restarts that are drawn leave no image behind where hosts have disks of their own") {
  int changed = 0;
  for (int seed = 1; seed <= 20; ++seed) {
    const Parsed parsed =
        parse({"--disks", "local", "--restarts", "4", "--seed", std::to_string(seed)});
    INFO(seed);
    CHECK(parsed.complaint.empty());
    changed += parsed.arguments.changes_world() ? 1 : 0;
  }
  CHECK(changed > 0);
}

TEST_CASE("Several ranks may go down at once, and what is left is persisted where it must be") {
  const Parsed parsed = parse({"--ranks", "5", "--copies", "2", "--lose", "1+2+4@60:voted"});
  REQUIRE(parsed.complaint.empty());
  const Fault& fault = parsed.arguments.faults.at(0);
  CHECK(fault.rank == std::optional<int>(1));
  CHECK(fault.with == std::vector<int>{2, 4});
  CHECK(fault.text() == "--lose 1+2+4@60:voted");
  // Rank r's holders are r + 1 and r + 3: 1 goes with both of its.
  CHECK(parsed.arguments.holders().at(1) == std::vector<int>{2, 4});
  CHECK(parsed.arguments.persist_every == 1);
  CHECK(parse({"--ranks", "5", "--copies", "2", "--lose", "1+2@60"}).arguments.persist_every == 4);
  CHECK(parse({"--ranks", "5", "--kill", "1+3@60"}).arguments.persist_every == 4);
}

TEST_CASE("Who is lost with a lender of its copies is left with disk alone") {
  const std::vector<std::string> ring{"--mesh", "2,2", "--partners", "ring"};
  const auto with = [&ring](const std::vector<std::string>& more) {
    std::vector<std::string> words = ring;
    words.insert(words.end(), more.begin(), more.end());
    const Parsed parsed = parse(words);
    REQUIRE(parsed.complaint.empty());
    return parsed.arguments;
  };
  const Arguments spare = with({"--borrow-replicated", "--lose", "1+3@60"});
  CHECK(spare.holders().at(1) == std::vector<int>{2});
  CHECK(spare.lenders() == std::vector<std::vector<int>>{{2}, {3}, {0}, {1}});
  CHECK(spare.persist_every == 1);
  CHECK(with({"--lose", "1+3@60"}).persist_every == 4);  // copies are whole
  CHECK(with({"--lose", "1+3@60"}).lenders() == std::vector<std::vector<int>>(4));
  CHECK(with({"--borrow-replicated", "--lose", "1@60"}).persist_every == 4);
  CHECK(with({"--borrow-replicated", "--lose", "0+3@60"}).persist_every == 1);  // 0 holds 3's
  CHECK(with({"--borrow-replicated", "--lose", "0+3@60", "--copies", "2"}).persist_every == 4);
  CHECK(with({"--borrow-replicated", "--kill", "1+3@60"}).persist_every == 4);
  // Where moments are cut over all ranks nobody has them too, and parameters are the next one's.
  const Parsed flat = parse({"--mesh", "4", "--borrow-replicated", "--ranks-per-host", "2"});
  CHECK(flat.arguments.lenders() == std::vector<std::vector<int>>{{2}, {2}, {0}, {0}});
}

TEST_CASE("A mesh says how many ranks there are") {
  const Parsed parsed = parse({"--mesh", "2,3"});
  REQUIRE(parsed.complaint.empty());
  CHECK(parsed.arguments.ranks == 6);
  CHECK(parsed.arguments.mesh == std::vector<std::int64_t>{2, 3});
  CHECK(parse({"--mesh", "2,2", "--ranks", "4"}).complaint.empty());
}

TEST_CASE("Without faults a rank in the middle is lost while it receives its ward's image") {
  const Parsed usual = parse({});
  REQUIRE(usual.arguments.faults.size() == 1);
  CHECK(usual.arguments.faults[0].text() == "--lose 2@87:chunk-received");
  CHECK(usual.arguments.text.is_absolute());
  // A run of one rank has no ward and no holder.
  CHECK(parse({"--ranks", "1"}).arguments.faults[0].text() == "--kill 0@87:own-writing");
  CHECK(parse({"--steps", "1", "--every", "1"}).arguments.faults[0].step == 1);
}

TEST_CASE("Random kills follow from the seed, exist, and no staged step is left without a chance") {
  std::set<std::string> all;
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    for (const int ranks : {1, 2, 3, 5}) {
      Arguments a;
      a.ranks = ranks;
      a.steps = 60;
      a.every = 5;
      const auto faults = drill::random_kills(6, seed, a);
      const auto again = drill::random_kills(6, seed, a);
      REQUIRE(faults.size() == 6);
      for (std::size_t i = 0; i < faults.size(); ++i) {
        const Fault& f = faults[i];
        REQUIRE(f.text() == again[i].text());
        // What was drawn can be typed.
        const auto typed = f.text().substr(std::string("--kill ").size());
        REQUIRE(drill::parse_fault(How::kKill, typed, ranks, a.steps).text() == f.text());
        if (i > 0) REQUIRE(faults[i - 1].step <= f.step);
        all.insert(f.text());
      }
    }
  }
  CHECK(all.size() > 500);
}

TEST_CASE("Random faults of the whole job follow from the seed, and can be typed together") {
  std::set<std::string> kinds;
  int moved_and_changed = 0;
  for (int seed = 1; seed <= 60; ++seed) {
    const std::string ranks = std::to_string(1 + seed % 5);
    const std::vector<std::string> drawn{
        "--ranks", ranks,     "--steps", "60",     "--restarts",
        "5",       "--kills", "2",       "--seed", std::to_string(seed)};
    const Parsed parsed = parse(drawn);
    INFO(parsed.complaint);
    REQUIRE(parsed.complaint.empty());
    REQUIRE(parsed.arguments.faults.size() == 7);
    if (parsed.arguments.moves_ranks() && parsed.arguments.changes_world()) ++moved_and_changed;
    std::vector<std::string> typed{"--ranks", ranks, "--steps", "60"};
    for (const auto& fault : parsed.arguments.faults) {
      const std::string text = fault.text();
      const auto space = text.find(' ');
      typed.push_back(text.substr(0, space));
      typed.push_back(text.substr(space + 1));
      if (fault.of_all() || fault.how == How::kTwice) {
        kinds.insert(std::string(to_string(fault.how)) + (fault.rotate ? " rotate" : "") +
                     (fault.ranks > 0 ? " ranks" : "") + (fault.wake ? " wake" : ""));
      }
    }
    const Parsed again = parse(typed);
    INFO(again.complaint);
    REQUIRE(again.complaint.empty());
    std::multiset<std::string> one;
    std::multiset<std::string> other;
    for (const auto& fault : parsed.arguments.faults) one.insert(fault.text());
    for (const auto& fault : again.arguments.faults) other.insert(fault.text());
    REQUIRE(one == other);
    for (const auto& fault : parse(drawn).arguments.faults) one.erase(one.find(fault.text()));
    REQUIRE(one.empty());
  }
  CHECK(moved_and_changed > 3);
  CHECK(kinds == std::set<std::string>{"restart", "restart rotate", "restart ranks", "stop",
                                       "stop wake", "twice"});
}

TEST_CASE("The help names every option and ends with an example") {
  CLI::App app{"", "meshstage"};
  add_drill_command(app);
  std::ostringstream out;
  std::ostringstream err;
  CHECK(run_command(app, {"drill", "--help"}, out, err) == 0);
  for (const char* word : {"--ranks",       "--mesh",     "--borrow-replicated",
                           "--copies",      "--partners", "--ranks-per-host",
                           "--connections", "--steps",    "--every",
                           "--text",        "--dir",      "--json",
                           "--kill",        "--kills",    "--seed",
                           "--stop",        "--lose",     "--leave-out",
                           "--restart",     "--restarts", "--twice",
                           "--disks",       "--sharded",  "Example:",
                           "Exit code:"}) {
    INFO(word);
    CHECK(out.str().find(word) != std::string::npos);
  }
}
