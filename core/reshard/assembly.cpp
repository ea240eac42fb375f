#include <meshstage/core/reshard/assembly.hpp>

#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/reshard/assembly_parts.hpp>
#include <meshstage/core/reshard/device_writes_impl.hpp>
#include <meshstage/core/reshard/host_writes_impl.hpp>
#include <meshstage/core/reshard/index_impl.hpp>
#include <meshstage/core/reshard/plain_impl.hpp>
#include <meshstage/core/tree/compare.hpp>

namespace meshstage {
namespace {

using detail::BoxTarget;
using detail::mismatch;
using detail::OldValue;

/// A box of one old rank.
struct OldBox {
  Box box;
  Tensor tensor;
};

/// A tensor of the old job.
struct OldTensor {
  Shape shape;
  DType dtype = DType::kF32;
  std::vector<OldBox> boxes;  ///< Of the copy that is read.
  struct Other {
    bool same_group = true;
    std::vector<OldBox> boxes;
  };
  std::vector<Other> others;  ///< The other copies, which should be equal.
};

std::string shown(DType dtype, const Shape& shape) {
  return std::string(to_string(dtype)) + to_string(shape);
}

std::string shown(const Box& box) {
  return "the box " + to_string(box.shape) + " at " + to_string(box.offset);
}

class Planner {
 public:
  Planner(detail::AssemblyPlan& plan, std::span<const Value> old, const detail::NewRank& rank,
          const ReshardOptions& options)
      : plan_(plan), rank_(rank), options_(options), index_(old, options.readers) {}

  void run() {
    visit(plan_.state);
    if (const auto path = index_.left(); !path.empty()) {
      throw mismatch(path, "every rank of the old job has it, and this rank's state does not");
    }
    plan_.of_some = index_.of_some();
    for (detail::OfSome& some : plan_.of_some) some.taken = some.taken || is_own(some.path);
  }

 private:
  [[nodiscard]] const std::string& path() const { return walk_.path().text(); }

  /// What this rank goes on from at the path; nothing: it keeps what it has.
  const std::vector<OldValue>& take(const Value& place) {
    const auto* const all = index_.take(path());
    const bool on_mesh =
        lies_on_mesh(place) || (all != nullptr && lies_on_mesh(all->front().value));
    if (on_mesh || !is_own(path())) {
      if (all != nullptr) return *all;
      throw mismatch(path(), "no rank of the old job, of " + std::to_string(index_.ranks()) +
                                 " ranks, has it");
    }
    const OldValue* const before = all == nullptr ? nullptr : plain().of_this_rank(*all);
    if (before != nullptr) {
      check_keys(before->value, place);
      return own_.emplace_back(1, *before);
    }
    index_.pass_below(path(), [this](const std::string& below) { return is_own(below); });
    return own_.emplace_back();
  }

  /// Whether each rank has the value at the path for itself.
  [[nodiscard]] bool is_own(const std::string& path) const {
    return kind_at(path) == PlainKind::kPerRank;
  }
  [[nodiscard]] PlainKind kind_at(const std::string& path) const {
    return options_.plain ? options_.plain(path) : PlainKind::kSame;
  }

  [[nodiscard]] bool lies_on_mesh(const Value& value) const {
    const auto* node = value.get_if<NodePtr>();
    return node != nullptr && options_.readers.contains((*node)->type_name());
  }

