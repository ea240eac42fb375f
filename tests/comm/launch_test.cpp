// Who is let into a job: the table of launch::admit(). Runs are in
// tests/protocol/launches_test.cpp.
#include <meshstage/core/comm/launch.hpp>

#include "tests/support/catch.hpp"

using meshstage::launch::Admission;
using meshstage::launch::admit;
using meshstage::launch::Comer;
using meshstage::launch::View;
using Outcome = View::Outcome;
using Signs = View::Signs;

namespace {

View view(Outcome outcome, Signs signs) {
  View v;
  v.exists = true;
  v.launch = "one";
  v.world_size = 4;
  v.outcome = outcome;
  v.signs = signs;
  return v;
}

Comer comer(const std::string& launch, int world = 4) {
  Comer c;
  c.launch = launch;
  c.world_size = world;
  return c;
}

}  // namespace

TEST_CASE("a job that nobody claimed is taken") {
  CHECK(admit({}, comer("one")) == Admission::kTake);
  CHECK(admit({}, comer("")) == Admission::kTake);
}

TEST_CASE("a job that runs refuses, watches or lets in, by its signs of life") {
  const auto of = [](Signs signs, const Comer& c, bool seat_free = false) {
    View v = view(Outcome::kFormed, signs);
    v.seat_free = seat_free;
    return admit(v, c);
  };
  for (const auto* launch : {"", "one", "two"}) {
    CHECK(of(Signs::kAlive, comer(launch)) == Admission::kRefused);
    CHECK(of(Signs::kUnknown, comer(launch)) == Admission::kWatch);
    CHECK(of(Signs::kBroken, comer(launch)) == Admission::kWatch);
  }
  CHECK(of(Signs::kLost, comer("")) == Admission::kWatch);  // until its own seat is free, too
  CHECK(of(Signs::kLost, comer("two")) == Admission::kTake);
  CHECK(of(Signs::kLost, comer("one", 3)) == Admission::kTake);
  for (const Signs signs : {Signs::kUnknown, Signs::kBroken, Signs::kLost}) {
    CHECK(of(signs, comer(""), true) == Admission::kClaim);
    CHECK(of(signs, comer("one"), true) == Admission::kClaim);
  }
}

TEST_CASE("take_over takes a job from another start, and never from one's own") {
  Comer forced = comer("two");
  forced.take_over = true;
  CHECK(admit(view(Outcome::kFormed, Signs::kAlive), forced) == Admission::kTake);
  CHECK(admit(view(Outcome::kForming, Signs::kAlive), forced) == Admission::kTake);
  forced.launch = "one";
  View v = view(Outcome::kFormed, Signs::kAlive);
  v.seat_free = false;
  CHECK(admit(v, forced) == Admission::kRefused);
  forced.launch.clear();  // a rank that is started anew by hand, with the options of before
  CHECK(admit(view(Outcome::kFormed, Signs::kUnknown), forced) == Admission::kClaim);
}

TEST_CASE("a rank that comes to its own start asks nobody") {
  using meshstage::launch::signs_matter;
  CHECK_FALSE(signs_matter(view(Outcome::kForming, Signs::kUnknown), comer("one")));
  CHECK_FALSE(signs_matter(view(Outcome::kForming, Signs::kUnknown), comer("")));
  CHECK_FALSE(signs_matter(view(Outcome::kAbandoned, Signs::kUnknown), comer("one")));
  CHECK_FALSE(signs_matter(view(Outcome::kFormed, Signs::kUnknown), comer("one")));  // seat free
  CHECK(signs_matter(view(Outcome::kFormed, Signs::kUnknown), comer("two")));
  CHECK(signs_matter(view(Outcome::kForming, Signs::kUnknown), comer("one", 3)));
}

TEST_CASE("a seat that somebody has is waited for") {
  for (const auto outcome : {Outcome::kForming, Outcome::kFormed}) {
    View v = view(outcome, Signs::kLost);
    v.seat_free = false;
    CHECK(admit(v, comer("one")) == Admission::kWatch);
  }
}

TEST_CASE("a job that forms takes its own ranks, and keeps others waiting until it is lost") {
  const auto of = [](Signs signs, const Comer& c) {
    return admit(view(Outcome::kForming, signs), c);
  };
  CHECK(of(Signs::kUnknown, comer("")) == Admission::kJoin);
  CHECK(of(Signs::kUnknown, comer("one")) == Admission::kJoin);
  CHECK(of(Signs::kAlive, comer("two")) == Admission::kWatch);
  CHECK(of(Signs::kLost, comer("two")) == Admission::kTake);
  CHECK(of(Signs::kAlive, comer("one", 3)) == Admission::kOtherWorld);
  CHECK(of(Signs::kUnknown, comer("one", 3)) == Admission::kWatch);
  CHECK(of(Signs::kLost, comer("one", 3)) == Admission::kTake);
  Comer other = comer("one");
  other.agreement = "blocks of 8192 bytes";
  CHECK(of(Signs::kAlive, other) == Admission::kOtherOptions);
  View worked = view(Outcome::kForming, Signs::kAlive);
  worked.worked = true;
  CHECK(admit(worked, comer("two")) == Admission::kJoin);  // fills a lost seat
  CHECK(admit(worked, comer("two", 3)) == Admission::kWatch);
}

TEST_CASE("who was in a launch's generation comes back to it, and to no other") {
  Comer back = comer("one");
  back.member = true;
  CHECK(admit(view(Outcome::kForming, Signs::kUnknown), back) == Admission::kJoin);
  CHECK(admit(view(Outcome::kFormed, Signs::kAlive), back) == Admission::kClaim);
  back.launch = "zero";
  CHECK(admit(view(Outcome::kFormed, Signs::kLost), back) == Admission::kFenced);
}
