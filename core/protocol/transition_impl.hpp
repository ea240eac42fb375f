#pragma once
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/protocol/transition.hpp>

/// Private to the protocol's sources: one event's turn, and the functions that those sources call
/// of each other.
namespace meshstage::protocol {

/// The state that one event changes and the actions that it adds. Read rules as `rule().name`.
struct Turn {
  State& s;
  std::vector<Action>& out;

  [[nodiscard]] const Config& config() const { return *s.config; }
  [[nodiscard]] const Rules& rule() const { return s.config->rules; }
  [[nodiscard]] bool root() const { return s.config->parent < 0; }
  /// All bits of the children's masks.
  [[nodiscard]] std::uint8_t everyone_below() const {
    return static_cast<std::uint8_t>((1U << s.config->children.size()) - 1U);
  }

  template <class A>
  void act(A action) {
    out.emplace_back(std::move(action));
  }
  void reach(Point point, ImageId id) { act(Reached{point, id}); }
  void refuse(Refuse::Reason reason, std::string why) { act(Refuse{reason, std::move(why)}); }
  void stale(const char* why) { refuse(Refuse::Reason::kStale, why); }
  void malformed(std::string why) { refuse(Refuse::Reason::kMalformed, std::move(why)); }

  void send(int to, Body body) { act(Send{to, Message{s.generation, std::move(body)}}); }
  void send_down(const Body& body) {
    for (const int child : config().children) send(child, body);
  }
  /// To every tree neighbour but one.
  void flood(const Body& body, int except) {
    if (!root() && config().parent != except) send(config().parent, body);
    for (const int child : config().children) {
      if (child != except) send(child, body);
    }
  }
};

/// The index of `rank` among this rank's children (0 or 1), or -1.
int child_index(const Turn& turn, int rank);
/// The index of `rank` among this rank's wards, or -1.
int ward_index(const Turn& turn, int rank);
/// The index of `rank` among this rank's borrowers, or -1.
int borrower_index(const Turn& turn, int rank);
/// The slot of the pair that may be overwritten while `keep` stays: the one without `keep`. If
/// neither has `keep`, a free slot comes before the older image's slot.
int slot_beside(const SlotPair& pair, ImageId keep);

// round.cpp: rules 2, 3 and 4.
void on(Turn& turn, const StageRequested& event);
void on(Turn& turn, const StageSkipped& event);
void on(Turn& turn, const OwnSealed& event);
void on(Turn& turn, const OwnFailed& event);
void on(Turn& turn, const ReplicaReady& event);
void on(Turn& turn, const ReplicaSealed& event);
void on(Turn& turn, const ReplicaFailed& event);
void on(Turn& turn, int from, const Offer& offer);
void on(Turn& turn, int from, const Accept& accept);
void on(Turn& turn, int from, const Sealed& sealed);
void on(Turn& turn, int from, const Borrow& borrow);
void on(Turn& turn, int from, const Differ& differ);
void on(Turn& turn, int from, const Yes& yes);
void on(Turn& turn, int from, const Complete& complete);
void on(Turn& turn, int from, const Failed& failed);
/// The open round of a message; nullptr (and stale) if the round is over. If this rank's trainer
/// has passed the step by, the round fails now.
Round* open_round(Turn& turn, ImageId id);
/// Gives the Store's answer to the round that waits for it, if a round still does.
void answer_round(Turn& turn, const StoreAnswered& event);
/// Votes no on every open step that this rank's trainer has not staged (and will not).
void fail_unrequested(Turn& turn, const std::string& why);

// recovery.cpp: rule 5.
void on(Turn& turn, const SlotsVerified& event);
void on(Turn& turn, const FilesVerified& event);
void on(Turn& turn, const Connected& event);
void on(Turn& turn, const Fetched& event);
void on(Turn& turn, const FetchFailed& event);
void on(Turn& turn, const StructureChecked& event);
void on(Turn& turn, int from, const Have& have);
void on(Turn& turn, int from, const AskDisk& ask);
void on(Turn& turn, int from, const Choice& choice);
void on(Turn& turn, int from, const Ready& ready);
void on(Turn& turn, int from, const Established& established);
void on(Turn& turn, int from, const GiveUp& give_up);
void start_recovery(Turn& turn);
/// Ends the recovery with the same error at every rank; no trainer was restored.
void give_up(Turn& turn, const Failure& failure, int heard_from);
/// Asks every rank as AskDisk says.
void ask_disk(Turn& turn, const AskDisk& ask);
void learn_choice(Turn& turn, const Choice& choice);
/// This rank begins a phase of its recovery.
void enter(Recovery& recovery, Recovery::Phase phase);
[[nodiscard]] bool recovering(const Turn& turn, Recovery::Phase phase);
/// Adds to a text for people, which stays short enough for a message.
void add_text(std::string& to, const std::string& text);
/// At the root: all are ready, so the Store is asked; its yes establishes the choice.
void ask_to_establish(Turn& turn);
/// Called when this rank knows that all agreed to the choice.
void become_ready(Turn& turn);

// old_world.cpp: an old job's images become files.
void on(Turn& turn, const OldPublished& event);
void on(Turn& turn, const OldFound& event);
void on(Turn& turn, int from, const Publish& publish);
void on(Turn& turn, int from, const Published& published);
/// At the root: if an old job's step in memory is newer than `taken`, and has a larger number than
/// what this number of ranks has `covered`, and the disk has room for it and it was not tried yet,
/// lets all ranks put it on disk; then choose_at_root() is called again. Else returns false, and
/// Recovery::unpublished says why, if there is such a step.
bool publish_first(Turn& turn, ImageId taken, ImageId covered);
/// Every rank makes files of that step's images.
void publish(Turn& turn, const Publish& message);
/// At the root: the newest step of another number of ranks of which a rank has proven, in this
/// recovery, a file of each old rank's image. An image that is kept in memory counts like a file if
/// the step has a larger number than what this number of ranks has `covered`.
[[nodiscard]] OldStep newest_old(const Turn& turn, ImageId covered);
/// At the root: if its directory names such a step newer than `taken` and not all of it was proven,
/// lets the root prove it alone, once; then choose_at_root() is called again. Else returns false.
bool look_first(Turn& turn, ImageId taken);

// new_cut.cpp: a step of this number of ranks that the trainers cut otherwise.
/// True if the chosen step becomes files (or stays in its slots, in a job that writes none), so
/// that the trainers assemble it.
[[nodiscard]] bool is_cut_anew(const Turn& turn);
/// At the root: all have compared, and a structure differs.
void cut_anew(Turn& turn);
/// At the root: every rank has tried to make its image a file.
void establish_new_cut(Turn& turn);
/// True if it is a Publish of the chosen step, and comes when this rank waits for it.
[[nodiscard]] bool expects_new_cut(const Turn& turn, const Publish& message);

// overdue.cpp: rule 15.
void on(Turn& turn, const Waited& event);
void on(Turn& turn, const CopyStuck& event);
void on(Turn& turn, const ReadStuck& event);
void on(Turn& turn, int from, const Overdue& overdue);

// recovery_choice.cpp: the root's choice in rule 5, and what ranks check of it.
/// Called when all claims are there that were asked for: for slots, for files, for what was left
/// out. Asks for more of them, or chooses.
void choose_at_root(Turn& turn);
/// True if rank `at` is the owner or a holder of it. These ranks are linked to one another. Another
/// rank that has an image connects to the rank that the image is for.
bool keeps(const Turn& turn, int at, int owner);
/// The first rank from which that replica borrows and which, by this rank's options, is no lender
/// of its owner; -1 if there is none. Only owners and their lenders are linked to one another.
int stranger(const Turn& turn, const Claim& claim);
/// The claims from which a whole image can be had.
std::vector<Claim> complete(const Turn& turn, std::vector<Claim> claims);
/// Removed from what can be chosen, because images that are not newer may be covered unseen.
bool unknown(const Turn& turn, ImageId id);

// transition.cpp: forming, breaking, files, the end.
/// Forgets all agreements of a generation, finished or not; the slots stay.
void forget_generation(State& state);
/// Rule 15: ends the generation, because the other ranks wait for this one. `why` goes on from
/// "rank R". This process may rejoin as long as no other has its place.
void name_itself(Turn& turn, const std::string& why);

}  // namespace meshstage::protocol