  /// Throws unless two dicts have the same keys, and two lists or tuples the same length.
  void check_keys(const Value& before, const Value& place) const {
    const std::string whose = "rank " + std::to_string(rank_.rank) + " of the old job";
    const auto refuse = [&](const std::string& what) {
      throw mismatch(path(), what +
                                 "; each rank has this for itself, and it must have the "
                                 "structure that it had");
    };
    if (const auto* now = place.get_if<Dict>()) {
      const auto* old = before.get_if<Dict>();
      if (old == nullptr) return;  // another kind, which is refused
      for (const auto& [key, value] : *now) {
        if (old->find(key) == nullptr) refuse(whose + " had no " + Path::escape(key));
      }
      for (const auto& [key, value] : *old) {
        if (now->find(key) == nullptr)
          refuse(whose + " had " + Path::escape(key) + ", this rank has not");
      }
      return;
    }
    const Sequence* now = sequence_of(place);
    const Sequence* old = sequence_of(before);
    if (now != nullptr && old != nullptr && now->size() != old->size()) {
      refuse(whose + " had " + std::to_string(old->size()) + " elements, this rank has " +
             std::to_string(now->size()));
    }
  }

  static const Sequence* sequence_of(const Value& value) {
    if (const auto* list = value.get_if<List>()) return list;
    return value.get_if<Tuple>();
  }

  void visit(Value& place) {
    const auto& old = take(place);
    if (place.is_scalar()) {
      if (!old.empty()) plan_.scalars.push_back({&place, plain().scalar(old)});
      return;
    }
    if (const auto* tensor = place.get_if<Tensor>()) {
      const Shape origin(tensor->dim(), 0);
      if (old.empty()) return;
      place_tensor({tensor->shape(), tensor->dtype(), {{origin, *tensor}}, 0, {}}, old);
      if (const auto* attributes = place.attributes(); attributes && !attributes->empty()) {
        Value inner = *attributes;
        walk_.below_attributes([&] { visit(inner); });
      }
      return;
    }
    if (const auto* node = place.get_if<NodePtr>()) {
      if (lies_on_mesh(place)) {
        place_tensor(read(**node, "this rank's"), old);
      } else {
        visit_node(place, old);
      }
      return;
    }
    for (const OldValue& other : old) {
      if (other.value.kind() != place.kind()) {
        throw mismatch(path(), "it is a " + place.describe() + " here, and " +
                                   other.value.describe() + " at rank " +
                                   std::to_string(other.rank) + " of the old job");
      }
      const Sequence* const now = sequence_of(place);
      if (now != nullptr && sequence_of(other.value)->size() != now->size()) {
        throw mismatch(path(), "it has " + std::to_string(now->size()) + " elements here, and " +
                                   std::to_string(sequence_of(other.value)->size()) + " at rank " +
                                   std::to_string(other.rank) + " of the old job");
      }
    }
    const void* identity = detail::container_identity(place);
    if (!is_first(identity, old)) return mark(place);
    walk_.open(identity, [&] {
      if (auto* dict = place.get_if<Dict>()) {
        for (auto& [key, value] : *dict) walk_.below(key, [&, &v = value] { visit(v); });
        return;
      }
      Sequence* sequence = place.get_if<List>();
      if (sequence == nullptr) sequence = place.get_if<Tuple>();
      for (std::size_t i = 0; i < sequence->size(); ++i) {
        walk_.below(Key(i), [&] { visit((*sequence)[i]); });
      }
    });
  }

  /// False if this rank's container, or node, stands at an earlier path, too. Then the old ranks
  /// must have had one there as well: of two only one could be taken over.
  bool is_first(const void* identity, const std::vector<OldValue>& old) {
    const auto [it, first] = seen_.try_emplace(identity);
    FirstPlace& place = it->second;
    if (first) place.path = path();
    for (const OldValue& o : old) {
      const void* const there = detail::container_identity(o.value);
      if (first) {
        place.old.emplace(o.rank, there);
      } else if (const auto before = place.old.find(o.rank);
                 before == place.old.end() || before->second != there) {
        throw mismatch(path(), "it is shared with \"" + place.path + "\" here, and not at rank " +
                                   std::to_string(o.rank) +
                                   " of the old job, whose values may differ there");
      }
    }
    return first;
  }

