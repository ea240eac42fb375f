#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/identity/identity.hpp>

namespace meshstage {

std::string to_string(ImageId id) {
  if (!id.exists()) return "none";
  return generation_text(id.generation) + ", step " + std::to_string(id.step);
}

std::string to_string(const ImageIdentity& identity) {
  return "job \"" + identity.job + "\", rank " + std::to_string(identity.rank) + " of " +
         std::to_string(identity.world_size) + ", " + to_string(identity.id);
}

bool is_valid_job_name(std::string_view job) noexcept {
  if (job.empty() || job.size() > kMaxJobBytes || job == "." || job == "..") return false;
  for (const char c : job) {
    const bool good = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '_' || c == '-';
    if (!good) return false;
  }
  return true;
}

}  // namespace meshstage
