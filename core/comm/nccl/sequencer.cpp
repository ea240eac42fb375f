#include <algorithm>
#include <new>
#include <utility>

#include <meshstage/core/comm/nccl/module_table_impl.hpp>
#include <meshstage/core/comm/nccl/sequencer_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/exception_of.hpp>
#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::nccl {

std::vector<Decision> Sequencer::post(int rank, const Post& post) {
  const auto exists = [&](int r) {
    return r >= 0 && static_cast<std::size_t>(r) < collectives_.size();
  };
  if (!exists(rank) || !exists(post.peer)) {
    throw make_error<CorruptData>("rank " + std::to_string(rank) + " posted a call with rank " +
                                      std::to_string(post.peer) + ", which does not exist",
                                  rank);
  }
  const bool pairwise = post.call == Call::kSend || post.call == Call::kReceive;
  return pairwise ? match(rank, post) : gather(rank, post);
}

std::vector<Decision> Sequencer::match(int rank, const Post& post) {
  const bool is_send = post.call == Call::kSend;
  const auto key = is_send ? std::tuple(rank, int{post.peer}, post.tag)
                           : std::tuple(int{post.peer}, rank, post.tag);
  auto& pair = pairs_[key];
  auto& others = is_send ? pair.receives : pair.sends;
  if (others.empty()) {
    (is_send ? pair.sends : pair.receives).push_back(post);
    return {};
  }
  const Post other = others.front();
  others.pop_front();
  if (pair.sends.empty() && pair.receives.empty()) pairs_.erase(key);
  const auto verdict = other.bytes == post.bytes ? Verdict::kLaunch : Verdict::kOtherLength;
  return {{rank, post.id, verdict}, {post.peer, other.id, verdict}};
}

std::vector<Decision> Sequencer::gather(int rank, const Post& post) {
  collectives_[static_cast<std::size_t>(rank)].push_back(post);
  if (std::any_of(collectives_.begin(), collectives_.end(),
                  [](const auto& posts) { return posts.empty(); })) {
    return {};
  }
  std::vector<Decision> decisions;
  const Post first = collectives_.front().front();
  for (std::size_t r = 0; r < collectives_.size(); ++r) {
    Post one = collectives_[r].front();
    collectives_[r].pop_front();
    decisions.push_back({static_cast<int>(r), one.id, Verdict::kLaunch});
    one.id = first.id;
    if (one == first) continue;
    throw make_error<InvalidState>("rank " + std::to_string(r) +
                                       " called another collective than rank 0, or with another "
                                       "length, type or root",
                                   static_cast<int>(r));
  }
  return decisions;
}

namespace {

class Writer {
 public:
  explicit Writer(MessageType type) { put(type); }
  template <class T>
  Writer& put(const T& value) {
    little_endian::append(bytes_, value);
    return *this;
  }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> message) : rest_(message) { get<MessageType>(); }
  template <class T>
  T get() {
    if (rest_.size() < sizeof(T)) throw CorruptData("a message of a group over NCCL is too short");
    const T value = little_endian::load<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  template <class E>
  E get_up_to(E last) {
    const auto value = get<E>();
    if (value > last) throw CorruptData("a message of a group over NCCL has an unknown value");
    return value;
  }
  [[nodiscard]] std::span<const std::byte> rest() const { return rest_; }
  void end() const {
    if (!rest_.empty()) throw CorruptData("a message of a group over NCCL is too long");
  }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace

std::vector<std::byte> encode_id(std::span<const unsigned char> id) {
  Writer writer(MessageType::kId);
  writer.put(kMessagesVersion);
  for (const unsigned char byte : id) writer.put(byte);
  return writer.take();
}

std::vector<std::byte> encode(const Post& post) {
  return Writer(MessageType::kPost)
      .put(post.id)
      .put(post.call)
      .put(post.element)
      .put(post.reduce)
      .put(post.peer)
      .put(post.tag)
      .put(post.bytes)
      .take();
}

std::vector<std::byte> encode(const Decision& decision) {
  return Writer(MessageType::kDecision).put(decision.id).put(decision.verdict).take();
}

std::vector<std::byte> encode(const AbortNote& note) {
  Writer writer(MessageType::kAbort);
  writer.put(std::uint8_t{note.drain}).put(note.kind).put(note.rank);
  for (const char c : note.text) writer.put(c);
  return writer.take();
}

AbortNote note_of(const std::exception_ptr& cause, int own_rank) noexcept {
  AbortNote note{.drain = false,
                 .kind = static_cast<std::uint8_t>(ErrorKind::kPeerLost),
                 .rank = own_rank,
                 .text = {}};
  try {
    try {
      std::rethrow_exception(cause);
    } catch (const RejoinNeeded& e) {
      note.kind = static_cast<std::uint8_t>(e.kind());
      note.rank = e.rank().value_or(-1);
      note.text = e.message();
    } catch (const std::exception& e) {
      note.text = "rank " + std::to_string(own_rank) + " ended the group: " + e.what();
    } catch (...) {  // of a type of the caller's own
      note.text = "rank " + std::to_string(own_rank) + " ended the group";
    }
  } catch (const std::bad_alloc&) {
    note.text.clear();  // kind and rank tell the others enough
  }
  return note;
}

std::exception_ptr cause_of(const AbortNote& note) noexcept {
  const auto rank = note.rank < 0 ? std::optional<int>() : note.rank;
  return exception_of(static_cast<ErrorKind>(note.kind), note.text, rank);
}

MessageType type_of(std::span<const std::byte> message) {
  if (message.empty()) throw CorruptData("a message of a group over NCCL is empty");
  const auto type = little_endian::load<MessageType>(message.data());
  if (type > MessageType::kAbort) throw CorruptData("a message of a group over NCCL is of no type");
  return type;
}

std::vector<unsigned char> decode_id(std::span<const std::byte> message) {
  Reader reader(message);
  const auto version = reader.get<std::uint8_t>();
  if (version != kMessagesVersion) {
    throw InvalidState("rank 0 has messages of version " + std::to_string(version) +
                       ", this rank of version " + std::to_string(kMessagesVersion));
  }
  const auto bytes = reader.rest();
  if (bytes.size() != nccl_module::kIdBytes) throw CorruptData("NCCL's id has another length");
  std::vector<unsigned char> id;
  for (const std::byte byte : bytes) id.push_back(std::to_integer<unsigned char>(byte));
  return id;
}

Post decode_post(std::span<const std::byte> message) {
  Reader reader(message);
  Post post;
  post.id = reader.get<std::uint64_t>();
  post.call = reader.get_up_to(kLastCall);
  post.element = reader.get<std::uint8_t>();
  post.reduce = reader.get<std::uint8_t>();
  post.peer = reader.get<std::int32_t>();
  post.tag = reader.get<std::uint64_t>();
  post.bytes = reader.get<std::uint64_t>();
  reader.end();
  return post;
}

Decision decode_decision(std::span<const std::byte> message) {
  Reader reader(message);
  Decision decision;
  decision.id = reader.get<std::uint64_t>();
  decision.verdict = reader.get_up_to(Verdict::kOtherLength);
  reader.end();
  return decision;
}

AbortNote decode_abort(std::span<const std::byte> message) {
  Reader reader(message);
  AbortNote note;
  note.drain = reader.get<std::uint8_t>() != 0;
  note.kind = reader.get_up_to(static_cast<std::uint8_t>(ErrorKind::kPeerSilent));
  note.rank = reader.get<std::int32_t>();
  for (const std::byte c : reader.rest()) note.text += static_cast<char>(c);
  return note;
}

}  // namespace meshstage::nccl