  /// What stands below is planned already, by another path.
  void mark(const Value& value) {
    if (const auto* attributes = value.attributes(); attributes && !attributes->empty()) {
      walk_.below_attributes([&] {
        (void)index_.take(path());
        mark(Value(*attributes));
      });
    }
    detail::for_each_below(value, [&](const Key& key, const Value& inner) {
      walk_.below(key, [&] {
        (void)index_.take(path());
        if (!lies_on_mesh(inner)) mark(inner);
      });
    });
  }

  void visit_node(Value& place, const std::vector<OldValue>& old) {
    const NodePtr node = place.as<NodePtr>();
    for (const OldValue& there : old) {
      const std::string where = " at rank " + std::to_string(there.rank) + " of the old job";
      const auto* other = there.value.get_if<NodePtr>();
      if (other == nullptr || (*other)->type_name() != node->type_name()) {
        throw mismatch(
            path(), "it is " + place.describe() + " here, and " + there.value.describe() + where);
      }
      if (compare(node->auxiliary(), (*other)->auxiliary())) {
        throw mismatch(path(), "the node \"" + node->type_name() +
                                   "\" is described otherwise here than" + where +
                                   "; if it is a tensor on a mesh, give ReshardOptions::readers a "
                                   "reader of its type");
      }
    }
    if (!is_first(node.get(), old)) {
      written_.at(node.get())->places.push_back(&place);
      return mark(place);
    }
    detail::NodeWrite& write = plan_.nodes.emplace_back();
    written_.emplace(node.get(), &write);
    write.node = node;
    write.places.push_back(&place);
    const auto children = node->children();
    for (const auto& child : children) write.children.push_back(child.value);
    walk_.open(node.get(), [&] {
      for (std::size_t i = 0; i < children.size(); ++i) {
        walk_.below(Key(children[i].name), [&] { visit(write.children[i]); });
      }
    });
    plan_.inner_first.push_back(&write);
  }

  [[nodiscard]] TensorBoxes read(const Node& node, const std::string& whose) const {
    const auto what = [&](const Error& e) {
      return "the node \"" + node.type_name() + "\" of " + whose + " state: " + e.what();
    };
    try {
      return *options_.readers.read(node);
    } catch (const StructureMismatch& e) {
      throw mismatch(path(), what(e));
    } catch (const CorruptData& e) {
      throw make_error<CorruptData>(walk_.path().shown() + ": " + what(e), {}, {}, path());
    }
  }

  [[nodiscard]] detail::PlainRule plain() const {
    return {path(), kind_at(path()), rank_, index_.ranks()};
  }

  /// Nothing: this rank keeps what it has.
  [[nodiscard]] std::optional<OldTensor> old_tensor(const std::vector<OldValue>& old) const {
    if (old.front().value.get_if<Tensor>() != nullptr) {
      const auto tensor = plain().tensor(old);
      if (!tensor) return std::nullopt;
      const Box whole{tensor->shape(), Shape(tensor->dim(), 0)};
      return OldTensor{tensor->shape(), tensor->dtype(), {{whole, *tensor}}, {}};
    }
    OldTensor result;
    std::map<std::pair<std::uint64_t, std::vector<std::int64_t>>, std::vector<OldBox>> copies;
    for (const OldValue& there : old) {
      const std::string whose = "rank " + std::to_string(there.rank) + "'s old";
      if (!lies_on_mesh(there.value)) {
        throw mismatch(path(), "it is a tensor here, and " + there.value.describe() + " in " +
                                   whose + " state");
      }
      TensorBoxes boxes = read(*there.value.as<NodePtr>(), whose);
      if (&there == &old.front()) {
        result.shape = boxes.shape;
        result.dtype = boxes.dtype;
      } else if (boxes.shape != result.shape || boxes.dtype != result.dtype) {
        throw mismatch(path(), "it is " + shown(boxes.dtype, boxes.shape) + " in " + whose +
                                   " state and " + shown(result.dtype, result.shape) + " in rank " +
                                   std::to_string(old.front().rank) + "'s");
      }
      auto& copy = copies[{boxes.group, boxes.copy}];
      for (TensorBox& box : boxes.boxes) {
        copy.push_back({{box.tensor.shape(), std::move(box.offset)}, std::move(box.tensor)});
      }
    }
    const std::uint64_t group = copies.begin()->first.first;
    for (auto& [key, boxes] : copies) {
      if (&boxes == &copies.begin()->second) {
        result.boxes = std::move(boxes);
      } else {
        result.others.push_back({key.first == group, std::move(boxes)});
      }
    }
    return result;
  }

