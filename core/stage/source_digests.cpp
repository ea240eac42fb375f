#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/stage/source_digests.hpp>

namespace meshstage::detail {
namespace {

Digest digest_of(const Tensor& tensor) {
  if (!tensor.device().is_cpu()) return {};
  const Tensor elements = tensor.contiguous();
  return digest128({elements.first_byte(), elements.nbytes()});
}

}  // namespace

SourceDigests::SourceDigests(const Value& state, const StagingSource& source) {
  // A plan's order of tensors is the walk's.
  for (auto& tensor : flatten(state).tensors) paths_.push_back(std::move(tensor.path));
  for (const auto& tensor : source.tensors) digests_.push_back(digest_of(tensor));
}

void SourceDigests::check(const StagingSource& source) const {
  for (std::size_t i = 0; i < digests_.size(); ++i) {
    if (digest_of(source.tensors[i]) == digests_[i]) continue;
    throw make_error<InvalidState>(
        (paths_[i].empty() ? std::string("the tensor") : paths_[i]) +
            " changed while it was being staged; wait until it is staged before changing it",
        {}, {}, paths_[i]);
  }
}

}  // namespace meshstage::detail