  void place_tensor(const TensorBoxes& mine, const std::vector<OldValue>& old) {
    const auto source = old_tensor(old);
    if (!source) return;
    if (source->shape != mine.shape || source->dtype != mine.dtype) {
      throw mismatch(path(), "it is " + shown(source->dtype, source->shape) +
                                 " in the old job and " + shown(mine.dtype, mine.shape) + " here");
    }
    for (const TensorBox& box : mine.boxes) {
      if (box.tensor.numel() == 0) continue;
      BoxTarget& target = plan_.targets.emplace_back(
          BoxTarget{path(), box.tensor, {box.tensor.shape(), box.offset}, {}});
      cover(target, *source);
      compare_copies(target.box, *source);
    }
  }

  /// Plans the copies that fill a box.
  void cover(BoxTarget& target, const OldTensor& source) {
    std::vector<Box> missing{target.box};
    for (const OldBox& from : source.boxes) {
      const Box both = intersection(target.box, from.box);
      if (both.empty()) continue;
      const auto copy = [&](const Box& part) {
        target.copies.push_back({part, rank_.proven(view_of(from.tensor, from.box, part))});
      };
      std::vector<Box> rest, found;
      std::int64_t elements = 0;
      for (const Box& part : missing) {
        if (Box here = intersection(part, both); !here.empty()) {
          elements += here.numel();
          found.push_back(std::move(here));
        }
        for (Box& left : without(part, both)) rest.push_back(std::move(left));
      }
      missing = std::move(rest);
      if (elements == both.numel()) {
        copy(both);
      } else {
        compare_again(target, from);
        std::for_each(found.begin(), found.end(), copy);
      }
    }
    if (missing.empty()) return;
    throw mismatch(path(), "no rank of the old job has " + shown(missing.front()) + " of " +
                               shown(source.dtype, source.shape));
  }

  /// Boxes of one copy overlap where groups of ranks have meshes of one name, and a copy each:
  /// compares with `from` what other boxes have of it already.
  void compare_again(const BoxTarget& target, const OldBox& from) const {
    for (const auto& [part, before] : target.copies) {
      const Box both = intersection(part, from.box);
      if (both.empty()) continue;
      if (rank_.differ(view_of(before, part, both), view_of(from.tensor, from.box, both))) {
        refuse_two_meshes(both);
      }
    }
  }

  [[noreturn]] void refuse_two_meshes(const Box& box) const {
    throw mismatch(path(), "it lies on several meshes of the old job, and " + shown(box) +
                               " differs between them; give the tensors of each mesh a path of "
                               "their own");
  }

  /// Compares what all copies have of a box with the copy that is read.
  void compare_copies(const Box& box, const OldTensor& source) {
    bool warned = false;
    for (const auto& other : source.others) {
      for (const OldBox& theirs : other.boxes) {
        const Box wanted = intersection(box, theirs.box);
        if (wanted.empty()) continue;
        for (const OldBox& from : source.boxes) {
          const Box both = intersection(wanted, from.box);
          if (both.empty() || !rank_.differ(view_of(theirs.tensor, theirs.box, both),
                                            view_of(from.tensor, from.box, both))) {
            continue;
          }
          if (!other.same_group) refuse_two_meshes(both);
          if (!std::exchange(warned, true)) {
            plan_.warnings.push_back(
                walk_.path().shown() + ": " + shown(both) +
                " differs between the copies that the old job's mesh replicates; "
                "all of it is taken from the copy that is first by coordinates");
          }
        }
      }
    }
  }

  detail::AssemblyPlan& plan_;
  const detail::NewRank& rank_;
  const ReshardOptions& options_;
  detail::OldIndex index_;
  std::deque<std::vector<OldValue>> own_;  ///< What take() made: references to them stay.
  detail::Walk walk_;
  /// Where a container or a node stands first, and which stands there at each old rank.
  struct FirstPlace {
    std::string path;
    std::map<int, const void*> old;
  };
  std::unordered_map<const void*, FirstPlace> seen_;
  std::unordered_map<const Node*, detail::NodeWrite*> written_;
};

std::unique_ptr<detail::AssemblyPlan> read_plan(std::span<const Value> old, Value state,
                                                const detail::NewRank& rank,
                                                const ReshardOptions& options) {
  if (old.empty()) throw InvalidArgument("an old job has at least one rank");
  if (rank.rank < 0 || rank.rank >= rank.world_size) {
    throw InvalidArgument("there is no rank " + std::to_string(rank.rank) + " of " +
                          std::to_string(rank.world_size));
  }
  require_writable(state);
  auto plan = std::make_unique<detail::AssemblyPlan>();
  plan->state = std::move(state);
  Planner(*plan, old, rank, options).run();
  return plan;
}

}  // namespace

Assembly::Assembly(std::unique_ptr<detail::AssemblyPlan> plan) : plan_(std::move(plan)) {}
Assembly::Assembly(Assembly&&) noexcept = default;
Assembly& Assembly::operator=(Assembly&&) noexcept = default;
Assembly::~Assembly() = default;

Assembly Assembly::plan(std::span<const Value> old, Value state, int rank, int world_size,
                        const ReshardOptions& options) {
  Assembly assembly(read_plan(old, std::move(state), {rank, world_size}, options));
  detail::AssemblyParts::check(assembly);
  return assembly;
}

Assembly Assembly::plan(StepStates& old, Value state, int rank, int world_size,
                        const ReshardOptions& options) {
  auto assembly = detail::AssemblyParts::read(old, std::move(state), rank, world_size, options);
  detail::AssemblyParts::check(assembly);
  return assembly;
}

Assembly detail::AssemblyParts::read(StepStates& old, Value state, int rank, int world_size,
                                     const ReshardOptions& options) {
  const NewRank reads{rank, world_size, true, [&old](const Tensor& part) { old.prove(part); }};
  for (;;) {
    try {
      return Assembly(read_plan(old.states(), state, reads, options));
    } catch (const CorruptData& e) {
      if (!old.pass_over_damaged(e)) throw;
    }
  }
}

void detail::AssemblyParts::ask(const StepStates& old, Value state, int rank, int world_size,
                                const ReshardOptions& options,
                                const std::function<void(const Tensor&)>& needs) {
  (void)read_plan(old.states(), std::move(state), {rank, world_size, true, needs, true}, options);
}

const std::vector<std::string>& Assembly::warnings() const noexcept { return plan_->warnings; }

std::uint64_t Assembly::bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const BoxTarget& target : plan_->targets) bytes += target.tensor.nbytes();
  return bytes;
}

void Assembly::write(std::span<const TrainerStream> streams, Deadline deadline, unsigned hands) {
  detail::write_to_devices(plan_->targets, streams, deadline);
  detail::write_to_host(plan_->targets, hands);
  for (const auto& scalar : plan_->scalars) *scalar.place = scalar.value;
  for (detail::NodeWrite* write : plan_->inner_first) {
    const NodePtr now =
        write->node->assign(write->children) ? write->node : write->node->rebuild(write->children);
    for (Value* place : write->places) *place = now;
  }
}

}  // namespace meshstage
